"""Bounds on several known figures at once: met exactly where they can be, refused with the reason where not."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from device_agent.contracts import PruningScheme
from search.algorithms.factors import Factor, evaluate
from search.algorithms.repair import least_violating
from search.domain.objective import Constraint, Metric
from search.domain.space import SchemeChoice, SearchSpace, Variable, VariableKind
from search.errors import InfeasibleBudget
from search.problem import SearchProblem

SPACE = SearchSpace(
    variables=tuple(Variable(kind=VariableKind.CHANNELS, target=f"g{i}", choices=(1, 2)) for i in range(4)),
    default_scheme=SchemeChoice(scheme=PruningScheme.DENSE),
)
#: Each variable's second choice costs MACs and saves latency, so that the two pull apart.
TABLES = {
    Metric.MACS: tuple(Factor(variables=(i,), values=np.array([1.0, 3.0])) for i in range(4)),
    Metric.LATENCY_MS: (
        *(Factor(variables=(i,), values=np.array([4.0, 2.0])) for i in range(4)),
        # Together, the first two are much faster: no single step leads there.
        Factor(variables=(0, 1), values=np.array([[0.0, 6.0], [6.0, -3.0]])),
    ),
}


def problem(macs: float, latency_ms: float) -> SearchProblem:
    return SearchProblem(
        space=SPACE,
        objectives=(),
        constraints=(
            Constraint(metric=Metric.MACS, max=macs),
            Constraint(metric=Metric.LATENCY_MS, max=latency_ms),
        ),
        known=lambda genomes: {m: evaluate(f, np.asarray(genomes)) for m, f in TABLES.items()},
        known_metrics=frozenset(TABLES),
        tables=functools.partial(TABLES.__getitem__),
    )


def test_what_descent_misses_is_found() -> None:
    # (2, 2, 1, 1): 8 MACs, 9 ms; from the smallest (16 ms), each first step to it makes latency worse.
    assert least_violating(problem(8.0, 9.0)) == (1, 1, 0, 0)


def test_a_conflict_names_the_smallest_of_each_with_the_others_kept() -> None:
    with pytest.raises(InfeasibleBudget) as refused:
        least_violating(problem(8.0, 7.0))
    text = str(refused.value)
    assert "each bound can be met, but not all together" in text
    assert "macs <= 8 (the smallest with the others kept is 10)" in text
    assert "latency_ms <= 7 (the smallest with the others kept is 9)" in text


def test_a_bound_that_nothing_meets_is_named_alone() -> None:
    with pytest.raises(InfeasibleBudget, match=r"no candidate meets latency_ms <= 4 \(the smallest is 5\): raise"):
        least_violating(problem(12.0, 4.0))
