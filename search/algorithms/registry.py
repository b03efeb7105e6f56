"""The search methods by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from device_agent.contracts import ContractError
from search.algorithms.base import Searcher
from search.domain.config import Method
from search.domain.objective import Metric, Objective
from search.domain.space import SearchSpace


def make_searcher(
    method: Method | str, space: SearchSpace, *, population: int, seed: int, objectives: Sequence[Objective]
) -> Searcher:
    """A new searcher. `objectives` says what the columns that it will be told mean.

    Raises `ContractError` on an unknown method, and where the method cannot work on these objectives.
    """
    try:
        make = SEARCHERS[Method(method)]
    except ValueError:
        raise ContractError(f"unknown search method {method!r}; known are {', '.join(SEARCHERS)}") from None
    return make(space, population, seed, tuple(o.metric for o in objectives))


def _make_jcw(space: SearchSpace, population: int, seed: int, metrics: Sequence[Metric]) -> Searcher:
    from search.algorithms.jcw import JcwSearcher

    if Metric.LATENCY_MS not in metrics:
        raise ContractError(
            f"the method 'jcw' spreads its candidates over latency, but the objectives are {', '.join(metrics)}: add "
            "latency_ms, or use 'nsga2'"
        )
    return JcwSearcher(space, population=population, seed=seed, latency_index=metrics.index(Metric.LATENCY_MS))


def _make_nsga2(space: SearchSpace, population: int, seed: int, metrics: Sequence[Metric]) -> Searcher:
    # Imported here: pymoo takes a second to load, which the other methods need not pay.
    from search.algorithms.nsga2 import Nsga2Searcher

    return Nsga2Searcher(space, population=population, seed=seed)


def _make_random(space: SearchSpace, population: int, seed: int, metrics: Sequence[Metric]) -> Searcher:
    from search.algorithms.random_search import RandomSearcher

    return RandomSearcher(space, population=population, seed=seed)


SEARCHERS: dict[Method, Callable[[SearchSpace, int, int, Sequence[Metric]], Searcher]] = {
    Method.JCW: _make_jcw,
    Method.NSGA2: _make_nsga2,
    Method.RANDOM: _make_random,
}
