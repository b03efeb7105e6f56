"""The problem that every search method solves: what may vary, what to minimise and respect, what is known for free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from device_agent.contracts import ContractError
from search.algorithms.factors import Factor
from search.domain.objective import Constraint, Metric, Objective
from search.domain.space import Genome, SearchSpace
from search.mapping import MappingInput
from search.pareto import FloatArray, IntArray

#: Figures of genomes (n, variables) that cost nothing to know: an array (n,) for each metric, always the same ones.
KnownFigures = Callable[[ArrayLike], Mapping[Metric, FloatArray]]

#: One genome for each design: maps genomes (n, variables) to equal designs, equal ones to one (`search.canonical`).
Canonical = Callable[[ArrayLike], IntArray]

#: Latencies in ms of genomes (n, variables) by device, an array (n,) each.
KnownLatencies = Callable[[ArrayLike], Mapping[str, FloatArray]]

#: The tables whose sum is one of the known metrics.
KnownTables = Callable[[Metric], tuple[Factor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchProblem:
    """One statement for all methods. `known` gives latency and counts without evaluating a network's accuracy.

    Methods that need a figure in advance say so when they are made; without `known` the others work as well.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    known: KnownFigures | None = None
    #: The metrics that `known` gives.
    known_metrics: frozenset[Metric] = field(default_factory=frozenset)
    #: None: every genome is a design of its own.
    canonical: Canonical | None = None
    #: The same figures as sums of tables over few variables each, for methods that optimise over them exactly.
    tables: KnownTables | None = None
    #: Tables that add up to an estimate of what pruning costs in loss (`search.reconstruction`); empty without one.
    errors: tuple[Factor, ...] = ()
    #: Layers with their latency tables, and pruning rates, where a search has them.
    mapping: MappingInput | None = None
    #: Latencies by device, where constraints name devices; and each device's as a sum of tables.
    known_latencies: KnownLatencies | None = None
    device_tables: Callable[[str], tuple[Factor, ...]] | None = None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What the columns of the objectives mean."""
        return tuple(objective.metric for objective in self.objectives)

    def column(self, metric: Metric, method: str, reason: str) -> int:
        """The column of `metric` among the objectives. Raises `ContractError`, with `reason`, where it is not there."""
        if metric not in self.metrics:
            raise ContractError(
                f"the method {method!r} {reason}, but the objectives are {', '.join(self.metrics)}: add {metric}, or "
                "use another method"
            )
        return self.metrics.index(metric)

    def require_known(self, metrics: Sequence[Metric], method: str) -> KnownFigures:
        """`known`, where it gives all of `metrics`. Raises `ContractError` otherwise."""
        missing = [metric for metric in metrics if metric not in self.known_metrics]
        if self.known is None or missing:
            raise ContractError(
                f"the method {method!r} must know {', '.join(metrics)} of a candidate before it is evaluated, but "
                f"{', '.join(missing) or 'nothing'} is not a figure of the genome alone"
            )
        return self.known

    def designs(self, genomes: Sequence[Genome]) -> tuple[Genome, ...]:
        """The canonical genome of each of `genomes`."""
        if self.canonical is None or not len(genomes):
            return tuple(genomes)
        return tuple(tuple(int(g) for g in row) for row in self.canonical(genomes))

    @property
    def known_constraints(self) -> tuple[Constraint, ...]:
        """The constraints on what is known of a genome alone."""
        return tuple(c for c in self.constraints if self._is_known(c))

    def known_bounded(self, genomes: IntArray) -> list[tuple[Constraint, FloatArray]]:
        """The known constraints, each with the figure (n,) that it bounds."""
        bounds = self.known_constraints
        figures = self.known(genomes) if self.known is not None and any(c.device is None for c in bounds) else {}
        by_device = (
            self.known_latencies(genomes)
            if self.known_latencies is not None and any(c.device is not None for c in bounds)
            else {}
        )
        return [(c, figures[c.metric] if c.device is None else by_device[c.device]) for c in bounds]

    def known_violations(self, genomes: IntArray) -> FloatArray:
        """The sum of relative excesses (n,) over the constraints on known figures."""
        excess = np.zeros(len(genomes))
        for bound, values in self.known_bounded(genomes):
            excess += np.maximum(0.0, values / bound.max - 1.0)
        return excess

    def _is_known(self, constraint: Constraint) -> bool:
        if constraint.device is not None:
            return self.known_latencies is not None
        return self.known is not None and constraint.metric in self.known_metrics
