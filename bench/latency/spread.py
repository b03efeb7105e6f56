"""How far measurements of the same kernel lie apart, with and without the ratio to the reference kernel.

Each measurement is one task in a process of its own, as the agent does it. The loads take turns, so that what the
machine does over minutes falls on all of them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.latency.competitor import competing_on
from device_agent.child import run_in_child
from device_agent.contracts import KernelSpec, KernelTask, Measurement, MeasurementFailure, MeasuringSetup, Op
from device_agent.contracts.statistics import coefficient_of_variation
from device_agent.measuring.pinning import choose_cores

#: Channels and side of 3x3 convolutions: in the first-level cache, in the second, and beyond.
KERNELS = ((16, 32), (64, 16), (128, 28))
_FULL_REPEATS, _QUICK_REPEATS = 20, 4
_BUDGET_S = 0.5
_DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What of one measurement is compared."""

    median_ns: float
    reference_ns: float
    reference_ratio: float
    verdict: str


def convolution(channels: int, side: int) -> KernelSpec:
    """A dense 3x3 convolution that keeps its shape."""
    return KernelSpec(
        op=Op.CONV2D,
        in_channels=channels,
        out_channels=channels,
        input_h=side,
        input_w=side,
        kernel_h=3,
        kernel_w=3,
        padding=1,
    )


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Coefficient of variation and range of repeated measurements, as parts of their mean and median."""
    return {
        "cv": round(coefficient_of_variation(values) or 0.0, 4),
        "range": round((max(values) - min(values)) / median(values), 4),
    }


def summary(taken: Sequence[Taken]) -> dict[str, Any]:
    """The spread of the raw medians, and of the same times brought to one speed by the reference kernel."""
    usual_ns = median(t.reference_ns for t in taken)
    return {
        "measurements": len(taken),
        "raw": spread_of([t.median_ns for t in taken]),
        "with_reference": spread_of([t.reference_ratio * usual_ns for t in taken]),
        "median_ns": round(median(t.median_ns for t in taken), 1),
        "trusted": sum(t.verdict == "trusted" for t in taken),
    }


def spread(quick: bool = False) -> dict[str, Any]:
    """Measure every kernel under every load, and say how far the results lie apart."""
    core = choose_cores(1)
    others = [c for c in choose_cores(1 << 10) if c not in core]
    loads: dict[str, list[int]] = {"none": [], "same core": list(core), "other cores": others}
    kernels = KERNELS[:1] if quick else KERNELS
    if quick:
        del loads["other cores"]
    result: dict[str, Any] = {}
    for channels, side in kernels:
        taken: dict[str, list[Taken]] = {name: [] for name in loads}
        for _ in range(_QUICK_REPEATS if quick else _FULL_REPEATS):
            for name, cores in loads.items():
                with competing_on(cores):
                    taken[name].append(_take(convolution(channels, side), core))
        rows = {name: summary(own) for name, own in taken.items()}
        # What a database holds in the end: measurements from all kinds of moments.
        rows["all"] = summary([t for own in taken.values() for t in own])
        result[f"conv 3x3, {channels} channels, {side}x{side}"] = rows
    pooled = [rows["all"] for rows in result.values()]
    return {
        "kernels": result,
        "raw_cv": round(median(p["raw"]["cv"] for p in pooled), 4),
        "with_reference_cv": round(median(p["with_reference"]["cv"] for p in pooled), 4),
    }


def _take(kernel: KernelSpec, cores: tuple[int, ...]) -> Taken:
    setup = MeasuringSetup(runtime="native", budget_s=_BUDGET_S)
    result: Measurement | MeasurementFailure = run_in_child(
        KernelTask(kernel=kernel, setup=setup), deadline_s=_DEADLINE_S, cores=cores
    )
    if isinstance(result, MeasurementFailure):
        raise SystemExit(f"a measurement failed ({result.reason}): {result.detail}")
    statistics = result.statistics
    assert statistics.reference_ns is not None
    assert statistics.reference_ratio is not None
    return Taken(statistics.median_ns, statistics.reference_ns, statistics.reference_ratio, result.verdict.value)
