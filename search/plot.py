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
from matplotlib.transforms import ScaledTranslation

from search.domain.result import Baseline, BaselineLatency, DeviceFigures, FrontPoint, SearchResult
from search.latency_axis import LatencyUnit, axis_reach_ms, latency_unit


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
    dense = result.baseline.latency_ms
    # As in the tables of the dashboard and of the report.
    unit = latency_unit([dense.tflite_dense, dense.native_dense, *(p.predicted_latency_ms for p in result.front)])
    _draw(panels[0][0], title, [(p, p) for p in result.front], result.baseline, dense, unit, palette)
    panels[0][0].set_ylabel(f"test {result.metric}, %")
    panels[0][0].legend(fontsize=8, frameon=False)
    for place, device in enumerate(devices):
        points = [(p, p.devices[place]) for p in result.front]
        own = result.baseline.devices[place].latency_ms
        _draw(panels[0][1 + place], f"{device.name}{source}", points, result.baseline, own, unit, palette)
    figure.tight_layout()
    return figure


def _draw(
    axes: Axes,
    title: str,
    points: Sequence[tuple[FrontPoint, FrontPoint | DeviceFigures]],
    base: Baseline,
    dense: BaselineLatency,
    unit: LatencyUnit,
    palette: Palette,
) -> None:
    """One panel. Each point is a candidate with its latencies there."""
    scale = unit.per_ms
    verified = [(p, at) for p, at in points if at.measured_latency_ms is not None]
    final = [(p, at) for p, at in verified if p.accuracy is not None]
    axes.plot(
        [scale * at.predicted_latency_ms for _, at in verified],
        [100 * (p.accuracy if p.accuracy is not None else p.accuracy_estimate or 0.0) for p, _ in verified],
        "o", mfc="none", mec=palette.predicted, ms=6, label="predicted latency",
    )  # fmt: skip
    if final:
        latency = [scale * (at.measured_latency_ms or 0.0) for _, at in final]
        intervals = [at.latency_ci95_ms or (at.measured_latency_ms or 0.0,) * 2 for _, at in final]
        error = [
            [max(0.0, m - scale * low) for m, (low, _) in zip(latency, intervals, strict=True)],
            [max(0.0, scale * high - m) for m, (_, high) in zip(latency, intervals, strict=True)],
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
    baselines = [
        (latency_ms, label, colour)
        for latency_ms, label, colour in (
            (dense.tflite_dense, "dense, TFLite", palette.tflite),
            (dense.native_dense, "dense, native", palette.native),
            (dense.ncnn_dense, "dense, ncnn", palette.ncnn),
        )
        if latency_ms is not None
    ]
    reach_ms = axis_reach_ms(
        [latency_ms for _, at in verified for latency_ms in (at.predicted_latency_ms, at.measured_latency_ms or 0.0)],
        [latency_ms for latency_ms, *_ in baselines],
        [at.latency_ci95_ms[1] for _, at in final if at.latency_ci95_ms is not None],
    )
    end = 1.06 * scale * reach_ms or 1.0
    beyond = 0
    for latency_ms, label, colour in sorted(baselines):
        if latency_ms <= reach_ms:
            axes.plot([scale * latency_ms], [100 * base.accuracy], "s", color=colour, ms=7, label=label)
            continue
        # At the end of the axis with its value, in rows below the line of the dense accuracy.
        drop = -12 * (beyond + 1)
        place = axes.transData + ScaledTranslation(0, drop / 72, axes.figure.dpi_scale_trans)
        axes.plot(
            [end], [100 * base.accuracy], ">", color=colour, ms=6, label=f"{label}, beyond the axis", transform=place,
            clip_on=False,
        )  # fmt: skip
        axes.annotate(
            f"{scale * latency_ms:.3g} {unit.name}", (end, 100 * base.accuracy), xytext=(-7, drop),
            textcoords="offset points", ha="right", va="center", fontsize=8, color=colour,
        )  # fmt: skip
        beyond += 1
    axes.axhline(100 * base.accuracy, color=palette.faint, lw=0.8, ls="--", zorder=0)
    axes.set_xlabel(f"latency, {unit.name} (one image, median)")
    axes.set_title(title, fontsize=10)
    axes.set_xlim(0, end)
    axes.grid(alpha=0.25)
