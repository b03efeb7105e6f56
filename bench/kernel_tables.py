"""The figures file of `bench.kernels` as the tables of docs/benchmarks.md.

python -m bench.kernel_tables bench/results/kernels.json
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.layers import zoo_layers

_GROUP, _UNSTRUCTURED, _PATTERN, _DENSE = "group", "unstructured", "pattern", "dense"
_MIB = 1 << 20

_Row = Mapping[str, Any]
#: What a run left out has no figures.
_ABSENT: _Row = defaultdict(lambda: None)


def main() -> None:
    """Print the tables of the file that is named on the command line."""
    result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print("\n".join(document(result)))


def document(result: Mapping[str, Any]) -> Iterator[str]:
    """All tables as lines of Markdown."""
    by_layer: dict[str, defaultdict[tuple[str, float], _Row]] = {}
    for row in result["layers"]:
        by_layer.setdefault(row["layer"], defaultdict(lambda: _ABSENT))[row["scheme"], round(row["density"], 3)] = row
    of_resnets = {layer.name for layer in zoo_layers(("resnet18", "resnet56"))}
    pruned = {name: rows for name, rows in by_layer.items() if any(scheme == _GROUP for scheme, _ in rows)}
    of_mobile = {name: rows for name, rows in pruned.items() if name not in of_resnets}
    of_resnet = {name: rows for name, rows in pruned.items() if name in of_resnets}
    sections: list[tuple[str, Iterable[str]]] = [
        ("### Layers of ResNet-18 at 224x224 and ResNet-56 at 32x32: groups of 4", _group_table(of_resnet)),
        ("Single weights, and patterns of 4 entries that 4 neighbours share:", _single_table(of_resnet)),
        ("### 1x1 convolutions of the MobileNets: groups of 4", _group_table(of_mobile)),
        (
            "### Layers that stay dense",
            _dense_table([rows[_DENSE, 1.0] for name, rows in by_layer.items() if name not in pruned], result),
        ),
        ("### Whole networks", _network_table(result["networks"])),
        ("### Two threads on ResNet-18", _thread_table(result["threads"])),
    ]
    yield f"peak: {result['peak_gflops']:.0f} GFLOP/s; {result['isa']}, {result['compiler']}"
    for title, lines in sections:
        yield from ("", title, "", *lines)


def _group_table(layers: Mapping[str, Mapping[tuple[str, float], _Row]]) -> Iterator[str]:
    densities = (0.5, 0.3, 0.2, 0.1)
    yield _line(
        "layer", "dense: direct, in use", *(f"{d:g}"[1:] for d in densities), "bound at .3", "at .1",
        "x XNNPACK: 1", *(f"{d:g}"[1:] for d in densities), "x ncnn: 1", ".3", ".1",
    )  # fmt: skip
    yield _rule(16)
    for name, rows in layers.items():
        dense = rows[_DENSE, 1.0]
        groups = [rows[_GROUP, d] for d in densities]
        direct = dense["direct_fraction_of_peak"]
        in_use = _share(dense) if direct is None else f"{100 * direct:.0f}, {_share(dense)}"
        yield _line(
            name, in_use, *map(_share, groups),
            *(_percent(rows[_GROUP, d]["bound_with_writes"]) for d in (0.3, 0.1)),
            *(_ratio(row["speedup_vs_xnnpack"]) for row in (dense, *groups)),
            *(_ratio(row["speedup_vs_ncnn"]) for row in (dense, groups[1], groups[3])),
        )  # fmt: skip


def _single_table(layers: Mapping[str, Mapping[tuple[str, float], _Row]]) -> Iterator[str]:
    densities = (0.5, 0.2, 0.1)
    yield _line(
        "layer", "unstructured, % of peak: .5", ".2", ".1", "x XNNPACK: .5", ".2", ".1", "x ncnn: .2",
        "pattern, % of peak", "% of the ideal 2.25x", "x XNNPACK",
    )  # fmt: skip
    yield _rule(11)
    for name, rows in layers.items():
        single = [rows[_UNSTRUCTURED, d] for d in densities]
        pattern = next((row for (scheme, _), row in rows.items() if scheme == _PATTERN), None)
        yield _line(
            name, *map(_share, single), *(_ratio(row["speedup_vs_xnnpack"]) for row in single),
            _ratio(single[1]["speedup_vs_ncnn"]),
            "" if pattern is None else _share(pattern),
            "" if pattern is None else _percent(pattern["of_ideal_speedup"]),
            "" if pattern is None else _ratio(pattern["speedup_vs_xnnpack"]),
        )  # fmt: skip


def _dense_table(rows: Sequence[_Row], result: Mapping[str, Any]) -> Iterator[str]:
    yield _line("dense only", "us", "% of peak", "x XNNPACK", "x ncnn")
    yield _rule(5)
    for row in [*rows, *result["other_layers"]]:
        share = row.get("fraction_of_peak")
        yield _line(
            row["layer"], f"{row['median_us']:.1f}", "" if share is None else _percent(share),
            _ratio(row["speedup_vs_xnnpack"]), _ratio(row["speedup_vs_ncnn"]),
        )  # fmt: skip


def _network_table(rows: Sequence[_Row]) -> Iterator[str]:
    yield _line(
        "network", "density", "ms", "x XNNPACK", "x ncnn", "prepare s", "relative error", "memory MiB: executor",
        "resident", "XNNPACK resident", "peak", "XNNPACK peak",
    )  # fmt: skip
    yield _rule(12)
    for row in rows:
        own, other = row["native_memory"] or {}, row["xnnpack_memory"] or {}
        yield _line(
            row["network"], f"{row['density']:g}", f"{row['median_ms']:.2f}", _ratio(row["speedup_vs_xnnpack"]),
            _ratio(row["speedup_vs_ncnn"]), f"{row['prepare_s']:.2f}",
            "" if row["relative_error"] is None else f"{row['relative_error']:.0e}", _mib(row["memory_bytes"]),
            *(_mib(use.get(field)) for field in ("rss_bytes", "peak_bytes") for use in (own, other)),
        )  # fmt: skip


def _thread_table(rows: Sequence[_Row]) -> Iterator[str]:
    yield _line("density", "one thread, ms", "two, ms", "speed-up", "median")
    yield _rule(5)
    for row in rows:
        yield _line(
            f"{row['density']:g}", f"{row['one_thread_minimum_ms']:.2f}", f"{row['minimum_ms']:.2f}",
            _ratio(row["speedup"]), _ratio(row["median_speedup"]),
        )  # fmt: skip


def _share(row: _Row) -> str:
    """Percent of the peak; W marks Winograd's algorithm."""
    return _percent(row["fraction_of_peak"]) + (" W" if row["algorithm"] == "winograd" else "")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _mib(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / _MIB:.1f}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


if __name__ == "__main__":
    main()
