"""A picture of the front."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib

from search.domain.result import Baseline, BaselineLatency, DeviceFigures, FrontPoint, SearchResult

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes


def plot_front(result: SearchResult) -> bytes:
    """Measured latency with its confidence interval against accuracy, with the dense baselines, as PNG bytes.

    With several devices, one picture for each beside that over the devices.
    """
    devices = result.devices if len(result.devices) > 1 else ()
    figure, panels = plt.subplots(
        1, 1 + len(devices), figsize=(7.5 + 4.6 * len(devices), 4.6), dpi=150, sharey=True, squeeze=False
    )
    source = "" if result.device.source == "measured" else f" ({result.device.source.value} device)"
    if devices:
        over = str(result.search.settings.get("latency_over_devices", "max")).replace("_", " ")
        title = f"{result.search.name} by {result.search.method}, {over} over {len(devices)} devices"
    else:
        title = f"{result.search.name} by {result.search.method} on {result.device.name}{source}"
    _draw(panels[0][0], title, [(p, p) for p in result.front], result.baseline, result.baseline.latency_ms)
    panels[0][0].set_ylabel(f"test {result.metric}, %")
    panels[0][0].legend(fontsize=8, frameon=False)
    for place, device in enumerate(devices):
        points = [(p, p.devices[place]) for p in result.front]
        own = result.baseline.devices[place].latency_ms
        _draw(panels[0][1 + place], f"{device.name}{source}", points, result.baseline, own)
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


def _draw(
    axes: Axes,
    title: str,
    points: Sequence[tuple[FrontPoint, FrontPoint | DeviceFigures]],
    base: Baseline,
    dense: BaselineLatency,
) -> None:
    """One panel. Each point is a candidate with its latencies there."""
    verified = [(p, at) for p, at in points if at.measured_latency_ms is not None]
    final = [(p, at) for p, at in verified if p.accuracy is not None]
    axes.plot(
        [at.predicted_latency_ms for _, at in verified],
        [100 * (p.accuracy if p.accuracy is not None else p.accuracy_estimate or 0.0) for p, _ in verified],
        "o", mfc="none", mec="#9aa4b2", ms=6, label="predicted latency",
    )  # fmt: skip
    if final:
        latency = [at.measured_latency_ms or 0.0 for _, at in final]
        intervals = [at.latency_ci95_ms or (at.measured_latency_ms or 0.0,) * 2 for _, at in final]
        error = [
            [max(0.0, m - low) for m, (low, _) in zip(latency, intervals, strict=True)],
            [max(0.0, high - m) for m, (_, high) in zip(latency, intervals, strict=True)],
        ]
        axes.errorbar(
            latency, [100 * (p.accuracy or 0.0) for p, _ in final], xerr=error,
            fmt="o", color="#0b6e4f", capsize=2, ms=6, label="verified on the device",
        )  # fmt: skip
    for latency_ms, label, colour in (
        (dense.tflite_dense, "dense, TFLite", "#b5472b"),
        (dense.native_dense, "dense, native", "#c98a1b"),
        (dense.ncnn_dense, "dense, ncnn", "#6a4c93"),
    ):
        if latency_ms is not None:
            axes.plot([latency_ms], [100 * base.accuracy], "s", color=colour, ms=7, label=label)
    axes.axhline(100 * base.accuracy, color="#c5ccd6", lw=0.8, ls="--")
    axes.set_xlabel("latency, ms (one image, median)")
    axes.set_title(title, fontsize=10)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
