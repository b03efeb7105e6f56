"""Hooks of MkDocs: generated pages, and links that lead out of docs/.

Pages link to files of the repository by relative paths, as they do on any host of repositories. In the site these files
lie beside the pages: a Markdown file of the repository's root as a page, every other file as it is.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docsite import agent, cli, client, config, examples, rest

ROOT = Path(__file__).parents[1]
DOCS = "docs"

#: Pages that are not in docs/: Markdown of the repository's root by its page's name.
ROOT_PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "DECISIONS.md": "decisions.md",
    "CHANGELOG.md": "changelog.md",
}
GENERATED = {
    "reference/kerf.md": cli.page,
    "reference/kerf-agent.md": agent.page,
    "reference/rest.md": rest.page,
    "reference/config.md": config.page,
    "reference/client.md": client.page,
    "examples.md": examples.page,
}
#: Where the repository's other files lie in the site.
FILES = "repository"

_FENCE = re.compile(r"^\s*```")
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s]+)(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not in docs/."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for page, make in GENERATED.items():
        files.append(File.generated(config, page, content=make()))
    for name in sorted(_linked_files(files)):
        files.append(File.generated(config, f"{FILES}/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that lead to the repository's files lead to where these are in the site."""
    here = page.file.src_uri
    source = _source_of(here)
    lines = markdown.split("\n")
    fenced = False
    for number, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            lines[number] = _LINK.sub(lambda match: _moved(match[1], source, here), line)
    return "\n".join(lines)


def _source_of(page: str) -> str:
    """The path in the repository of what a page is made from; links in it are relative to that."""
    for name, made in ROOT_PAGES.items():
        if made == page:
            return name
    return f"{DOCS}/{page}"


def _moved(link: str, source: str, here: str) -> str:
    path, mark, anchor = link.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if target in ROOT_PAGES:
        moved = ROOT_PAGES[target]
    elif target == "examples":
        moved = "examples.md"
    elif target.startswith(f"{DOCS}/"):
        moved = target.removeprefix(f"{DOCS}/")
    else:
        moved = f"{FILES}/{target}"
    return posixpath.relpath(moved, posixpath.dirname(here) or ".") + mark + anchor


def _linked_files(files: Files) -> set[str]:
    """The files of the repository outside of docs/ that pages link to."""
    found = set()
    for file in files.documentation_pages():
        if file.src_uri in GENERATED:
            continue
        source = _source_of(file.src_uri)
        for link in _LINK.findall((ROOT / source).read_text(encoding="utf-8")):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link.partition("#")[0]))
            if not path.startswith(f"{DOCS}/") and path not in ROOT_PAGES and (ROOT / path).is_file():
                found.add(path)
    return found
