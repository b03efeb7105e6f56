"""The heat map of what pruning gains: every ratio can be read, and no page grows with the series."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from device_agent.contracts import KernelSpec, KernelTask, Op, PruningScheme, Source, Verdict, WeightPruning
from search.latency.comparison import Figure
from search.latency.profit import profits
from server.context import Context
from server.dashboard import profit
from server.dashboard.profit import MAX_COLUMNS, heat_map
from server.latency.profit import SeriesFigures
from server.searches.repository import EXCLUDED_CHOICES, put_document
from tests.unit.server.dashboard import seed
from tests.unit.server.dashboard.test_dashboard_pages import text_of
from tests.unit.server.dashboard.test_dashboard_series import series_of

SPEED_UPS = {0.1: 3.0, 0.2: 1.5, 0.4: 1.1, 0.5: 1.005, 0.6: 0.9, 0.8: 0.6, 0.9: 0.4}


def dense(channels: int) -> KernelSpec:
    return KernelSpec(op=Op.CONV2D, in_channels=channels, out_channels=16, input_h=8, input_w=8)


def group(density: float) -> WeightPruning:
    return WeightPruning(scheme=PruningScheme.GROUP, density=density, block_filters=4)


def figures_of(medians: dict[KernelSpec, float], noisy: frozenset[KernelSpec] = frozenset()) -> SeriesFigures:
    figures = {kernel: Figure(median=m, ci95=(0.99 * m, 1.01 * m)) for kernel, m in medians.items()}
    return SeriesFigures(figures=figures, noisy=noisy, ambiguous=0)


def test_colours_follow_the_ratio_and_noise_has_none() -> None:
    medians = {dense(8): 900.0} | {replace(dense(8), pruning=group(d)): 900.0 / s for d, s in SPEED_UPS.items()}
    found = figures_of(medians, noisy=frozenset({replace(dense(8), pruning=group(0.2))}))
    heat = heat_map(profits(found.figures))
    (row,) = heat.rows(found, 0, 10)
    assert heat.columns == ("10 %", "20 %", "40 %", "50 %", "60 %", "80 %", "90 %")
    cells = [cell for cell in row.cells if cell is not None]
    assert [cell.speed_up for cell in cells] == pytest.approx(list(SPEED_UPS.values()))
    assert [cell.level for cell in cells] == ["up3", "up2", "up1", "open", "down1", "down2", "down3"]
    assert [cell.is_noisy for cell in cells] == [False, True, *[False] * 5]
    assert (row.shape, row.dense_ns) == ("conv 1×1, 8 → 16 channels, 8×8", 900.0)


def test_many_densities_are_put_together_by_tenths() -> None:
    densities = [0.05 + 0.01 * i for i in range(MAX_COLUMNS + 8)]
    medians = {dense(8): 100.0} | {replace(dense(8), pruning=group(d)): 100.0 * d for d in densities}
    medians |= {dense(32): 100.0, replace(dense(32), pruning=group(0.051)): 50.0}
    found = figures_of(medians)
    heat = heat_map(profits(found.figures))
    assert heat.columns == ("0 to 10 %", "10 to 20 %", "20 to 30 %")
    first, second = heat.rows(found, 0, 10)
    assert heat.rows(found, 1, 10) == (second,)
    assert [cell.num_kernels for cell in first.cells if cell is not None] == [5, 10, 5]
    assert first.cells[0] is not None
    # The geometric mean of 1 / 0.05 to 1 / 0.09.
    assert first.cells[0].speed_up == pytest.approx((0.05 * 0.06 * 0.07 * 0.08 * 0.09) ** -0.2)
    assert first.cells[0].ci95 is None
    assert [cell is None for cell in second.cells] == [False, True, True]


def test_the_page_is_a_table_by_scheme_and_in_parts(
    local: TestClient, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profit, "SHOWN_SHAPES", 5)
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
