"""The fenced blocks of the documentation, and the simple commands of those that hold commands.

A `bash` block is what a reader types, and runs in a test. Where it cannot, a comment before it says why:

    <!-- not run: needs a Raspberry Pi -->
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]

#: Every language that a block may have. "text" is what is only read.
LANGUAGES = {"bash", "python", "yaml", "toml", "ini", "json", "c", "html", "text", "mermaid"}

_NOT_RUN = re.compile(r"<!--\s*not run:\s*(.*?)\s*-->", re.DOTALL)
#: What ends a simple command, and words that may stand before one.
_SEPARATORS = set(";&|()")
_KEYWORDS = {"if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "{", "}", "!"}
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block. `not_run` is the reason why a test cannot run it; None where one does."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page that people read, relative to the repository."""
    top = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
    return [*top, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def tokens(page: str) -> list[Token]:
    return MarkdownIt().enable("table").parse((ROOT / page).read_text(encoding="utf-8"))


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order, those inside of lists too."""
    found = []
    before: Token | None = None
    for token in tokens(page):
        if token.type == "fence":
            assert token.map is not None
            told = None if before is None or before.type != "html_block" else _NOT_RUN.search(before.content)
            found.append(
                Block(
                    page=page,
                    line=token.map[0] + 1,
                    language=token.info.strip(),
                    text=token.content,
                    not_run=None if told is None else " ".join(told[1].split()),
                )
            )
        before = token
    return found


def command_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks(page) if block.language == "bash"]


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a script, without assignments, redirections and the shell's own words."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in lexer:
            if set(word) <= _SEPARATORS:
                yield from _command(words)
                words = []
            elif set(word) <= {"<", ">", "&"}:
                skip = True  # the file of a redirection
            elif skip:
                skip = False
            else:
                words.append(word)
        yield from _command(words)


def _command(words: list[str]) -> Iterator[list[str]]:
    rest = list(words)
    while rest and (rest[0] in _KEYWORDS or _ASSIGNMENT.match(rest[0])):
        if rest[0] == "for":
            return
        rest = rest[1:]
    if rest:
        yield rest
