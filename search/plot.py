"""A picture of the front."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from search.domain.result import Baseline, BaselineLatency, DeviceFigures, FrontPoint, SearchResult


class ImageFormat(StrEnum):
    PNG = "png"
    SVG = "svg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """Colours of a picture, as matplotlib takes them; `ground` may be "none"."""

    ground: str
    ink: str
    faint: str
    predicted: str
    verified: str
    tflite: str
    native: str
    ncnn: str


LIGHT = Palette(
    ground="white", ink="#17211d", faint="#c5ccd6", predicted="#9aa4b2", verified="#0b6e4f", tflite="#b5472b",
    native="#c98a1b", ncnn="#6a4c93",
)  # fmt: skip
#: For a dark ground, which shines through.
DARK = Palette(
    ground="none", ink="#e5ebe8", faint="#4a5852", predicted="#8b9a93", verified="#52c795", tflite="#f59481",
    native="#ecb95a", ncnn="#c3a5ee",
)  # fmt: skip


def plot_front(
    result: SearchResult,
    image_format: ImageFormat = ImageFormat.PNG,
    *,
    dots_per_inch: int = 150,
    palette: Palette = LIGHT,
) -> bytes:
    """`front_figure` as the bytes of an image.

    Equal results give equal bytes: an SVG has no date, and its text is paths, so that it needs no font.
    """
    buffer = io.BytesIO()
    metadata = {"Date": None} if image_format is ImageFormat.SVG else None
    with _style(palette):
        figure = _figure(result, dots_per_inch, palette)
        figure.savefig(buffer, format=image_format.value, metadata=metadata)
    return buffer.getvalue()


def front_figure(result: SearchResult) -> Figure:
    """Measured latency and test accuracy with their 95 % intervals, and the dense baselines.

    With several devices, one picture for each beside that over the devices.
    """
    with _style(LIGHT):
        return _figure(result, 150, LIGHT)


def _style(palette: Palette) -> AbstractContextManager[None]:
    coloured = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    style: Any = {**dict.fromkeys(coloured, palette.ink), **dict.fromkeys(grounds, palette.ground)}
    style |= {"grid.color": palette.faint, "svg.hashsalt": "kerf", "svg.fonttype": "path"}
    context: AbstractContextManager[None] = matplotlib.rc_context(style)
    return context


def _figure(result: SearchResult, dots_per_inch: int, palette: Palette) -> Figure:
    devices = result.devices if len(result.devices) > 1 else ()
    # Without pyplot: it would choose a backend, and a notebook has its own.
    figure = Figure(figsize=(7.5 + 4.6 * len(devices), 4.6), dpi=dots_per_inch)
    panels = figure.subplots(1, 1 + len(devices), sharey=True, squeeze=False)
    source = "" if result.device.source == "measured" else f" ({result.device.source.value} device)"
    if devices:
        over = str(result.search.settings.get("latency_over_devices", "max")).replace("_", " ")
        title = f"{result.search.name} by {result.search.method}, {over} over {len(devices)} devices"
    else:
        title = f"{result.search.name} by {result.search.method} on {result.device.name}{source}"
    _draw(panels[0][0], title, [(p, p) for p in result.front], result.baseline, result.baseline.latency_ms, palette)
    panels[0][0].set_ylabel(f"test {result.metric}, %")
    panels[0][0].legend(fontsize=8, frameon=False)
    for place, device in enumerate(devices):
        points = [(p, p.devices[place]) for p in result.front]
        own = result.baseline.devices[place].latency_ms
        _draw(panels[0][1 + place], f"{device.name}{source}", points, result.baseline, own, palette)
    figure.tight_layout()
    return figure


def _draw(
    axes: Axes,
    title: str,
    points: Sequence[tuple[FrontPoint, FrontPoint | DeviceFigures]],
    base: Baseline,
    dense: BaselineLatency,
    palette: Palette,
) -> None:
    """One panel. Each point is a candidate with its latencies there."""
    verified = [(p, at) for p, at in points if at.measured_latency_ms is not None]
    final = [(p, at) for p, at in verified if p.accuracy is not None]
    axes.plot(
        [at.predicted_latency_ms for _, at in verified],
        [100 * (p.accuracy if p.accuracy is not None else p.accuracy_estimate or 0.0) for p, _ in verified],
        "o", mfc="none", mec=palette.predicted, ms=6, label="predicted latency",
    )  # fmt: skip
    if final:
        latency = [at.measured_latency_ms or 0.0 for _, at in final]
        intervals = [at.latency_ci95_ms or (at.measured_latency_ms or 0.0,) * 2 for _, at in final]
        error = [
            [max(0.0, m - low) for m, (low, _) in zip(latency, intervals, strict=True)],
            [max(0.0, high - m) for m, (_, high) in zip(latency, intervals, strict=True)],
        ]
        accuracy = [100 * (p.accuracy or 0.0) for p, _ in final]
        bounds = [p.accuracy_ci95 or (p.accuracy or 0.0,) * 2 for p, _ in final]
        upright = [
            [max(0.0, a - 100 * low) for a, (low, _) in zip(accuracy, bounds, strict=True)],
            [max(0.0, 100 * high - a) for a, (_, high) in zip(accuracy, bounds, strict=True)],
        ]
        axes.errorbar(
            latency, accuracy, xerr=error, yerr=upright,
            fmt="o", color=palette.verified, elinewidth=0.9, capsize=2, ms=5, label="verified on the device",
        )  # fmt: skip
    for latency_ms, label, colour in (
        (dense.tflite_dense, "dense, TFLite", palette.tflite),
        (dense.native_dense, "dense, native", palette.native),
        (dense.ncnn_dense, "dense, ncnn", palette.ncnn),
    ):
        if latency_ms is not None:
            axes.plot([latency_ms], [100 * base.accuracy], "s", color=colour, ms=7, label=label)
    axes.axhline(100 * base.accuracy, color=palette.faint, lw=0.8, ls="--")
    axes.set_xlabel("latency, ms (one image, median)")
    axes.set_title(title, fontsize=10)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
