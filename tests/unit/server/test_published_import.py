"""The published Cortex-A72 table through its mapping file: the authors' figure, and what lies between 175 cells."""

from __future__ import annotations

import pytest
import yaml

from bench.latency.imported_a72 import MAPPING, dense_layer, judged
from device_agent.contracts import decode
from server.latency.exchange.mapping import ImportMapping
from server.latency.exchange.parsing import parse_file
from tests.shared_data import shared_data


def test_the_authors_figure_comes_back() -> None:
    table, rows = shared_data("jcw-resnet18-latency-ms.npy"), shared_data("jcw-resnet18-convs.txt")
    mapping = decode(ImportMapping, yaml.safe_load(MAPPING.read_text(encoding="utf-8")))
    parsed = parse_file(table.read_bytes(), table.name, mapping)
    assert (len(parsed.latencies), parsed.missing) == (19 * 8 * 8 * 10 + 8 * 10, 0)
    layers = [dense_layer(line.split()) for line in rows.read_text().splitlines()]
    figures = judged([(item.kernel, item.median_ns) for item in parsed.latencies], layers)
    assert figures["dense_network_ms"] == pytest.approx(397.1, abs=0.05)
    assert figures["held_out_cells"] == 19 * (640 - 175) + 80 - 35
    assert figures["held_out_median_error"] <= 0.01
    assert figures["jcw_trilinear"]["held_out_median_error"] <= 0.01
