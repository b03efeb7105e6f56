"""The latency database by filters, the curves of a kernel, and how the database finds them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from device_agent.contracts import (
    DENSE,
    KernelSpec,
    KernelTask,
    Op,
    PruningScheme,
    Source,
    Verdict,
    VerdictReason,
    WeightPruning,
    kernel_id,
)
from server.context import Context
from server.dashboard.explorer import SHOWN_ROWS
from server.dashboard.lines import Value, line_picture, round_ticks
from server.dashboard.queries import latest_measurements_query
from server.latency import listing
from server.latency.listing import LatencyFilter, listing_query
from server.latency.neighbours import Varied, by_scheme, neighbours, neighbours_query
from tests.unit.server.dashboard import seed
from tests.unit.server.dashboard.test_dashboard_pages import tags_of, text_of
from tests.unit.server.plans import plan

SHAPE = KernelSpec(
    op=Op.CONV2D, in_channels=64, out_channels=64, input_h=16, input_w=16, kernel_h=3, kernel_w=3, padding=1
)
GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.2, block_filters=4)
DENSITIES = (0.1, 0.2, 0.5)


def lab_kernels() -> list[KernelSpec]:
    """A dense kernel, three densities in two schemes, three widths, and more than a page of fully connected ones."""
    other = WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.2)
    found = [SHAPE]
    found += [replace(SHAPE, pruning=replace(p, density=d)) for p in (GROUP, other) for d in DENSITIES]
    found += [replace(SHAPE, out_channels=c) for c in (16, 32, 48)]
    found += [KernelSpec(op=Op.FULLY_CONNECTED, in_channels=64, out_channels=n + 1) for n in range(SHOWN_ROWS + 5)]
    return found


@pytest.fixture(scope="module")
def series_id(context: Context) -> str:
    """The series of a board on which all of them were timed; one was noisy."""
    device = seed.enrol(context, "explored", seed.profile("Cortex-A55", 4))
    claim = seed.submit(context, "explored", device)
    tasks = tuple(KernelTask(kernel=kernel, setup=seed.SETUP) for kernel in lab_kernels())

    def judge(place: int) -> tuple[Verdict, tuple[VerdictReason, ...]]:
        return (Verdict.NOISY, (VerdictReason.CI_TOO_WIDE,)) if place == 0 else (Verdict.TRUSTED, ())

    seed.measure(context, claim, tasks, source=Source.MEASURED, judge=judge)
    with context.database.read() as session:
        return str(
            session.execute(text("SELECT id FROM latency_series WHERE device_id = :d"), {"d": device}).scalar_one()
        )


def listed(page: str) -> list[str]:
    """The kernels of the page's table."""
    return re.findall(r'href="/series/[^"]*/kernels/([^"]*)"', page)


def test_pages_of_the_list_hold_every_kernel_once(local: TestClient, series_id: str) -> None:
    address: str | None = f"/explorer?series={series_id}"
    found: list[str] = []
    while address is not None:
        page = local.get(address).text
        found += listed(page)
        following = [tag["href"] for name, tag in tags_of(page) if tag.get("rel") == "next"]
        address = following[0] if following else None
    assert sorted(found) == sorted(kernel_id(kernel) for kernel in lab_kernels())


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("op=fully_connected&out_channels=7", lambda k: k.op is Op.FULLY_CONNECTED and k.out_channels == 7),
        ("scheme=group", lambda k: k.pruning.scheme is PruningScheme.GROUP),
        (
            "scheme=unstructured&max_density=0.2",
            lambda k: "unstructured" in k.pruning.scheme and k.pruning.density <= 0.2,
        ),
        ("op=conv2d&out_channels=32&in_channels=64", lambda k: k.out_channels == 32 and k.op is Op.CONV2D),
        ("op=conv2d&min_density=0.9&kernel_h=3&input_h=16", lambda k: k.op is Op.CONV2D and k.pruning == DENSE),
        ("op=max_pool", lambda _: False),
    ],
)
def test_filters_filter(local: TestClient, series_id: str, query: str, fits: object) -> None:
    page = local.get(f"/explorer?series={series_id}&{query}").text
    wanted = [kernel_id(kernel) for kernel in lab_kernels() if fits(kernel)]  # type: ignore[operator]
    assert sorted(listed(page)) == sorted(wanted)
    assert ("No kernel fits" in page) == (not wanted)


