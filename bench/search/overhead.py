"""What a method costs outside of accuracy: thread-CPU time of asking and telling, known figures included.

On ResNet-56's space with channels and densities, with computed latencies (they cost as much to look up as measured
ones), a stated noisy additive loss, and population 64. Tables are filled beforehand, as a search fills them once; the
figures of the candidates themselves are counted, since the search looks them up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from device_agent.contracts import KernelSpec
from search.algorithms.factors import Factor
from search.algorithms.registry import make_searcher
from search.domain.config import ChannelsConfig, Method, SpaceConfig, WeightsConfig
from search.domain.objective import Metric, Objective
from search.genome_costs import GenomeCosts
from search.models.zoo import build_model
from search.pareto import FloatArray
from search.problem import SearchProblem
from search.pruning.trace import trace_network
from search.space_builder import build_space

POPULATION = 64
GENERATIONS = 12
METHODS = (Method.JCW, Method.AACP, Method.EXACT, Method.NSGA2, Method.RANDOM)
_NS_PER_MAC, _NS_PER_CHANNEL = 0.05, 40.0
_NOISE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadRow:
    """Milliseconds of thread CPU for each candidate: making the searcher apart, mean and largest generation."""

    method: str
    setup_s: float
    mean_ms: float
    worst_ms: float


def overhead_rows(methods: Sequence[Method] = METHODS, generations: int = GENERATIONS) -> list[OverheadRow]:
    problem = _problem()
    rng = np.random.default_rng(0)
    sensitivity = np.exp(rng.standard_normal(len(problem.space.variables)))
    last = np.array(problem.space.num_choices) - 1
    rows = []
    for method in methods:
        started = time.thread_time()
        searcher = make_searcher(method, problem, population=POPULATION, seed=0)
        setup_s = time.thread_time() - started
        spent_ms = []
        for _ in range(generations):
            started = time.thread_time()
            genomes = searcher.ask()
            assert problem.known is not None
            latency = problem.known(genomes)[Metric.LATENCY_MS]
            elapsed_s = time.thread_time() - started
            place = np.array(genomes) / last
            loss = np.square(1.0 - place) @ sensitivity * (1.0 + _NOISE * rng.standard_normal(len(genomes)))
            started = time.thread_time()
            searcher.tell(genomes, np.column_stack((loss, latency)), np.zeros(len(genomes)))
            searcher.state()
            elapsed_s += time.thread_time() - started
            spent_ms.append(1e3 * elapsed_s / len(genomes))
        rows.append(
            OverheadRow(
                method=method.value, setup_s=setup_s, mean_ms=float(np.mean(spent_ms)), worst_ms=float(max(spent_ms))
            )
        )
    return rows


def overhead_text(rows: Sequence[OverheadRow]) -> str:
    """The rows for people."""
    lines = [f"{'method':<8} {'setup s':>8} {'ms each':>8} {'worst':>8}"]
    lines += [f"{r.method:<8} {r.setup_s:>8.2f} {r.mean_ms:>8.3f} {r.worst_ms:>8.3f}" for r in rows]
    return "\n".join(lines)


def _problem() -> SearchProblem:
    input_shape = (3, 32, 32)
    model = build_model("resnet56", num_classes=10, input_shape=input_shape)
    spec = trace_network(model, input_shape, "resnet56")
    space = build_space(spec, SpaceConfig(channels=ChannelsConfig(), weights=WeightsConfig()))
    costs = GenomeCosts(spec, space, {"latency_ms": _latency_ms})

    def tables(metric: Metric) -> tuple[Factor, ...]:
        return tuple(Factor(variables=t.variables, values=t.values) for t in costs.tables(metric.value))

    def known(genomes: ArrayLike) -> Mapping[Metric, FloatArray]:
        return {Metric.LATENCY_MS: costs.sums(genomes)[:, 0]}

    tables(Metric.LATENCY_MS)
    return SearchProblem(
        space=space,
        objectives=(Objective(metric=Metric.LOSS), Objective(metric=Metric.LATENCY_MS)),
        known=known,
        known_metrics=frozenset({Metric.LATENCY_MS}),
        tables=tables,
    )


def _latency_ms(kernel: KernelSpec) -> float:
    return 1e-6 * (_NS_PER_MAC * kernel.macs + _NS_PER_CHANNEL * (kernel.in_channels + kernel.out_channels))
