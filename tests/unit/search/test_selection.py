"""Selecting a few candidates of a front."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.contracts import ContractError
from search.domain.candidate import Candidate, EvaluatedCandidate, Evaluation
from search.domain.config import SelectionConfig
from search.domain.objective import Metric
from search.selection import select, spread_over


def front(*latencies_ms: float) -> list[EvaluatedCandidate]:
    return [
        EvaluatedCandidate(
            candidate=Candidate(space_id="s", genome=(i,)),
            evaluation=Evaluation(metrics={Metric.LOSS: -t, Metric.LATENCY_MS: t}),
        )
        for i, t in enumerate(latencies_ms)
    ]


def chosen(points: list[EvaluatedCandidate], dense_latency_ms: float | None = None, **config: object) -> list[float]:
    selected = select(points, SelectionConfig(**config), dense_latency_ms)
    return [item.evaluation.metrics[Metric.LATENCY_MS] for item in selected]


def test_spread_by_hand() -> None:
    assert chosen(front(1, 1.1, 1.2, 1.3, 5, 9), candidates=3) == [1, 5, 9]
    assert chosen(front(9, 1, 5), candidates=8) == [1, 5, 9]
    assert chosen(front(3, 2, 1), candidates=1) == [1]
    assert chosen([], candidates=3) == []


def test_ratio_keeps_the_fast_part() -> None:
    points = front(1, 2, 3, 4, 5, 6, 7, 8)
    assert chosen(points, 10.0, candidates=3, max_latency_ratio=0.5) == [1, 3, 5]


def test_ratio_gives_way_where_there_are_too_few() -> None:
    points = front(1, 2, 7, 8, 9)
    assert chosen(points, 10.0, candidates=3, max_latency_ratio=0.25) == [1, 2, 7]
    assert chosen(points, 10.0, candidates=9, max_latency_ratio=0.25) == [1, 2, 7, 8, 9]


def test_ratio_needs_the_dense_latency() -> None:
    with pytest.raises(ContractError, match="needs the latency of the dense TFLite network"):
        chosen(front(1, 2), candidates=1, max_latency_ratio=0.5)


@given(st.lists(st.floats(0, 1e3), max_size=40), st.integers(1, 12))
def test_spread_properties(values: list[float], count: int) -> None:
    ordered = np.sort(np.array(values))
    picked = spread_over(ordered, count)
    assert len(picked) == len(set(picked)) == min(count, len(values))
    assert list(picked) == sorted(picked)
    if len(values) and count > 1:
        assert ordered[picked[0]] == ordered[0]
        assert ordered[picked[-1]] == ordered[-1]