def test_a_part_looks_through_so_many_and_says_so(
    local: TestClient, context: Context, series_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no few kernels to look up, and ten looked at: each part tells where to go on, and nothing is lost."""
    monkeypatch.setattr(listing, "FEW_KERNELS", -1)
    monkeypatch.setattr(listing, "LOOKED_THROUGH", 10)
    monkeypatch.setattr(listing, "_SERIES_COST", 1)
    wanted = LatencyFilter(series_id=series_id, scheme="group")
    place, parts, found = None, 0, []
    with context.database.read() as session:
        while parts == 0 or place is not None:
            part = listing.list_latencies(session, wanted, after=place, limit=4)
            found += [row.kernel_id for row, *_ in part.rows]
            parts, place = parts + 1, part.following
    assert parts >= len(lab_kernels()) // 10
    assert found == sorted(kernel_id(k) for k in lab_kernels() if k.pruning.scheme is PruningScheme.GROUP)
    page = local.get(f"/explorer?series={series_id}&op=max_pool").text
    assert "do not fit; the series has more" in text_of(page)
    assert "Look further" in page


def test_verdict_and_device_filter_and_keep_what_was_chosen(local: TestClient, series_id: str) -> None:
    page = local.get(f"/explorer?device=explored&verdict=noisy&series={series_id}").text
    assert len(listed(page)) == 1
    chosen = [tag for name, tag in tags_of(page) if name == "option" and "selected" in tag]
    assert {"noisy", ""} <= {tag["value"] for tag in chosen}
    assert 'href="/explorer/latencies.csv?device=device_' in page


def test_empty_fields_of_the_form_are_no_filters(local: TestClient, series_id: str) -> None:
    answer = local.get(f"/explorer?series={series_id}&op=&in_channels=&min_density=", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/explorer?series={series_id}"


def test_the_download_is_that_of_rest(local: TestClient, series_id: str) -> None:
    answer = local.get(f"/explorer/latencies.csv?series={series_id}&scheme=group")
    assert answer.headers["content-disposition"] == 'attachment; filename="latencies.csv"'
    header, *rows = answer.text.splitlines()
    assert "density" in header.split(",")
    assert len(rows) == len(DENSITIES)


def test_without_a_series_the_latest_is_shown_and_nothing_is_mixed(local: TestClient, series_id: str) -> None:
    page = local.get("/explorer?device=explored").text
    assert series_id in page
    assert {tag["href"].split("/")[2] for _, tag in tags_of(page) if "/kernels/" in tag.get("href", "")} == {series_id}


def test_unknown_things_are_not_found(local: TestClient, series_id: str) -> None:
    for path in ("/explorer?device=nobody", "/explorer?series=s_none", f"/series/{series_id}/kernels/k_none"):
        assert local.get(path).status_code == 404


def test_an_empty_database_says_what_to_do(empty: TestClient) -> None:
    assert "Nothing measured yet" in empty.get("/explorer").text


def test_a_kernel_has_curves_over_density_and_channels(local: TestClient, series_id: str) -> None:
    page = local.get(f"/series/{series_id}/kernels/{kernel_id(SHAPE)}").text
    words = text_of(page)
    assert "Over density" in words
    assert "Over output channels" in words
    assert "Over input channels" not in words, "nothing else varies the input"
    assert words.count("group:4x1") >= 4, "a line of the legend, and its three densities"
    assert "the confidence interval is wider than asked" in words
    circles = [tag for name, tag in tags_of(page) if name == "circle"]
    # Two schemes with the dense kernel as the end of each, and four widths.
    assert len(circles) == 2 * (len(DENSITIES) + 1) + 4


def test_neighbours_differ_in_nothing_else(context: Context, series_id: str) -> None:
    with context.database.read() as session:
        kernel = replace(SHAPE, pruning=GROUP)
        curves = by_scheme(neighbours(session, series_id, kernel, Varied.DENSITY))
        assert {name: len(found) for name, found in curves.items()} == {"group:4x1": 4, "unstructured": 4}
        alone = neighbours(session, series_id, kernel, Varied.OUT_CHANNELS)
        assert [item.kernel for item in alone] == [kernel], "the wider ones are dense"
        widths = neighbours(session, series_id, SHAPE, Varied.OUT_CHANNELS)
        assert sorted(item.kernel.out_channels for item in widths) == [16, 32, 48, 64]


def test_every_query_goes_by_an_index_and_sorts_nothing(context: Context, series_id: str) -> None:
    wanted = LatencyFilter(op="conv2d", scheme="group", verdict=Verdict.TRUSTED)
    place, end = (series_id, "k_0", "dense"), (series_id, "k_f", "dense")
    with context.database.read() as session:
        plans = {
            "list": plan(session, listing_query(wanted, series_id, limit=51)),
            "next part": plan(session, listing_query(wanted, series_id, after=place, limit=51)),
            "bounded": plan(session, listing_query(wanted, series_id, until=end, limit=51)),
            "few": plan(session, listing_query(wanted, series_id, kernel_ids=["k_1", "k_2"], limit=51)),
            "curve": plan(session, neighbours_query(series_id, SHAPE, Varied.DENSITY)),
            "width": plan(session, neighbours_query(series_id, SHAPE, Varied.OUT_CHANNELS)),
            "kernel": plan(session, latest_measurements_query(limit=15, series_id=series_id, kernel_id="k_1")),
            "device": plan(session, latest_measurements_query(limit=30, device_id="device_1")),
            "latest": plan(session, latest_measurements_query(limit=30)),
        }
    for name, found in plans.items():
        assert "TEMP B-TREE" not in found, (name, found)
        if name != "latest":  # the first of all rows, in the order of the primary key
            assert not re.search(r"^SCAN", found, re.MULTILINE), (name, found)
    assert "series_id=? AND kernel_id>?" in plans["next part"]
    assert "series_id=? AND kernel_id<?" in plans["bounded"]
    assert "series_id=? AND kernel_id=?" in plans["few"]
    assert "ix_kernel_shape (op=? AND kernel_h=? AND stride=? AND input_h=? AND in_channels=?" in plans["curve"]
    assert "(series_id=? AND kernel_id=?)" in plans["curve"]
    assert "ix_kernel_shape (op=? AND kernel_h=? AND stride=? AND input_h=? AND in_channels=?" in plans["width"]
    assert "ix_measurement_device_latest (device_id=?)" in plans["device"]
    assert "ix_measurement_kernel_latest (kernel_id=? AND series_id=?)" in plans["kernel"]


@pytest.mark.parametrize(
    ("largest", "last", "count"), [(0.0, 1.0, 2), (1.0, 1.0, 6), (7.3, 8.0, 5), (64, 80, 5), (2.4e6, 2.5e6, 6)]
)
def test_ticks_are_round_and_few(largest: float, last: float, count: int) -> None:
    ticks = round_ticks(largest)
    assert ticks[0] == 0.0
    assert ticks[-1] == last
    assert len(ticks) == count


def test_a_band_needs_an_interval_of_every_point() -> None:
    whole = [Value(x=1, y=2, interval=(1.5, 2.5)), Value(x=0, y=1, interval=(0.5, 1.5))]
    picture = line_picture(
        [("whole", whole), ("part", [whole[0], Value(x=2, y=2)])], x_title="x", y_title="y", x_label=str, y_label=str
    )
    assert picture is not None
    first, second = picture.lines
    assert first.band.count("L") == 3
    assert [point.x for point in first.points] == sorted(point.x for point in first.points)
    assert second.band == ""
    assert line_picture([("none", [])], x_title="x", y_title="y", x_label=str, y_label=str) is None
