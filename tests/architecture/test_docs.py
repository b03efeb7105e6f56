"""The documentation names every setting, config key and result key that there is."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import pytest
import yaml

from device_agent.contracts import VerdictReason
from device_agent.settings import ENVIRONMENT
from docsite.screenshots import MAX_BYTES
from search.domain.config import SearchConfig, parse_config
from search.domain.result import FrontPoint, SearchResult, result_schema
from server.settings import ENV_PREFIX, Settings
from tests.docs.blocks import pages, tokens

ROOT = Path(__file__).parents[2]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
MEASURING = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")
RESULT = (ROOT / "docs" / "result.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [ENV_PREFIX + f.name.upper() for f in dataclasses.fields(Settings)])
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{name}`" in CONFIGURATION


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_every_variable_of_the_agent_is_documented(name: str) -> None:
    assert f"`{name}`" in CONFIGURATION


def leaves(value: object, where: str) -> list[str]:
    """The names of all fields below a dataclass instance."""
    names = []
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        item = getattr(value, field.name)
        names += leaves(item, field.name) if dataclasses.is_dataclass(item) else [field.name]
    return names


def test_every_config_key_is_documented() -> None:
    config: SearchConfig = parse_config(
        {
            "name": "n",
            "model": {"architecture": "small_cnn"},
            "dataset": {"name": "digits"},
            "space": {"channels": {}, "weights": {}, "depth": {}, "resolution": {}},
        }
    )
    assert [name for name in leaves(config, "") if f"{name}`" not in CONFIGURATION] == []


def test_the_schema_has_the_fields_of_the_result() -> None:
    schema = result_schema()
    assert set(schema["properties"]) == {f.name for f in dataclasses.fields(SearchResult)}
    point = schema["properties"]["front"]["items"]
    assert set(point["properties"]) == set(point["required"]) == {f.name for f in dataclasses.fields(FrontPoint)}
    assert [f.name for f in dataclasses.fields(FrontPoint) if f"`{f.name}`" not in RESULT] == []


@pytest.mark.parametrize("reason", VerdictReason)
def test_every_reason_of_a_verdict_is_explained(reason: VerdictReason) -> None:
    assert f"| `{reason.value}` |" in MEASURING


@functools.cache
def anchors(page: str) -> set[str]:
    """What links to the headings of a page end with."""
    parsed = tokens(page)
    headings = [parsed[i + 1].content for i, token in enumerate(parsed) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*pages(), "DECISIONS.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    lost = []
    for token in tokens(page):
        for child in token.children or ():
            link = child.attrs.get("href") or child.attrs.get("src")
            if not isinstance(link, str) or "://" in link or link.startswith("mailto:"):
                continue
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            found = target.exists() and target.resolve().is_relative_to(ROOT)
            if found and anchor:
                found = target.suffix == ".md" and anchor in anchors(str(target.resolve().relative_to(ROOT)))
            if not found:
                lost.append(link)
    assert lost == []


def test_every_page_is_in_the_site() -> None:
    """The navigation is a list of pages, apart from those that are generated."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    missing = {page.removeprefix("docs/") for page in pages() if page.startswith("docs/")} - listed
    assert not missing, f"add {', '.join(sorted(missing))} to `nav` in mkdocs.yml"


def test_pages_show_every_picture_and_none_is_large() -> None:
    """Those of the dashboard are of `make screenshots`; a README is loaded with its pictures."""
    shown = set()
    for page in pages():
        for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            path = ((ROOT / page).parent / link).resolve()
            assert path.is_file(), f"{page} shows {link}"
            shown.add(path.name)
    stored = {path.name: path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()}
    assert set(stored) == shown
    assert {name: size for name, size in stored.items() if size > MAX_BYTES} == {}


def test_the_threat_model_names_tests_that_there_are() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", text))
    assert len(named) > 12
    there = [path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("*")]
    missing = {name for name in named if not any(f"/{path}".endswith(f"/{name.rstrip('/')}") for path in there)}
    assert missing == set()


#: Where Kerf is not installed yet, this would fetch another project of that name from the package index.
BY_NAME = re.compile(r"pip install(?: -\S+)* ['\"]?kerf(?:\[(?:agent|server|search)[^\]]*\])?['\"`\s]")


def test_nothing_tells_to_install_kerf_by_its_name() -> None:
    assert BY_NAME.search("kerf/bin/pip install 'kerf[agent]'")
    assert BY_NAME.search("`pip install kerf`")
    assert not BY_NAME.search("pip install './kerf[agent,server,search]' ; pip install 'kerf[parquet]'")
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "server" / "dashboard").rglob("*.html")]
    assert [path.name for path in files if BY_NAME.search(path.read_text(encoding="utf-8"))] == []
