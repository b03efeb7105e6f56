"""The dashboard in a real browser: it draws, it stays live, and it talks to nobody else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from device_agent.contracts import (
    DENSE,
    KernelSpec,
    KernelTask,
    Op,
    PruningScheme,
    Source,
    Verdict,
    WeightPruning,
    dumps,
)
from server.accounts.service import Scope, mint_user_token
from server.latency.card import refresh_card
from server.searches import repository
from server.searches.repository import FRONT_LAYERS, CandidateRecord, SearchEvent
from server.states import JobStage
from tests.browser.conftest import Site
from tests.unit.server.cli.test_report import layer
from tests.unit.server.dashboard import seed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.xdist_group("browser")

#: Ends a test that would hang; nothing is asserted about how long things take.
TIMEOUT_MS = 60_000

Serve = Callable[..., Site]


@contextmanager
def page_of(browser: Browser, site: Site, **options: Any) -> Iterator[Page]:
    """A page in a browser profile of its own. At the end: no error on the console, no request to another origin."""
    profile = browser.new_context(base_url=site.url, **options)
    profile.set_default_timeout(TIMEOUT_MS)
    page = profile.new_page()
    errors: list[str] = []
    foreign: list[str] = []
    own = urlsplit(site.url).netloc
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda r: None if urlsplit(r.url).netloc in (own, "") else foreign.append(r.url))
    try:
        yield page
        assert errors == []
        assert foreign == []
    finally:
        profile.close()


def wait_live(page: Page) -> None:
    page.wait_for_selector('#live[data-live="live"]')


def test_overview_is_live(chromium: Browser, serve: Serve) -> None:
    site = serve()
    with page_of(chromium, site) as page:
        page.goto("/")
        page.get_by_text("No device yet").wait_for()
        wait_live(page)
        page.evaluate("window.sameDocument = true")
        seeded = seed.seed(site.context)
        page.get_by_role("link", name="pi5-lab").first.wait_for()
        page.get_by_role("link", name=seed.HOSTILE).wait_for()
        page.get_by_text("Training: 5 of 8").wait_for()
        bar = page.get_by_role("progressbar", name="Progress of cifar10-resnet20")
        assert bar.get_attribute("value") == "5"
        seed.advance(site.context, seeded.running, 7, 8, "candidate c_1", JobStage.TRAINING)
        page.get_by_text("Training: 7 of 8, candidate c_1").wait_for()
        assert bar.get_attribute("value") == "7"
        assert page.evaluate("window.sameDocument") is True


def test_search_page_draws_the_front_and_follows_the_search(chromium: Browser, serve: Serve) -> None:
    site = serve()
    claim = seed.seed(site.context).running
    with page_of(chromium, site) as page:
        page.goto(f"/searches/{claim.search_id}")
        page.wait_for_selector('#chart[data-ready="true"] canvas')
        wait_live(page)
        chart = page.locator("#chart")
        assert chart.get_attribute("data-evaluated") == "240"
        assert chart.get_attribute("data-verified") == "0"
        with site.context.database.read() as session:
            chosen = repository.load_candidates(session, claim.search_id, selected=True)
        rows = page.get_by_role("table", name="Selected candidates").get_by_role("row")
        assert rows.count() == len(chosen) + 1
        page.evaluate("window.sameDocument = true")
        page.get_by_text("The rest of the front").click()

        metrics = {"error": 0.5, "loss": 1.0, "latency_ms": 9.0, "macs": 1e6, "parameters": 1e4}
        record = CandidateRecord(candidate_id="c_new", genome=(1,), metrics=metrics, generation=11)
        with site.context.database.write() as session:
            repository.save_candidates(session, claim, [record])
            repository.set_stage(session, claim, JobStage.VERIFYING)
        first = min(chosen, key=lambda candidate: candidate.metrics["latency_ms"])
        seed.export(site.context, claim, first.candidate_id)
        seed.verify(site.context, claim, first.candidate_id, 2.5, "noisy", "ci_too_wide")
        with site.context.database.write() as session:
            repository.add_events(session, claim, [SearchEvent(kind="message", data={"text": "one verified"})])

        page.get_by_text("one verified").wait_for()
        page.wait_for_selector('#chart[data-ready="true"][data-evaluated="241"][data-verified="1"]')
        row = page.locator(f"#{first.candidate_id}")
        assert "2.50 ms" in row.inner_text()
        assert "the confidence interval is wider than asked" in row.inner_text()
        assert page.locator('[aria-current="step"]').inner_text().startswith("Verifying")
        assert page.evaluate("window.sameDocument") is True
        assert page.locator("details:has(table)").get_attribute("open") is not None
        with page.expect_download() as download:
            row.get_by_role("link", name="network.kerfnet").click()
        assert download.value.suggested_filename == "network.kerfnet"


def test_a_slow_baseline_is_named_at_the_edge_of_the_chart(chromium: Browser, serve: Serve) -> None:
    """Ten times slower than the rest: on the axis it would press all candidates into a tenth of the chart."""
    site = serve()
    claim = seed.seed(site.context).running
    data = {"tflite_dense_ns": 17.9e6, "native_dense_ns": 13.4e6, "ncnn_dense_ns": 151e6}
    with site.context.database.write() as session:
        repository.save_checkpoint(session, claim, stage=JobStage.PROFILING, step=2, data=json.dumps(data))
    with page_of(chromium, site, viewport={"width": 390, "height": 844}) as page:
        page.goto(f"/searches/{claim.search_id}")
        page.wait_for_selector('#chart[data-ready="true"][data-beyond="1"] canvas')
        told = page.evaluate(
            """() => {
                const shown = echarts.getInstanceByDom(document.getElementById("chart")).getOption();
                const edge = shown.series.find((s) => s.name === "unpruned").data.at(-1);
                return [shown.xAxis[0].max, edge.value[0], edge.label.formatter];
            }"""
        )
        assert told == [20, 20, "unpruned, ncnn: 151 ms"]
        tile = page.locator(".tile", has_text="Unpruned, ncnn")
        assert "151 ms" in tile.inner_text()


def test_the_bars_of_layers_begin_at_one_line(chromium: Browser, serve: Serve) -> None:
    """However many digits their times have."""
    site = serve()
    claim = seed.seed(site.context).running
    times = (0.5, 12345.678, 1.0)
    with site.context.database.write() as session:
        chosen = repository.load_candidates(session, claim.search_id, selected=True)[0].candidate_id
        layers = [layer(f"conv{i}", 1.0, time) for i, time in enumerate(times)]
        repository.put_document(session, claim, FRONT_LAYERS, dumps({chosen: layers}))
    for width in (1280, 390):
        with page_of(chromium, site, viewport={"width": width, "height": 844}) as page:
            page.goto(f"/searches/{claim.search_id}/candidates/{chosen}")
            bars = page.locator(".share").all()
            figures = page.locator(".share + span").all()
            starts = {round(bar.bounding_box()["x"], 1) for bar in bars}  # type: ignore[index]
            ends = {round(b["x"] + b["width"], 1) for b in (f.bounding_box() for f in figures) if b}
            assert (len(bars), len(starts), len(ends)) == (3, 1, 1)
            assert "12346 ms" in figures[1].inner_text()


def test_the_chart_appears_with_the_first_generation(chromium: Browser, serve: Serve) -> None:
    site = serve()
    device_id = seed.enrol(site.context, "board", seed.profile("Cortex-A55", 4))
    claim = seed.submit(site.context, "just begun", device_id)
    with page_of(chromium, site) as page:
        page.goto(f"/searches/{claim.search_id}")
        page.wait_for_selector('#chart[data-ready="empty"]', state="hidden")
        page.get_by_text("No candidate yet").wait_for()
        seed.prepare(site.context, claim)
        seed.search(site.context, claim, generations=2)
        page.wait_for_selector('#chart[data-ready="true"][data-evaluated="48"] canvas')
        assert page.locator("#chart canvas").bounding_box()["width"] > 300  # type: ignore[index]
        page.get_by_text("2 of 2, 48 candidates").wait_for()


def test_an_open_page_survives_a_restart_of_the_server(chromium: Browser, serve: Serve) -> None:
    site = serve()
    claim = seed.seed(site.context).running
    profile = chromium.new_context(base_url=site.url)
    profile.set_default_timeout(TIMEOUT_MS)
    page = profile.new_page()
    page.goto(f"/searches/{claim.search_id}")
    wait_live(page)
    page.evaluate("window.sameDocument = true")
    site.stop()
    page.wait_for_selector('#live[data-live="lost"]')
    again = serve(port=site.port)
    seed.advance(again.context, claim, 8, 8, "after the restart", JobStage.TRAINING)
    page.get_by_text("8 of 8, after the restart").wait_for()
    wait_live(page)
    assert page.evaluate("window.sameDocument") is True
    profile.close()


def test_a_finished_search_is_final(chromium: Browser, serve: Serve) -> None:
    site = serve()
    seeded = seed.seed(site.context)
    with page_of(chromium, site) as page:
        page.goto(f"/searches/{seeded.completed_id}")
        page.wait_for_selector('#live[data-live="ended"]')
        page.wait_for_selector('#chart[data-ready="true"][data-verified="8"]')


def test_pages_fit_a_phone_in_both_schemes(chromium: Browser, serve: Serve) -> None:
    site = serve()
    seeded = seed.seed(site.context)
    for scheme in ("light", "dark"):
        with page_of(chromium, site, viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
            for path in ("/", f"/searches/{seeded.completed_id}", f"/devices/{seeded.device_id}", "/login"):
                page.goto(path)
                if "search" in path:
                    page.wait_for_selector('#chart[data-ready="true"]')
                assert page.evaluate("document.documentElement.scrollWidth") == 360, (path, scheme)


def test_the_keyboard_reaches_the_content_first(chromium: Browser, serve: Serve) -> None:
    site = serve()
    with page_of(chromium, site) as page:
        page.goto("/")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"


def test_signing_in_and_out(chromium: Browser, serve: Serve) -> None:
    site = serve(open_dashboard=False)
    with site.context.database.write() as session:
        token = mint_user_token(session, site.context.hasher, name="ada", scopes=(Scope.READ,))
    with page_of(chromium, site) as page:
        page.goto("/devices/none")
        page.get_by_role("heading", name="Sign in").wait_for()
        page.goto("/")
        page.get_by_label("User token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", name="Overview").wait_for()
        wait_live(page)
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        page.get_by_role("heading", name="Sign in").wait_for()
        page.goto("/")
        page.get_by_role("heading", name="Sign in").wait_for()


def test_the_card_of_a_series_is_drawn(chromium: Browser, serve: Serve) -> None:
    site = serve()
    seeded = seed.seed(site.context)
    while refresh_card(site.context.database, quiet_s=0.0) is not None:
        pass
    with page_of(chromium, site) as page:
        page.goto(f"/devices/{seeded.device_id}")
        page.get_by_role("table").filter(has_text="Measured on").get_by_role("link").first.click()
        page.wait_for_url("**/series/s_*")
        page.get_by_role("heading", name="How far predictions can be trusted").wait_for()
        assert page.get_by_role("table", name="Errors of predictions").get_by_role("row").count() >= 2
        picture = page.locator("svg.card-scatter")
        assert picture.bounding_box()["width"] > 200  # type: ignore[index]
        assert picture.locator("circle").count() >= 5


def test_the_heat_map_needs_no_scripts_and_fits_a_phone(chromium: Browser, serve: Serve) -> None:
    site = serve()
    device = seed.enrol(site.context, "board", seed.profile("Cortex-A55", 4))
    claim = seed.submit(site.context, "profit", device)
    shape = KernelSpec(op=Op.CONV2D, in_channels=64, out_channels=64, input_h=16, input_w=16)
    prunings = [WeightPruning(scheme=PruningScheme.GROUP, density=d, block_filters=4) for d in (0.1, 0.3, 0.5, 0.9)]
    tasks = [KernelTask(kernel=replace(shape, pruning=p), setup=seed.SETUP) for p in (DENSE, *prunings)]
    seed.measure(site.context, claim, tuple(tasks), source=Source.MEASURED, judge=lambda _: (Verdict.TRUSTED, ()))
    for scheme in ("light", "dark"):
        options = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme, "java_script_enabled": False}
        with page_of(chromium, site, **options) as page:
            page.goto(f"/devices/{device}")
            page.get_by_role("table").filter(has_text="Measured on").get_by_role("link").first.click()
            page.get_by_role("link", name="What pruning gains").click()
            table = page.get_by_role("table", name="Times faster than dense")
            cells = table.get_by_role("row").nth(1).get_by_role("cell")
            told = [cell.inner_text().split("\n")[0] for cell in cells.all()[1:]]
            speeds = [float(text.removesuffix("×")) for text in told]
            assert speeds == sorted(speeds, reverse=True)
            colours = [cell.evaluate("c => getComputedStyle(c).backgroundColor") for cell in cells.all()[1:]]
            assert len(set(colours)) == 3, "twice and more is one colour"
            # The table is wider than the phone, the page is not; the keyboard reaches the table.
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            region = page.get_by_role("region", name="Heat map")
            assert region.evaluate("r => r.scrollWidth > r.clientWidth")
            assert region.get_attribute("tabindex") == "0"
