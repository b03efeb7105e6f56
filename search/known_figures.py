"""Latency and counts of many genomes at once, as the search methods want them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from device_agent.contracts import NetworkPlan
from device_agent.formats.packed import weight_bytes
from search.algorithms.factors import Factor
from search.domain.network import NetworkSpec
from search.domain.objective import Metric
from search.domain.space import SearchSpace
from search.genome_costs import CostTable, GenomeCosts
from search.latency.network import NetworkLatencyModel
from search.pareto import FloatArray

#: What a plan alone decides, on any device.
PLAN_METRICS = frozenset({Metric.MACS, Metric.PARAMETERS, Metric.MODEL_BYTES})

_NS_PER_MS = 1e6


class NetworkFigures:
    """What a genome alone decides: a `KnownFigures` of `METRICS`. Tables fill up as genomes are asked for.

    Raises `KernelNotMeasured`, when called, where a genome leads outside of the latency table.
    """

    METRICS = PLAN_METRICS | {Metric.LATENCY_MS}

    def __init__(self, spec: NetworkSpec, space: SearchSpace, latency: NetworkLatencyModel) -> None:
        self._latency = latency
        self._costs = GenomeCosts(
            spec,
            space,
            {
                "latency_ns": lambda kernel: latency.predictor.predict(kernel).latency_ns,
                "macs": lambda kernel: float(kernel.macs),
                "parameters": lambda kernel: float(kernel.parameters),
                "model_bytes": lambda kernel: float(weight_bytes(kernel)),
            },
        )

    def latency_tables(self) -> tuple[CostTable, ...]:
        """The latency of each operator in ns over the choices of its own variables, before the correction to a whole
        network."""
        return self._costs.tables("latency_ns")

    def __call__(self, genomes: ArrayLike) -> Mapping[Metric, FloatArray]:
        latency_ns, macs, parameters, model_bytes = self._costs.sums(genomes).T
        correction = self._latency.correction
        latency_ms = (correction.scale * latency_ns + correction.offset_ns) / _NS_PER_MS
        return {
            Metric.LATENCY_MS: latency_ms,
            Metric.MACS: macs,
            Metric.PARAMETERS: parameters,
            Metric.MODEL_BYTES: model_bytes,
        }

    def tables(self, metric: Metric) -> tuple[Factor, ...]:
        """Tables that add up to one of `METRICS`: one for each operator, and what does not vary.

        Every cell is computed, so this takes seconds for a large space; later calls are quick.
        """
        name = "latency_ns" if metric is Metric.LATENCY_MS else metric.value
        scale, offset = 1.0, 0.0
        if metric is Metric.LATENCY_MS:
            correction = self._latency.correction
            scale, offset = correction.scale / _NS_PER_MS, correction.offset_ns / _NS_PER_MS
        found = [Factor(variables=t.variables, values=scale * t.values) for t in self._costs.tables(name)]
        return (*found, Factor(variables=(), values=np.array(offset)))


def plan_figures(plan: NetworkPlan) -> dict[Metric, float]:
    """The figures `PLAN_METRICS` of one plan, which need no latency table."""
    return {
        Metric.MACS: float(plan.macs),
        Metric.PARAMETERS: float(plan.parameters),
        Metric.MODEL_BYTES: float(sum(weight_bytes(kernel) for kernel in plan.kernels)),
    }
