"""The heat map of what pruning gains: every ratio can be read, and no page grows with the series."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from device_agent.contracts import DENSE, KernelSpec, KernelTask, Op, PruningScheme, Source, Verdict, WeightPruning
from search.latency.comparison import Figure
from search.latency.profit import profits
from server.context import Context
from server.dashboard.profit import MAX_COLUMNS, Columns, heat_rows
from server.latency import profit
from server.latency.figures import due_series
from server.latency.profit import KernelProfit, SeriesFigures, kernel_profit, refresh_profit
from server.models import ProfitRow
from server.searches.repository import EXCLUDED_CHOICES, put_document
from tests.unit.server.dashboard import seed
from tests.unit.server.dashboard.test_dashboard_pages import text_of
from tests.unit.server.dashboard.test_dashboard_series import series_of

SPEED_UPS = {0.1: 3.0, 0.2: 1.5, 0.4: 1.1, 0.5: 1.005, 0.6: 0.9, 0.8: 0.6, 0.9: 0.4}


def dense(channels: int) -> KernelSpec:
    return KernelSpec(op=Op.CONV2D, in_channels=channels, out_channels=16, input_h=8, input_w=8)


def group(density: float) -> WeightPruning:
    return WeightPruning(scheme=PruningScheme.GROUP, density=density, block_filters=4)


def profit_of(kernel: KernelSpec, median: float, dense_ns: float, *, is_noisy: bool = False) -> KernelProfit:
    """As the map has it, with intervals of 1 % to each side of both medians."""
    figures = {kernel: Figure(median=median, ci95=(0.99 * median, 1.01 * median))}
    figures[replace(kernel, pruning=DENSE)] = Figure(median=dense_ns, ci95=(0.99 * dense_ns, 1.01 * dense_ns))
    (item,) = profits(figures)
    noisy = frozenset({kernel}) if is_noisy else frozenset()
    return kernel_profit(item, SeriesFigures(figures=figures, noisy=noisy, ambiguous=0))


def columns_of(kernels: list[KernelProfit]) -> Columns:
    return Columns.of(sorted({item.kernel.pruning.density for item in kernels}))


def test_colours_follow_the_ratio_and_noise_has_none() -> None:
    found = [
        profit_of(replace(dense(8), pruning=group(d)), 900.0 / s, 900.0, is_noisy=d == 0.2)
        for d, s in SPEED_UPS.items()
    ]
    columns = columns_of(found)
    (row,) = heat_rows(found, columns)
    assert columns.labels == ("10 %", "20 %", "40 %", "50 %", "60 %", "80 %", "90 %")
    cells = [cell for cell in row.cells if cell is not None]
    assert [cell.speed_up for cell in cells] == pytest.approx(list(SPEED_UPS.values()))
    assert [cell.level for cell in cells] == ["up3", "up2", "up1", "open", "down1", "down2", "down3"]
    assert [cell.is_noisy for cell in cells] == [False, True, *[False] * 5]
    assert (row.shape, row.dense_ns) == ("conv 1×1, 8 → 16 channels, 8×8", 900.0)


def test_many_densities_are_put_together_by_tenths() -> None:
    densities = [0.05 + 0.01 * i for i in range(MAX_COLUMNS + 8)]
    found = [profit_of(replace(dense(8), pruning=group(d)), 100.0 * d, 100.0) for d in densities]
    found.append(profit_of(replace(dense(32), pruning=group(0.051)), 50.0, 100.0))
    columns = columns_of(found)
    assert columns.labels == ("0 to 10 %", "10 to 20 %", "20 to 30 %")
    first, second = heat_rows(found, columns)
    assert [cell.num_kernels for cell in first.cells if cell is not None] == [5, 10, 5]
    assert first.cells[0] is not None
    # The geometric mean of 1 / 0.05 to 1 / 0.09.
    assert first.cells[0].speed_up == pytest.approx((0.05 * 0.06 * 0.07 * 0.08 * 0.09) ** -0.2)
    assert first.cells[0].ci95 is None
    assert [cell is None for cell in second.cells] == [False, True, True]


def test_the_page_is_a_table_by_scheme_and_in_parts(
    local: TestClient, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profit, "SHAPES_PER_PART", 5)
    device = seed.enrol(context, "board", seed.profile("Cortex-A55", 4))
    claim = seed.submit(context, "profit", device)
    shapes = [dense(channels) for channels in range(4, 11)]
    kernels = [*shapes, *(replace(shape, pruning=group(0.25)) for shape in shapes)]
    kernels += [replace(shapes[0], pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.1))]
    alone = replace(dense(999), pruning=group(0.5))
    tasks = tuple(KernelTask(kernel=kernel, setup=seed.SETUP) for kernel in (*kernels, alone))
    seed.measure(context, claim, tasks, source=Source.MEASURED, judge=lambda _: (Verdict.TRUSTED, ()))
    (series,) = series_of(context, device)
    assert f'href="/series/{series}/profit"' in local.get(f"/series/{series}").text

    first = local.get(f"/series/{series}/profit").text
    assert len(re.findall(r'<th scope="row">', first)) == 5
    text = text_of(first)
    assert "Page 1 of 2, 7 shapes" in text
    assert "group 4×1 7 unstructured 1" in text
    assert "1 without a dense kernel, 0 in several modes" in text
    # As `measure` has it: 2000 ns and 0.12 ns for each multiply-accumulate.
    macs = shapes[0].macs
    assert f"{(2000 + 0.12 * macs) / (2000 + 0.03 * macs):.2f}×" in text
    (link,) = re.findall(r'rel="next" href="([^"]+)"', first)
    second = local.get(link.replace("&amp;", "&")).text
    assert len(re.findall(r'<th scope="row">', second)) == 2
    # A number beyond the last page is the last page.
    assert "Page 2 of 2" in text_of(local.get(f"/series/{series}/profit?page=99").text)
    other = local.get(f"/series/{series}/profit?scheme=unstructured").text
    assert len(re.findall(r'<th scope="row">', other)) == 1
    assert "10 %" in text_of(other)
    assert local.get(f"/series/{series}/profit?scheme=pattern:4x1/4").status_code == 404
    assert local.get("/series/s_unknown/profit").status_code == 404

    # The same of a series that is too large to work out with the page: a worker makes the map, and pages read it.
    whole = [local.get(f"/series/{series}/profit?page={n}").text for n in (1, 2)]
    monkeypatch.setattr(profit, "MEASUREMENTS_AT_ONCE", 3)
    assert "a worker makes it when it has no search" in text_of(local.get(f"/series/{series}/profit").text)
    while refresh_profit(context.database, quiet_s=0.0) is not None:
        pass
    stored = [local.get(f"/series/{series}/profit?page={n}").text for n in (1, 2)]
    for now, before in zip(stored, whole, strict=True):
        assert re.findall(r"<t[hd].*", now) == re.findall(r"<t[hd].*", before)
        assert "Worked out" in text_of(now)
    assert "the series has grown since" not in text_of(stored[0])
    more = KernelTask(kernel=replace(shapes[0], pruning=group(0.5)), setup=seed.SETUP)
    seed.measure(context, claim, (more,), source=Source.MEASURED, judge=lambda _: (Verdict.TRUSTED, ()))
    assert "the series has grown since" in text_of(local.get(f"/series/{series}/profit").text)
    with context.database.read() as session:
        assert due_series(session, ProfitRow, quiet_s=0.0) is not None


def test_a_series_without_pairs_says_so(local: TestClient, context: Context, seeded: seed.Seeded) -> None:
    (series, *_) = series_of(context, seeded.device_id)
    text = text_of(local.get(f"/series/{series}/profit").text)
    assert "Nothing to compare yet" in text
    assert "Faster than dense 0" in text


def test_the_page_of_a_search_says_what_it_leaves_out(local: TestClient, context: Context, seeded: seed.Seeded) -> None:
    address = f"/searches/{seeded.running.search_id}"
    assert "Not tried" not in text_of(local.get(address).text)
    with context.database.write() as session:
        put_document(session, seeded.running, EXCLUDED_CHOICES, json.dumps({"pruned": 684, "excluded": 114}))
    assert "Not tried 114 of 684 prunings of layers: a denser one" in text_of(local.get(address).text)
