"""The published Cortex-A72 table, imported as a user would: does the model say what the authors say?

The table goes through the import into a database of its own, and comes back through the export. Models are fitted on
175 cells a layer: 5 output widths x 5 input widths x 7 densities (of the stem, whose input does not vary, 35). They are
judged on all others, against each published cell. Layers of one shape are one kernel with several measurements: knots
are their mean. The knots, below, are denser where latencies bend, at small widths and densities.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.search.a72 import shared_data
from device_agent.contracts import KernelSpec, Op, PruningScheme, Source, WeightPruning, decode
from search.latency.card import summarise_errors
from search.latency.interpolation import TrilinearBaseline
from search.latency.predictor import LatencyPredictor
from search.latency.table import KernelLatency, LatencyTable
from server.artifacts.store import ArtifactStore
from server.database import Database, upgrade
from server.latency.exchange.export import exported
from server.latency.exchange.mapping import ImportMapping
from server.latency.exchange.service import LatencyImport, import_file
from server.latency.exchange.tables import TableFormat
from server.latency.listing import LatencyFilter
from server.settings import Settings

TABLE = "jcw-resnet18-latency-ms.npy"
CONVOLUTIONS = "jcw-resnet18-convs.txt"
MAPPING = Path(__file__).parents[2] / "examples" / "latency" / "jcw-resnet18-a72.yaml"

#: The knots: eighths of the channels, tenths of the weights.
KNOT_EIGHTHS = (1, 2, 4, 6, 8)
KNOT_TENTHS = (1, 2, 3, 4, 6, 8, 10)

_NS_PER_MS = 1e6

Cell = tuple[KernelSpec, float]


def imported_a72(folder: Path | None = None) -> dict[str, Any]:
    """The part `imported_a72` of the benchmark, from the data in `folder`. Raises `FileNotFoundError` without them."""
    folder = shared_data() if folder is None else folder
    started = time.perf_counter()
    layers = dense_layers(folder)
    figures = judged(imported_cells(folder / TABLE), layers)
    return {**figures, "seconds": time.perf_counter() - started}


def judged(cells: Sequence[Cell], layers: list[KernelSpec]) -> dict[str, Any]:
    """The figures of models fitted on the knots among `cells`; `layers` are the dense ones of the network, in order."""
    measured: dict[KernelSpec, list[float]] = defaultdict(list)
    for kernel, latency_ns in cells:
        measured[kernel].append(latency_ns)
    knots = {kernel: statistics.fmean(values) for kernel, values in measured.items() if _is_knot(kernel, layers)}
    entries = tuple(KernelLatency(kernel=kernel, latency_ns=value) for kernel, value in knots.items())
    predictor = LatencyPredictor(
        LatencyTable(
            device_id="jcw-a72",
            setup_id="published",
            runtime="jcw",
            runtime_version="2021-10-18",
            source=Source.IMPORTED,
            kernels=entries,
        )
    )
    baseline = TrilinearBaseline(entries)
    held_out = [(kernel, value) for kernel, value in cells if kernel not in knots]
    truth = [value for _, value in held_out]
    model = summarise_errors(truth, [predictor.predict(kernel).latency_ns for kernel, _ in held_out])
    trilinear = summarise_errors(truth, [baseline.predict_ns(kernel) for kernel, _ in held_out])
    return {
        "dense_network_ms": sum(predictor.predict(kernel).latency_ns for kernel in layers) / _NS_PER_MS,
        "published_dense_network_ms": 397.1,
        "held_out_median_error": model.median,
        "held_out_p95_error": model.p95,
        "held_out_within_5_percent": model.within_5_percent,
        "held_out_within_10_percent": model.within_10_percent,
        "held_out_spearman": model.spearman,
        "jcw_trilinear": {
            "dense_network_ms": sum(baseline.predict_ns(kernel) for kernel in layers) / _NS_PER_MS,
            "held_out_median_error": trilinear.median,
            "held_out_p95_error": trilinear.p95,
        },
        "cells": len(cells),
        "cells_per_layer": len(KNOT_EIGHTHS) ** 2 * len(KNOT_TENTHS),
        "held_out_cells": len(held_out),
    }


def imported_cells(table: Path) -> list[Cell]:
    """Every imported cell: its kernel and latency in ns, from the export of a fresh database."""
    with tempfile.TemporaryDirectory() as name:
        settings = Settings(data_dir=Path(name))
        upgrade(settings)
        database, store = Database.from_settings(settings), ArtifactStore(settings.artifacts_dir)
        try:
            data = table.read_bytes()
            store.put_bytes(database, data, created_by="bench")
            request = LatencyImport(
                device="jcw-a72",
                file_name=table.name,
                file_sha256=hashlib.sha256(data).hexdigest(),
                mapping=decode(ImportMapping, yaml.safe_load(MAPPING.read_text(encoding="utf-8"))),
            )
            answer = import_file(database, store, request, created_by="bench", owner=None)
            (series,) = answer.series_ids
            text = b"".join(exported(database, LatencyFilter(series_id=series), TableFormat.JSON))
        finally:
            database.dispose()
    return [(_exported_kernel(row), float(row["median_ns"])) for row in json.loads(text)]


def _exported_kernel(row: dict[str, Any]) -> KernelSpec:
    pruning = ("scheme", "density", "block_filters", "block_channels", "pattern_entries")
    names = set(KernelSpec.__dataclass_fields__) - {"pruning"}
    values = {name: row[name] for name in names}
    return decode(KernelSpec, {**values, "pruning": {name: row[name] for name in pruning}})


def dense_layers(folder: Path) -> list[KernelSpec]:
    """The convolutions of the dense network, in order, from the data in `folder`."""
    return [dense_layer(line.split()) for line in (folder / CONVOLUTIONS).read_text().splitlines()]


def dense_layer(line: list[str]) -> KernelSpec:
    """A dense layer of the network: input channels, extent, output channels, kernel, stride."""
    in_channels, extent, out_channels, size, stride = map(int, line[:5])
    return KernelSpec(
        op=Op.CONV2D,
        in_channels=in_channels,
        out_channels=out_channels,
        input_h=extent,
        input_w=extent,
        kernel_h=size,
        kernel_w=size,
        stride=stride,
        padding=size // 2,
        pruning=WeightPruning(scheme=PruningScheme.GROUP, density=1.0, block_filters=4),
    )


def _is_knot(kernel: KernelSpec, layers: list[KernelSpec]) -> bool:
    shape = ("input_h", "kernel_h", "stride")
    full = [
        (layer.in_channels, layer.out_channels)
        for layer in layers
        if all(getattr(layer, name) == getattr(kernel, name) for name in shape)
    ]
    in_full, out_full = full[0]
    is_stem = in_full % 8 != 0
    return (
        (is_stem or 8 * kernel.in_channels // in_full in KNOT_EIGHTHS)
        and 8 * kernel.out_channels // out_full in KNOT_EIGHTHS
        and any(math.isclose(kernel.pruning.density, tenths / 10) for tenths in KNOT_TENTHS)
    )
