"""The search methods by name."""

from __future__ import annotations

from collections.abc import Callable

from device_agent.contracts import ContractError
from search.algorithms.base import PopulationSearcher, Searcher
from search.algorithms.repair import least_violating
from search.domain.config import Method
from search.problem import SearchProblem


def make_searcher(
    method: Method | str,
    problem: SearchProblem,
    *,
    population: int,
    seed: int,
    reproduce_reference: bool = False,
    seed_with: Method | None = None,
    rank: int = 1,
) -> Searcher:
    """A new searcher. With `reproduce_reference`, the operators as their authors released them; with `seed_with`
    exact, half of the first generation is that of the exact front of estimated errors. `rank` is that of the polynomial
    of `three_dimensions`.

    Raises `ContractError` on an unknown method, and where the method cannot work on this problem; `InfeasibleBudget`
    where no genome meets the bounds on known figures.
    """
    try:
        name = Method(method)
    except ValueError:
        raise ContractError(f"unknown search method {method!r}; known are {', '.join(SEARCHERS)}") from None
    makers = REFERENCES if reproduce_reference else SEARCHERS
    if name not in makers:
        raise ContractError(
            f"reproduce_reference is there for {', '.join(REFERENCES)}, not for {name.value!r}: leave it out"
        )
    if rank != 1 and name is not Method.THREE_DIMENSIONS:
        raise ContractError(f"rank {rank!r} is for the method 'three_dimensions', not for {name.value!r}: leave it out")
    if problem.known_constraints:
        least_violating(problem)
    if rank != 1:
        return _make_three_dimensions(problem, population, seed, rank)
    searcher = makers[name](problem, population, seed)
    if seed_with is None:
        return searcher
    from search.algorithms.seeded import SeededSearcher

    if not isinstance(searcher, PopulationSearcher):
        raise ContractError(f"the method {name.value!r} has no population that {seed_with.value!r} could seed")
    return SeededSearcher(searcher, problem, population=population, seed=seed)


def _make_jcw(problem: SearchProblem, population: int, seed: int) -> Searcher:
    from search.algorithms.jcw import JcwSearcher

    return JcwSearcher(problem, population=population, seed=seed)


def _make_jcw_reference(problem: SearchProblem, population: int, seed: int) -> Searcher:
    from search.algorithms.jcw_reference import JcwReferenceSearcher

    return JcwReferenceSearcher(problem, population=population, seed=seed)


def _make_nsga2(problem: SearchProblem, population: int, seed: int) -> Searcher:
    # Imported here: pymoo takes a second to load, which the other methods need not pay.
    from search.algorithms.nsga2 import Nsga2Searcher

    return Nsga2Searcher(problem, population=population, seed=seed)


def _make_random(problem: SearchProblem, population: int, seed: int) -> Searcher:
    from search.algorithms.random_search import RandomSearcher

    return RandomSearcher(problem, population=population, seed=seed)


def _make_aacp(problem: SearchProblem, population: int, seed: int) -> Searcher:
    from search.algorithms.aacp import AacpSearcher

    return AacpSearcher(problem, population=population, seed=seed)


def _make_exact(problem: SearchProblem, population: int, seed: int) -> Searcher:
    from search.algorithms.exact_search import ExactSearcher

    return ExactSearcher(problem, population=population, seed=seed)


def _make_rule_mapping(problem: SearchProblem, population: int, seed: int) -> Searcher:
    from search.algorithms.rule_mapping import RuleMappingSearcher

    return RuleMappingSearcher(problem, population=population, seed=seed)


def _make_policy_gradient(problem: SearchProblem, population: int, seed: int) -> Searcher:
    from search.algorithms.policy_gradient import PolicyGradientSearcher

    return PolicyGradientSearcher(problem, population=population, seed=seed)


def _make_three_dimensions(problem: SearchProblem, population: int, seed: int, rank: int = 1) -> Searcher:
    from search.algorithms.three_dimensions import ThreeDimensionsSearcher

    return ThreeDimensionsSearcher(problem, population=population, seed=seed, rank=rank)


SEARCHERS: dict[Method, Callable[[SearchProblem, int, int], Searcher]] = {
    Method.JCW: _make_jcw,
    Method.AACP: _make_aacp,
    Method.NSGA2: _make_nsga2,
    Method.RANDOM: _make_random,
    Method.EXACT: _make_exact,
    Method.RULE_MAPPING: _make_rule_mapping,
    Method.POLICY_GRADIENT: _make_policy_gradient,
    Method.THREE_DIMENSIONS: _make_three_dimensions,
}

#: Methods of which the released code's own operators can be had.
REFERENCES: dict[Method, Callable[[SearchProblem, int, int], Searcher]] = {Method.JCW: _make_jcw_reference}
