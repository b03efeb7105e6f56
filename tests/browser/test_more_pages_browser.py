"""Explorer, comparison, queue, candidates, enrolment and the report in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from device_agent.contracts import KernelTask, Source, Verdict, dumps, encode, kernel_id
from server.dashboard.compare import compare_page
from server.dashboard.report import render_report
from server.models import SearchRow
from server.searches import repository
from server.searches.repository import FRONT_LAYERS
from server.states import JobState
from tests.browser.conftest import Site
from tests.browser.test_dashboard_browser import Serve, page_of, wait_live
from tests.unit.server.cli.test_report import full_result, layer
from tests.unit.server.dashboard import seed
from tests.unit.server.dashboard.test_dashboard_explorer import SHAPE, lab_kernels

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.xdist_group("browser")


def explored(site: Site) -> list[str]:
    """The series of two boards on which many kernels were timed."""
    found = []
    for name in ("explored", "second board"):
        claim = seed.submit(site.context, name, seed.enrol(site.context, name, seed.profile("Cortex-A55", 4)))
        tasks = tuple(KernelTask(kernel=kernel, setup=seed.SETUP) for kernel in lab_kernels()[:14])
        seed.measure(site.context, claim, tasks, source=Source.MEASURED, judge=lambda _: (Verdict.TRUSTED, ()))
        with site.context.database.read() as session:
            found = [choice.value for choice in compare_page(session, None, None).first if choice.value]
    return found


def test_new_pages_fit_a_phone_and_need_no_scripts(chromium: Browser, serve: Serve) -> None:
    site = serve()
    seeded = seed.seed(site.context)
    seed.quarantine(site.context)
    first, second, *_ = explored(site)
    with site.context.database.write() as session:
        chosen = repository.load_candidates(session, seeded.running.search_id, selected=True)[0].candidate_id
        layers = dumps({chosen: [layer("layer1.0.conv1", 0.25, 1.0), layer("layer1.0.conv2", 1.0, 2.0)]})
        repository.put_document(session, seeded.running, FRONT_LAYERS, layers)
    paths = (
        "/queue",
        "/quarantine",
        "/enrol",
        f"/explorer?series={first}&op=conv2d",
        f"/series/{first}/kernels/{kernel_id(SHAPE)}",
        f"/compare?first={first}&second={second}",
        f"/searches/{seeded.running.search_id}/candidates/{chosen}",
    )
    options = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark", "java_script_enabled": False}
    with page_of(chromium, site, **options) as page:
        for path in paths:
            page.goto(path)
            assert page.get_by_role("heading", level=1).count() == 1, path
            assert page.evaluate("document.documentElement.scrollWidth") == 360, path


def test_the_explorer_goes_from_filters_to_a_curve_by_keyboard(chromium: Browser, serve: Serve) -> None:
    site = serve()
    explored(site)
    with page_of(chromium, site) as page:
        page.goto("/explorer")
        page.get_by_label("Operator").select_option("conv2d")
        page.get_by_label("Density from").fill("0.9")
        page.get_by_label("Output channels").fill("64")
        page.keyboard.press("Enter")
        page.wait_for_url("**/explorer?op=conv2d&out_channels=64&min_density=0.9")
        rows = page.get_by_role("table", name="Latencies").get_by_role("row")
        assert rows.count() == 2
        rows.nth(1).get_by_role("link").focus()
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Over density").wait_for()
        picture = page.get_by_role("img", name="Line chart: median latency over density")
        assert picture.bounding_box()["width"] > 300  # type: ignore[index]
        assert picture.locator("path.line").count() == 2


def test_a_search_is_cancelled_after_a_second_look(chromium: Browser, serve: Serve) -> None:
    site = serve()
    claim = seed.seed(site.context).running
    with page_of(chromium, site) as page:
        page.goto(f"/searches/{claim.search_id}")
        wait_live(page)
        assert not page.get_by_role("button", name="Cancel the search").is_visible()
        page.get_by_role("button", name="Pause").click()
        page.get_by_text("pausing").first.wait_for()
        page.get_by_text("Cancel …").click()
        page.get_by_role("button", name="Cancel the search").click()
        page.get_by_text("cancelling").first.wait_for()
    with site.context.database.read() as session:
        assert session.get_one(SearchRow, claim.search_id).state is JobState.CANCELLING


def test_the_keyboard_stays_where_a_search_is_steered(chromium: Browser, serve: Serve) -> None:
    """Each press takes its control away. What took its place has the focus, or the group that tells the new state."""
    site = serve()
    claim = seed.seed(site.context).running
    with page_of(chromium, site) as page:
        page.goto(f"/searches/{claim.search_id}")
        wait_live(page)
        page.evaluate("window.sameDocument = true")
        focused = "document.activeElement.textContent.trim()"
        page.get_by_role("button", name="Pause").focus()
        page.keyboard.press("Enter")
        page.get_by_role("status").get_by_text("pausing").wait_for()
        page.wait_for_function(f"{focused} === 'Cancel …'")
        with site.context.database.write() as session:
            repository.settle_job(session, claim)
        page.get_by_role("status").get_by_text("paused").wait_for()
        assert page.evaluate(focused) == "Cancel …", "it is still there"
        page.keyboard.press("Shift+Tab")
        assert page.evaluate(focused) == "Resume"
        page.keyboard.press("Enter")
        page.get_by_role("status").get_by_text("waiting").wait_for()
        page.wait_for_function(f"{focused} === 'Pause'")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == "Cancel the search"
        page.keyboard.press("Enter")
        page.get_by_role("group", name="The search is cancelled").wait_for()
        page.wait_for_function("document.activeElement.id === 'steering'")
        assert page.evaluate("window.sameDocument") is True


def test_a_search_is_steered_without_scripts(chromium: Browser, serve: Serve) -> None:
    site = serve()
    claim = seed.seed(site.context).running
    with page_of(chromium, site, java_script_enabled=False) as page:
        page.goto(f"/searches/{claim.search_id}")
        page.get_by_role("button", name="Pause").focus()
        page.keyboard.press("Enter")
        page.get_by_role("group", name="The search is pausing").wait_for()
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() in ("pi5-lab", "Cancel …"), "it goes on from the controls"


def test_what_cannot_be_done_any_more_is_told_beside_the_control(chromium: Browser, serve: Serve) -> None:
    site = serve()
    claim = seed.seed(site.context).running
    profile = chromium.new_context(base_url=site.url)
    page = profile.new_page()
    page.goto(f"/searches/{claim.search_id}")
    # Another ends it, before this page hears of it.
    page.route("**/live/**", lambda route: route.abort())
    page.reload()
    # The server is not there for a while, or at fault: nothing else on the page changes.
    for fault in (lambda route: route.abort(), lambda route: route.fulfill(status=503, json={"title": "busy"})):
        page.route("**/pause", fault)
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("alert").get_by_text("try again").wait_for()
        page.unroute("**/pause")
        page.evaluate("document.getElementById('steering-problem').textContent = ''")
    with site.context.database.write() as session:
        repository.fail_job(session, claim, "the disk is full")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("alert").get_by_text("cannot be paused").wait_for()
    assert page.get_by_role("heading", level=1).inner_text() == "cifar10-resnet20"
    profile.close()


def test_a_command_is_copied(chromium: Browser, serve: Serve) -> None:
    site = serve()
    with page_of(chromium, site, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto("/enrol")
        page.get_by_role("button", name="Copy").last.click()
        page.get_by_role("button", name="Copied").wait_for()
        told = page.evaluate("navigator.clipboard.readText()")
        assert told == f"kerf-agent run --server {site.url} --code CODE"


def test_the_report_is_drawn_from_a_file_and_loads_nothing(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_report(encode(full_result())), encoding="utf-8")
    for scheme, width in (("light", 1200), ("dark", 360)):
        profile = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True)
        page = profile.new_page()
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(path.as_uri())
        picture = page.get_by_role("img", name="Measured latency against test accuracy")
        assert picture.evaluate("p => p.complete && p.naturalWidth > 0")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        if scheme == "dark":
            shown = picture.evaluate("p => p.currentSrc")
            page.emulate_media(media="print", color_scheme="dark")
            page.wait_for_function("was => document.querySelector('img.picture').currentSrc !== was", arg=shown)
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert ground == "rgb(255, 255, 255)", "paper is white"
            # A4 less margins of 1 cm. Tables are tables there, and end where the page does.
            page.set_viewport_size({"width": 718, "height": 1040})
            assert page.evaluate("document.documentElement.scrollWidth") == 718
            assert page.get_by_role("columnheader", name="Speed-up").first.is_visible()
        profile.close()
