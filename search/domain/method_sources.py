"""Where each search method comes from, for readers of a result."""

from __future__ import annotations

from dataclasses import dataclass

from search.domain.config import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSource:
    """A method in a few words, and the publication that it follows; "" for one of Kerf's own."""

    words: str
    publication: str = ""


METHOD_SOURCES = {
    Method.JCW: MethodSource(
        words="multi-objective evolution of channels and weights with uniform non-dominated selection",
        publication="T. Zhao et al., arXiv 2110.08013",
    ),
    Method.AACP: MethodSource(
        words="differential evolution under several constraints", publication="L. Lin et al., arXiv 2102.00390"
    ),
    Method.THREE_DIMENSIONS: MethodSource(
        words="a polynomial of accuracy over depth, width and resolution, solved within budgets",
        publication="W. Wang et al., arXiv 2010.04879",
    ),
    Method.RULE_MAPPING: MethodSource(
        words="rules that give each layer a pruning scheme", publication="Y. Gong et al., arXiv 2111.11581"
    ),
    Method.POLICY_GRADIENT: MethodSource(
        words="a policy, taught by REINFORCE, that gives each layer a pruning scheme",
        publication="Y. Gong et al., arXiv 2111.11581",
    ),
    Method.NSGA2: MethodSource(
        words="non-dominated sorting genetic algorithm, a baseline",
        publication="K. Deb et al., IEEE Transactions on Evolutionary Computation 6(2), 2002, doi:10.1109/4235.996017",
    ),
    Method.RANDOM: MethodSource(words="random designs, a baseline"),
    Method.EXACT: MethodSource(
        words="the front of estimated layer errors, solved exactly and corrected by evaluations"
    ),
}
