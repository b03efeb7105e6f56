"""A picture of the front."""

from __future__ import annotations

import io

import matplotlib

from search.domain.result import SearchResult

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_front(result: SearchResult) -> bytes:
    """Measured latency with its confidence interval against accuracy, with the dense baselines, as PNG bytes."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6), dpi=150)
    verified = [p for p in result.front if p.measured_latency_ms is not None]
    final = [p for p in verified if p.accuracy is not None]
    axes.plot(
        [p.predicted_latency_ms for p in verified],
        [100 * (p.accuracy if p.accuracy is not None else p.accuracy_estimate or 0.0) for p in verified],
        "o", mfc="none", mec="#9aa4b2", ms=6, label="predicted latency",
    )  # fmt: skip
    if final:
        latency = [p.measured_latency_ms or 0.0 for p in final]
        intervals = [p.latency_ci95_ms or (p.measured_latency_ms or 0.0,) * 2 for p in final]
        error = [
            [max(0.0, m - low) for m, (low, _) in zip(latency, intervals, strict=True)],
            [max(0.0, high - m) for m, (_, high) in zip(latency, intervals, strict=True)],
        ]
        axes.errorbar(
            latency, [100 * (p.accuracy or 0.0) for p in final], xerr=error,
            fmt="o", color="#0b6e4f", capsize=2, ms=6, label="verified on the device",
        )  # fmt: skip
    base = result.baseline
    for latency_ms, label, colour in (
        (base.latency_ms.tflite_dense, "dense, TFLite", "#b5472b"),
        (base.latency_ms.native_dense, "dense, native", "#c98a1b"),
        (base.latency_ms.ncnn_dense, "dense, ncnn", "#6a4c93"),
    ):
        if latency_ms is not None:
            axes.plot([latency_ms], [100 * base.accuracy], "s", color=colour, ms=7, label=label)
    axes.axhline(100 * base.accuracy, color="#c5ccd6", lw=0.8, ls="--")
    axes.set_xlabel("latency, ms (one image, median)")
    axes.set_ylabel("test accuracy, %")
    source = "" if result.device.source == "measured" else f" ({result.device.source.value} device)"
    axes.set_title(f"{result.search.name} by {result.search.method} on {result.device.name}{source}", fontsize=10)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
