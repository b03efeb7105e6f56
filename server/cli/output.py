"""What a finished search leaves in the user's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from device_agent.contracts import decode
from kerf import Client
from search.domain.result import BaselineLatency, DeviceFigures, FrontPoint, SearchResult
from search.latency_axis import MICROSECONDS, MILLISECONDS, LatencyUnit, latency_unit
from server.cli.designs import design_table
from server.dashboard.formats import device_time
from server.dashboard.wording import STANDING_LABELS

RESULT_FILE = "result.json"

#: Of latencies in tables, whose points stand below each other.
_DECIMALS = {MILLISECONDS: 4, MICROSECONDS: 2}

#: More candidates than this are counted, not named.
_NAMED_TIES = 3


def write_output(client: Client, search_id: str, output: Path) -> SearchResult:
    """Fetch the result and everything that belongs to it into `output`.

    result.json is written last: where it lies, the rest is complete.
    """
    from search.plot import plot_front  # matplotlib takes a second to import; only this command needs it

    output.mkdir(parents=True, exist_ok=True)
    raw = client.searches.result(search_id)
    result = decode(SearchResult, raw)
    _write_json(output / "front.json", client.searches.searched_front(search_id))
    _write_json(output / "latency-table.json", client.searches.latency_table(search_id))
    for device in result.devices[1:]:
        _write_json(
            output / f"latency-table.{device.id}.json", client.searches.latency_table(search_id, device=device.id)
        )
    config = client.searches.config(search_id)
    (output / "config.resolved.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    for point in result.front:
        folder = output / "candidates" / point.candidate_id
        folder.mkdir(parents=True, exist_ok=True)
        for name, digest in point.files.items():
            client.artifacts.download(digest, folder / name)
    (output / "front.png").write_bytes(plot_front(result))
    _write_json(output / RESULT_FILE, raw)
    return result


def print_front(result: SearchResult, console: Console) -> None:
    """The front as a table, fastest first, with the dense networks above it; what its networks are; then one table for
    each of several devices.
    """
    base = result.baseline
    devices = result.devices or (result.device,)
    told = (
        f": {result.search.method}, seed {result.search.seed}, {result.search.evaluations} candidates estimated, on "
        + ", ".join(f"{device.name} ({device.cpu_model}, {device.source.value})" for device in devices)
    )
    console.print()
    console.print(Text.assemble((result.search.name, "bold"), told))
    cost = result.search.measuring
    if cost is not None:
        console.print(
            f"measuring: {device_time(cost.device_minutes)} of devices; {cost.cache_hits} of {cost.measurements} "
            "measurements were shared with other searches"
        )
    left_out = result.search.excluded_choices
    if left_out is not None:
        console.print(
            f"not tried: {left_out.excluded} of {left_out.pruned} prunings of layers: a denser one takes no longer"
        )
    several = len(devices) > 1
    if several:
        over = str(result.search.settings.get("latency_over_devices", "max")).replace("_", " ")
        console.print(f"latency over the {len(devices)} devices: {over}")
    unit = _unit(result)
    table = _table(("candidate", f"{result.metric} %", "estimate %"), unit)
    for label, latency, speed_up in _dense(base.latency_ms):
        table.add_row(label, f"{100 * base.accuracy:.2f}", "", _number(latency, unit), "", "", "", speed_up, "", "")
    for point in result.front:
        table.add_row(
            point.candidate_id[:10],
            "" if point.accuracy is None else f"{100 * point.accuracy:.2f}",
            "" if point.accuracy_estimate is None else f"{100 * point.accuracy_estimate:.2f}",
            *_latency_cells(point, base.latency_ms, unit),
        )
    console.print(table)
    if any(point.standing is not None for point in result.front):
        console.print()
        console.print(_standing_table(result.front, result.metric, unit))
    if result.measured_untrained:
        console.print("\nthe rest of the front, measured untrained")
        rest = _table(("candidate", "estimate %"), unit)
        for point in result.measured_untrained:
            estimate = "" if point.accuracy_estimate is None else f"{100 * point.accuracy_estimate:.2f}"
            rest.add_row(point.candidate_id[:10], estimate, *_latency_cells(point, base.latency_ms, unit))
        console.print(rest)
    console.print()
    console.print(design_table(result))
    for place, device in enumerate(devices if several else ()):
        own = base.devices[place].latency_ms
        console.print()
        console.print(Text.assemble("on ", (device.name, "bold")))
        table = _table(("candidate",), unit)
        for label, latency, speed_up in _dense(own):
            table.add_row(label, _number(latency, unit), "", "", "", speed_up, "", "")
        for point in result.front:
            table.add_row(point.candidate_id[:10], *_latency_cells(point.devices[place], own, unit))
        console.print(table)


def _standing_table(front: Sequence[FrontPoint], metric: str, unit: LatencyUnit) -> Table:
    """How the candidates stand to each other in measured latency and test accuracy, with the intervals of both."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("candidate", "standing", f"{metric} 95 % CI", f"{unit.name} 95 % CI", "tied with"):
        table.add_column(title, no_wrap=True, justify="right" if "CI" in title else "left")
    for point in front:
        accuracy, latency = point.accuracy_ci95, point.latency_ci95_ms
        table.add_row(
            point.candidate_id[:10],
            "unknown" if point.standing is None else STANDING_LABELS[point.standing].text,
            "" if accuracy is None else f"{100 * accuracy[0]:.2f}-{100 * accuracy[1]:.2f}",
            _interval(latency, unit),
            _tied(point, front),
        )
    return table


