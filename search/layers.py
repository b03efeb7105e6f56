"""A candidate's operators one by one: what is left of each, and its part of the predicted latency."""

from __future__ import annotations

from collections.abc import Sequence

from device_agent.contracts import NetworkPlan
from search.domain.result import LayerFigures
from search.domain.space import SchemeChoice
from search.latency.network import NetworkLatencyModel

_NS_PER_MS = 1e6


def layer_figures(plan: NetworkPlan, models: Sequence[NetworkLatencyModel]) -> tuple[LayerFigures, ...]:
    """The operators of `plan` in execution order, with their latency by each of `models`.

    Latencies of one model and its correction's constant (`offset_ns`) add up to what it predicts for `plan`. Raises
    `KernelNotMeasured` where a model cannot tell a kernel's.
    """
    return tuple(
        LayerFigures(
            name=op.name,
            op=op.kernel.op.value,
            in_channels=op.kernel.in_channels,
            out_channels=op.kernel.out_channels,
            kernel_h=op.kernel.kernel_h,
            kernel_w=op.kernel.kernel_w,
            stride=op.kernel.stride,
            input_h=op.kernel.input_h,
            input_w=op.kernel.input_w,
            scheme=str(SchemeChoice.of(op.kernel.pruning)) if op.kernel.op.has_weights else "",
            density=op.kernel.pruning.density,
            macs=op.kernel.macs,
            latency_ms=tuple(model.kernel_ns(op.kernel) / _NS_PER_MS for model in models),
        )
        for op in plan.ops
    )
