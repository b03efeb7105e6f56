"""What a finished search leaves in the user's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from device_agent.contracts import decode
from search.domain.result import SearchResult
from server.client import KerfClient

RESULT_FILE = "result.json"


def write_output(client: KerfClient, search_id: str, output: Path) -> SearchResult:
    """Fetch the result and everything that belongs to it into `output`.

    result.json is written last: where it lies, the rest is complete.
    """
    from search.plot import plot_front  # matplotlib takes a second to import; only this command needs it

    output.mkdir(parents=True, exist_ok=True)
    raw = client.search_part(search_id, "result")
    result = decode(SearchResult, raw)
    _write_json(output / "front.json", client.search_part(search_id, "searched-front"))
    _write_json(output / "latency-table.json", client.search_part(search_id, "latency-table"))
    config = client.search_part(search_id, "config")
    (output / "config.resolved.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    for point in result.front:
        folder = output / "candidates" / point.candidate_id
        folder.mkdir(parents=True, exist_ok=True)
        for name, digest in point.files.items():
            client.download_artifact(digest, folder / name)
    (output / "front.png").write_bytes(plot_front(result))
    _write_json(output / RESULT_FILE, raw)
    return result


def print_front(result: SearchResult, console: Console) -> None:
    """The front as a table, fastest first, with the dense networks above it."""
    base = result.baseline
    console.print(
        f"\n[bold]{result.search.name}[/bold]: {result.search.method}, seed {result.search.seed}, "
        f"{result.search.evaluations} candidates estimated, on {result.device.name} ({result.device.cpu_model}, "
        f"{result.device.source.value})"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("candidate", "accuracy %", "estimate %", "measured ms", "95 % CI", "predicted", "error %"):
        table.add_column(title, justify="left" if title == "candidate" else "right", no_wrap=True)
    table.add_column("x TFLite", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("max |error|", justify="right", no_wrap=True)
    tflite = base.latency_ms.tflite_dense
    dense = [("dense, TFLite", tflite), ("dense, native", base.latency_ms.native_dense)]
    if base.latency_ms.ncnn_dense is not None:
        dense.append(("dense, ncnn", base.latency_ms.ncnn_dense))
    for label, latency in dense:
        speed_up = f"{tflite / latency:.2f}" if tflite and latency else ""
        table.add_row(label, f"{100 * base.accuracy:.2f}", "", _number(latency), "", "", "", speed_up, "", "")
    for point in result.front:
        measured, interval = point.measured_latency_ms, point.latency_ci95_ms
        table.add_row(
            point.candidate_id[:10],
            "" if point.accuracy is None else f"{100 * point.accuracy:.2f}",
            "" if point.accuracy_estimate is None else f"{100 * point.accuracy_estimate:.2f}",
            _number(measured),
            "" if interval is None else f"{interval[0]:.4f}-{interval[1]:.4f}",
            _number(point.predicted_latency_ms),
            "" if measured is None else f"{100 * (point.predicted_latency_ms / measured - 1):+.1f}",
            "" if measured is None or tflite is None else f"{tflite / measured:.2f}",
            point.failure or (point.verdict.value if point.verdict else ""),
            "" if point.output_max_abs_error is None else f"{point.output_max_abs_error:.1e}",
        )
    console.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