def _tied(point: FrontPoint, front: Sequence[FrontPoint]) -> str:
    """The candidates that noise does not tell apart from this one; where that is most of them, how many."""
    if len(point.tied_with) > _NAMED_TIES:
        return f"{len(point.tied_with)} of {len(front) - 1}"
    return " ".join(identity[:10] for identity in point.tied_with)


def _table(leading: Sequence[str], unit: LatencyUnit) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in (*leading, f"measured {unit.name}", "95 % CI", "predicted", "error %", "x TFLite"):
        table.add_column(title, justify="left" if title == "candidate" else "right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("max |error|", justify="right", no_wrap=True)
    return table


def _dense(latency: BaselineLatency) -> list[tuple[str, float | None, str]]:
    """Label, latency and speed-up of the dense network in each runtime."""
    tflite = latency.tflite_dense
    dense = [("dense, TFLite", tflite), ("dense, native", latency.native_dense)]
    if latency.ncnn_dense is not None:
        dense.append(("dense, ncnn", latency.ncnn_dense))
    return [(label, ms, f"{tflite / ms:.2f}" if tflite and ms else "") for label, ms in dense]


def _latency_cells(found: FrontPoint | DeviceFigures, base: BaselineLatency, unit: LatencyUnit) -> tuple[str, ...]:
    """The columns from the measured latency on."""
    measured, interval, tflite = found.measured_latency_ms, found.latency_ci95_ms, base.tflite_dense
    return (
        _number(measured, unit),
        _interval(interval, unit),
        _number(found.predicted_latency_ms, unit),
        "" if measured is None else f"{100 * (found.predicted_latency_ms / measured - 1):+.1f}",
        "" if measured is None or tflite is None else f"{tflite / measured:.2f}",
        found.failure or (found.verdict.value if found.verdict else ""),
        "" if found.output_max_abs_error is None else f"{found.output_max_abs_error:.1e}",
    )


def _unit(result: SearchResult) -> LatencyUnit:
    """One for all tables: that of the picture, of the report and of the dashboard's page."""
    dense = result.baseline.latency_ms
    return latency_unit([dense.tflite_dense, dense.native_dense, *(p.predicted_latency_ms for p in result.front)])


def _number(value_ms: float | None, unit: LatencyUnit) -> str:
    return "" if value_ms is None else f"{value_ms * unit.per_ms:.{_DECIMALS[unit]}f}"


def _interval(bounds_ms: tuple[float, float] | None, unit: LatencyUnit) -> str:
    return "" if bounds_ms is None else "-".join(_number(bound, unit) for bound in bounds_ms)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
