"""Every page can be used by everybody: axe finds nothing serious, and the keyboard reaches what can be done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from device_agent.contracts import dumps, encode, kernel_id
from server.dashboard.report import render_report
from server.latency.card import refresh_card
from server.searches import repository
from server.searches.repository import FRONT_LAYERS
from server.settings import Settings
from tests.browser.conftest import Site
from tests.browser.test_dashboard_browser import Serve, page_of
from tests.browser.test_more_pages_browser import explored
from tests.unit.server.cli.test_report import full_result, layer
from tests.unit.server.dashboard import seed
from tests.unit.server.dashboard.test_dashboard_explorer import SHAPE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.xdist_group("browser")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
#: What WCAG 2.2 asks for at the levels A and AA, as far as a program can tell.
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
#: Colours and size.
VIEWS = (("light", DESKTOP), ("dark", PHONE), ("dark", DESKTOP), ("light", PHONE))

FOCUSABLE = "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, dict[str, str]]]:
    """A site with something on every page, and the addresses of all pages by name. Tests only look at it."""
    site = Site(Settings(data_dir=tmp_path_factory.mktemp("accessible"), open_dashboard=True))
    report = tmp_path_factory.mktemp("report") / "report.html"
    report.write_text(render_report(encode(full_result())), encoding="utf-8")
    yield site, {**addresses_of(site), "report": report.as_uri()}
    site.stop()


def addresses_of(site: Site) -> dict[str, str]:
    seeded = seed.seed(site.context)
    seed.quarantine(site.context)
    first, second, *_ = explored(site)
    # The series that was measured in last has its card first.
    while refresh_card(site.context.database, quiet_s=0.0) not in (first, None):
        pass
    search = seeded.running.search_id
    with site.context.database.write() as session:
        chosen = repository.load_candidates(session, search, selected=True)[0].candidate_id
        layers = dumps({chosen: [layer("layer1.0.conv1", 0.25, 1.0), layer("layer1.0.conv2", 1.0, 2.0)]})
        repository.put_document(session, seeded.running, FRONT_LAYERS, layers)
    return {
        "overview": "/",
        "queue": "/queue",
        "quarantine": "/quarantine",
        "enrolment": "/enrol",
        "sign-in": "/login",
        "running search": f"/searches/{search}",
        "completed search": f"/searches/{seeded.completed_id}",
        "failed search": f"/searches/{seeded.failed_id}",
        "candidate": f"/searches/{search}/candidates/{chosen}",
        "device": f"/devices/{seeded.device_id}",
        "card": f"/series/{first}",
        "profit map": f"/series/{first}/profit",
        "explorer": "/explorer?op=conv2d",
        "explorer without a fit": "/explorer?op=mul",
        "kernel": f"/series/{first}/kernels/{kernel_id(SHAPE)}",
        "comparison": f"/compare?first={first}&second={second}",
        "comparison to choose": "/compare",
    }


def settle(page: Page, name: str) -> None:
    """Wait for what scripts draw."""
    if name.endswith("search") and name != "failed search":
        page.wait_for_selector('#chart[data-ready="true"]')


def violations(page: Page) -> list[str]:
    """What axe finds serious or critical, with the elements."""
    options = {"runOnly": {"type": "tag", "values": TAGS}, "resultTypes": ["violations"], "preload": False}
    found: list[dict[str, Any]] = page.evaluate("o => axe.run(document, o).then(r => r.violations)", options)
    return [
        f"{rule['id']} ({rule['impact']}): {node['target']} {node['failureSummary']}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def axe_script() -> str:
    """axe-core, which a package of test tools brings along. Nothing of it is served."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe is not installed: install kerf[dev]")
    return (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def problems_of(
    chromium: Browser, site: Site, addresses: dict[str, str], scheme: str, size: dict[str, int]
) -> list[str]:
    script = axe_script()
    found: list[str] = []
    with page_of(chromium, site, color_scheme=scheme, viewport=size) as page:
        for name, address in addresses.items():
            page.goto(address)
            settle(page, name)
            page.evaluate(script)
            found += [f"{name}, {scheme}: {problem}" for problem in violations(page)]
            if page.evaluate("document.documentElement.scrollWidth") > size["width"]:
                found.append(f"{name}: wider than {size['width']}")
    return found


def test_axe_finds_nothing_serious_on_any_page(chromium: Browser, paths: tuple[Site, dict[str, str]]) -> None:
    """Every other page light and on a desktop, the rest dark and on a phone: they share their parts."""
    site, addresses = paths
    for place, (scheme, size) in enumerate(VIEWS[:2]):
        own = dict(list(addresses.items())[place::2])
        assert problems_of(chromium, site, own, scheme, size) == []


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "size"), VIEWS)
def test_axe_finds_nothing_serious_in_any_colours_and_size(
    chromium: Browser, paths: tuple[Site, dict[str, str]], scheme: str, size: dict[str, int]
) -> None:
    site, addresses = paths
    assert problems_of(chromium, site, addresses, scheme, size) == []


def test_axe_finds_what_is_wrong(chromium: Browser, serve: Serve) -> None:
    """The test above can fail: a picture without a text, grey on grey, a field without a label."""
    script = axe_script()
    with page_of(chromium, serve()) as page:
        page.set_content('<html lang="en"><title>t</title><p style="color:#aaa;background:#fff">grey</p><input></html>')
        page.evaluate(script)
        found = " ".join(violations(page))
    assert "color-contrast" in found
    assert "label" in found


def test_the_keyboard_reaches_all_that_can_be_done(chromium: Browser, paths: tuple[Site, dict[str, str]]) -> None:
    """In the order of the document, with a visible ring around what has the focus, and without a trap."""
    site, addresses = paths
    with page_of(chromium, site) as page:
        for name in ("overview", "running search", "candidate", "explorer", "comparison", "profit map"):
            page.goto(addresses[name])
            settle(page, name)
            count = page.evaluate(
                """selector => {
                    const seen = [...document.querySelectorAll(selector)].filter(
                        (e) => e.checkVisibility() && !e.disabled && e.tabIndex >= 0);
                    window.places = seen;
                    return seen.length;
                }""",
                FOCUSABLE,
            )
            assert count > 5, name
            for place in range(count):
                page.keyboard.press("Tab")
                told = page.evaluate(
                    """() => {
                        const e = document.activeElement, style = getComputedStyle(e);
                        return [places.indexOf(e), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
                            e.outerHTML.slice(0, 120)];
                    }"""
                )
                assert told[0] == place, (name, place, told)
                assert told[1], f"{name}: no ring around {told[2]}"
