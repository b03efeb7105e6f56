"""Latency and counts of many genomes at once, as the search methods want them."""

from __future__ import annotations

from collections.abc import Mapping

from numpy.typing import ArrayLike

from search.domain.network import NetworkSpec
from search.domain.objective import Metric
from search.domain.space import SearchSpace
from search.genome_costs import GenomeCosts
from search.latency.network import NetworkLatencyModel
from search.pareto import FloatArray

_NS_PER_MS = 1e6


class NetworkFigures:
    """What a genome alone decides: a `KnownFigures` of `METRICS`. Tables fill up as genomes are asked for.

    Raises `KernelNotMeasured`, when called, where a genome leads outside of the latency table.
    """

    METRICS = frozenset({Metric.LATENCY_MS, Metric.MACS, Metric.PARAMETERS})

    def __init__(self, spec: NetworkSpec, space: SearchSpace, latency: NetworkLatencyModel) -> None:
        self._latency = latency
        self._costs = GenomeCosts(
            spec,
            space,
            {
                "latency_ns": lambda kernel: latency.predictor.predict(kernel).latency_ns,
                "macs": lambda kernel: float(kernel.macs),
                "parameters": lambda kernel: float(kernel.parameters),
            },
        )

    def __call__(self, genomes: ArrayLike) -> Mapping[Metric, FloatArray]:
        latency_ns, macs, parameters = self._costs.sums(genomes).T
        correction = self._latency.correction
        latency_ms = (correction.scale * latency_ns + correction.offset_ns) / _NS_PER_MS
        return {Metric.LATENCY_MS: latency_ms, Metric.MACS: macs, Metric.PARAMETERS: parameters}
