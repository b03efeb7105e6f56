"""Which points of a front are worth training, exporting and measuring: a few, spread over its range of latencies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from device_agent.contracts import ContractError
from search.domain.candidate import EvaluatedCandidate
from search.domain.config import SelectionConfig
from search.domain.objective import Metric, Objective
from search.loop import front_of
from search.pareto import FloatArray


def select(
    front: Sequence[EvaluatedCandidate], config: SelectionConfig, dense_latency_ms: float | None = None
) -> tuple[EvaluatedCandidate, ...]:
    """At most `config.candidates` of `front`, fastest first, spread evenly over the latencies.

    With `config.max_latency_ratio`, only candidates up to that part of `dense_latency_ms` (the dense network in TFLite)
    are taken; where there are fewer than wanted, the fastest of the others make up the number.

    Raises `ContractError` where the ratio is set but `dense_latency_ms` is not known, and where a candidate has no
    latency.
    """
    latencies = np.array([_latency_ms(item) for item in front], dtype=np.float64)
    order = np.argsort(latencies, kind="stable")
    allowed = len(order)
    if config.max_latency_ratio is not None:
        if dense_latency_ms is None:
            raise ContractError(
                "selection.max_latency_ratio needs the latency of the dense TFLite network, which was not measured: "
                "leave it out, or measure the baseline"
            )
        bound = config.max_latency_ratio * dense_latency_ms
        allowed = max(int(np.count_nonzero(latencies <= bound)), min(config.candidates, len(order)))
    order = order[:allowed]
    return tuple(front[int(order[place])] for place in spread_over(latencies[order], config.candidates))


def best_fronts(
    archive: Sequence[EvaluatedCandidate], objectives: Sequence[Objective], count: int
) -> list[EvaluatedCandidate]:
    """At most `count` feasible candidates: the front, then the front of the rest, and so on; of a front that is too
    long, points spread over its latencies.
    """
    chosen: list[EvaluatedCandidate] = []
    left = list(archive)
    while left and len(chosen) < count:
        front = front_of(left, objectives)
        if not front:
            break
        latencies = np.array([_latency_ms(item) for item in front], dtype=np.float64)
        order = np.argsort(latencies, kind="stable")
        chosen += [front[order[place]] for place in spread_over(latencies[order], count - len(chosen))]
        taken = {item.candidate.genome for item in front}
        left = [item for item in left if item.candidate.genome not in taken]
    return chosen


def spread_over(values: FloatArray, count: int) -> tuple[int, ...]:
    """Indices of at most `count` of the ascending `values` (n,), as evenly spaced in value as they allow.

    Both ends are among them (the smallest, for one). Each of `count` even targets takes the nearest value that is left,
    ends first; ties go to the smaller.
    """
    if count < 1:
        raise ValueError(f"cannot pick {count} values")
    if len(values) <= count:
        return tuple(range(len(values)))
    targets = np.linspace(values[0], values[-1], count)
    left = np.ones(len(values), dtype=np.bool_)
    for target in (targets[0], *targets[:0:-1]):
        distances = np.where(left, np.abs(values - target), np.inf)
        left[int(np.argmin(distances))] = False
    return tuple(int(i) for i in np.flatnonzero(~left))


def _latency_ms(item: EvaluatedCandidate) -> float:
    latency_ms = item.evaluation.metrics.get(Metric.LATENCY_MS)
    if latency_ms is None:
        raise ContractError(f"candidate {item.candidate.genome} has no predicted latency to spread the selection over")
    return latency_ms
