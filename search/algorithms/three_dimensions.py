"""Pruning in three dimensions (Wang et al., arXiv 2010.04879): chains along depth, width and resolution, a polynomial
of low rank through them, and the best legal networks within budgets.

First the unpruned network, the network without each block, and the chains of width and resolution are evaluated; then
the chain of depth, in the order that the single blocks told; then, in each generation, what the polynomial holds for
the best network within each of a range of latencies. With every generation the polynomial learns from all that was
evaluated. Variables of other kinds stay unpruned. The method ends by itself when it has nothing new to propose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from device_agent.contracts import ContractError
from search.algorithms.axis_model import (
    AxisModel,
    PowerCost,
    fit_axis_model,
    fit_power_cost,
    solve_kkt,
)
from search.algorithms.axis_points import AxisPoints
from search.algorithms.base import SearcherState
from search.algorithms.history import History, check_told
from search.domain.objective import Metric
from search.domain.space import Genome
from search.pareto import BoolArray, FloatArray
from search.problem import SearchProblem

#: Parts of the unpruned network's cost for which the continuous optimum is reported.
REPORTED_BUDGETS = (0.75, 0.5, 0.25)
#: The cost d w^2 r^2 (Wang et al.).
_PAPER_EXPONENTS = {"depth": 1.0, "width": 2.0, "resolution": 2.0}


class ThreeDimensionsSearcher:
    """See `Searcher` for the contract. Nothing is drawn at random: all seeds are the same search.

    Args:
        problem: With loss or error among the objectives, and latency known.
        population: At most so many genomes in a generation, and budgets in it.
        seed: Only checked to belong to a stored state.
        rank: Terms of the polynomial.
    """

    METHOD = "three_dimensions"

    def __init__(self, problem: SearchProblem, *, population: int, seed: int, rank: int = 1) -> None:
        self._problem = problem
        self._known = problem.require_known([Metric.LATENCY_MS], self.METHOD)
        metric = Metric.LOSS if Metric.LOSS in problem.metrics else Metric.ERROR
        self._column = problem.column(metric, self.METHOD, "fits the accuracy of networks")
        self._is_loss = metric is Metric.LOSS
        self._axes = AxisPoints(problem.space)
        self._population = population
        self._rank = rank
        self._history = History(method=self.METHOD, space=problem.space, population=population, seed=seed)
        #: What was told, in order: a value that grows with accuracy, None where undefined.
        self._told: dict[Genome, float | None] = {}
        #: Generations that the model proposed.
        self._model_generations = 0

    def ask(self) -> tuple[Genome, ...]:
        for stage in (self._first_points(), self._depth_points()):
            missing = [genome for genome in dict.fromkeys(stage) if genome not in self._told]
            if missing:
                return tuple(missing[: self._population])
        return self._model_points()

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        values, _ = check_told(self._problem, genomes, objectives, violations)
        self._model_generations += self._has_chains()
        for genome, row in zip(genomes, values, strict=True):
            value = float(row[self._column])
            # A polynomial with factors that never fall wants values that are positive and grow with accuracy.
            grown = math.exp(-value) if self._is_loss else 1.0 - value
            self._told[tuple(int(g) for g in genome)] = grown if math.isfinite(grown) else None
        self._history.advance(genomes)

    def state(self) -> SearcherState:
        told = [[list(genome), value] for genome, value in self._told.items()]
        return {
            **self._history.to_json(),
            "told": told,
            "model_generations": self._model_generations,
            "optima": self.optima(),
        }

    def restore(self, state: SearcherState) -> None:
        self._history.restore(state)
        try:
            told = {tuple(int(g) for g in genome): None if v is None else float(v) for genome, v in state["told"]}
            self._told, self._model_generations = told, int(state["model_generations"])
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"the stored state of the searcher is damaged: {error!r}") from None

    def optima(self) -> list[dict[str, Any]]:
        """The continuous optima for `REPORTED_BUDGETS`, by the paper's cost and by the latency as a power law, with
        their KKT residuals; none before the chains are complete.
        """
        if not self._has_chains():
            return []
        model = self._model()
        genomes = self._axes.legal(self._order())
        latency = fit_power_cost(self._axes.coordinates(genomes), self._latencies(genomes))
        paper = PowerCost(scale=1.0, exponents=tuple(_PAPER_EXPONENTS[name] for name in self._axes.names))
        found = []
        for name, cost in (("paper", paper), ("latency_ms", latency)):
            whole = math.exp(float(cost.log(np.ones((1, len(self._axes.names))))[0]))
            for part in REPORTED_BUDGETS:
                point = solve_kkt(model, cost, part * whole)
                if point is not None:
                    found.append(
                        {
                            "cost": name,
                            "exponents": list(cost.exponents),
                            "axes": list(self._axes.names),
                            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(point).items()},
                        }
                    )
        return found

    def report(self) -> tuple[str, ...]:
        """A line for each of `optima`, and for each latency among them one for the legal network that holds most."""
        lines = []
        for found in self.optima():
            point = self._told_point(found["point"])
            budget = (
                f"{found['budget']:.3g} ms" if found["cost"] == "latency_ms" else f"{found['budget']:.0%} of d w2 r2"
            )
            residual = max(*found["residuals"], found["cost_residual"])
            lines.append(f"continuous optimum at {budget}: {point} (largest KKT residual {residual:.1g})")
            if found["cost"] == "latency_ms":
                lines.append(f"legal optimum at {budget}: {self._legal_optimum(found['budget'])}")
        return tuple(lines)

    def _told_point(self, point: Sequence[float]) -> str:
        return ", ".join(f"{name} {x:.2f}" for name, x in zip(self._axes.names, point, strict=True))

    def _legal_optimum(self, budget_ms: float) -> str:
        """Where the model holds most of all legal networks within a latency, by the latency table itself."""
        genomes = self._axes.legal(self._order())
        latencies = self._latencies(genomes)
        within = np.flatnonzero((latencies <= budget_ms) & (self._problem.known_violations(np.array(genomes)) <= 0))
        if not len(within):
            return "none within the bounds"
        points = self._axes.coordinates(genomes)[within]
        best = int(np.argmax(self._model()(points)))
        return f"{self._told_point(points[best])} ({latencies[within[best]]:.3g} ms)"

    # -- the points of each stage -----------------------------------------------------------------------------------

    def _first_points(self) -> tuple[Genome, ...]:
        axes = self._axes
        return (axes.origin, *axes.without_one_block(), *axes.width_chain(), *axes.resolution_chain())

    def _depth_points(self) -> tuple[Genome, ...]:
        return self._axes.depth_chain(self._order())

    def _has_chains(self) -> bool:
        first = self._first_points()
        return all(g in self._told for g in first) and all(g in self._told for g in self._depth_points())

    def _order(self) -> list[int]:
        """The blocks, first those whose removal costs least accuracy for the latency that it saves. inferred: the paper
        removes by the discrimination of features (as its authors' earlier work does), which takes another training.
        """
        if not self._axes.blocks:
            return []
        single = self._axes.without_one_block()
        origin = self._told.get(self._axes.origin)
        saved = self._latencies((self._axes.origin,))[0] - self._latencies(single)
        costs = []
        for genome, saving in zip(single, saved, strict=True):
            value = self._told.get(genome)
            lost = math.inf if value is None or origin is None else max(0.0, origin - value)
            costs.append((lost / max(float(saving), 1e-9), -float(saving)))
        return [position for _, position in sorted(zip(costs, self._axes.blocks, strict=True))]

    def _model(self) -> AxisModel:
        # Others, which were told from outside, are more than their three coordinates say.
        legal = {*self._first_points(), *self._axes.legal(self._order())}
        known = [(genome, value) for genome, value in self._told.items() if value is not None and genome in legal]
        points = self._axes.coordinates([genome for genome, _ in known])
        return fit_axis_model(points, np.array([value for _, value in known]), rank=self._rank)

    def _model_points(self) -> tuple[Genome, ...]:
        """The best legal networks, by the model, within budgets spread over the latencies, as far as they are new; then
        whatever else is best within any budget.
        """
        if not any(value is not None for value in self._told.values()):
            return ()
        genomes = self._axes.legal(self._order())
        figures = self._known(genomes)[Metric.LATENCY_MS]
        allowed: BoolArray = self._problem.known_violations(np.array(genomes)) <= 0
        rows = np.flatnonzero(allowed)
        if not len(rows):
            return ()
        rows = rows[np.argsort(figures[rows], kind="stable")]
        values = self._model()(self._axes.coordinates([genomes[r] for r in rows]))
        # The best so far at each latency, in order: what no cheaper network is as good as.
        leading = values > np.concatenate(([-np.inf], np.maximum.accumulate(values)[:-1])) + 1e-12
        front, latencies = rows[leading], figures[rows[leading]]
        count = self._population * (self._model_generations + 1)
        budgets = np.geomspace(latencies[0], latencies[-1], count) * (1 + 1e-12)
        within = [int(front[max(0, np.searchsorted(latencies, b, side="right") - 1)]) for b in budgets]
        proposed = dict.fromkeys(genomes[r] for r in (*within, *(int(r) for r in front)))
        return tuple(g for g in proposed if g not in self._told)[: self._population]

    def _latencies(self, genomes: Sequence[Genome]) -> FloatArray:
        return self._known(np.array(genomes))[Metric.LATENCY_MS]
