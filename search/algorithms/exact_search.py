"""`exact`: the front of estimated errors against latency, solved exactly, generation by generation.

The error of a candidate is a sum of tables (`error_model`), and so is its latency. The points of the lower hull of both
are found exactly by variable elimination over the whole space (`exact.ExactFront`, as SPDY, arXiv 2201.13096, does for
one budget and sparsities only). Each generation evaluates points of that front, spread over its latencies; what
they lose corrects the tables, and the next front is solved anew. A quarter of each generation, and what the front is
short of, comes from fronts of tables that are drawn around the believed ones (Thompson sampling), so that what the
estimates get wrong by a little is tried, too.

Bounds on known figures are kept: points that break one are not proposed, weights of several figures at once are drawn,
and points on the bounds come from a mixed-integer programme with a row for each bound.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from device_agent.contracts import ContractError
from search.algorithms.base import SearcherState
from search.algorithms.error_model import ErrorModel
from search.algorithms.exact import Bound, ExactFront, best_under
from search.algorithms.factors import Factor
from search.algorithms.history import History, check_told
from search.algorithms.sampling import draw_at_level, draw_new, genome_code, initial_genomes
from search.algorithms.told import ToldFigures
from search.domain.objective import Constraint, Metric
from search.domain.space import Genome, VariableKind
from search.pareto import FloatArray, IntArray
from search.problem import SearchProblem

#: Points of the hull that are solved for, relative to the candidates that are wanted.
_HULL_POINTS = 2
#: The part of a generation that comes from the believed front.
_BELIEVED_PART = 0.75
#: Fronts of drawn tables that are solved for at most in a generation, and how far apart they are (sigma of the
#: logarithms of the weights), growing with each.
_DRAWS = 3
_DRAW_STRENGTH = 0.15
#: Points on bounds from mixed-integer programmes in a generation, and branch-and-bound nodes for each.
_BOUNDED_POINTS = 2
_MAX_NODES = 200
_RELATIVE_GAP = 1e-3
#: Mixes of several bounded figures that are drawn, relative to the population.
_MIXES = 2


class ExactSearcher:
    """See `Searcher` for the contract. The one objective that is not known in advance is the error."""

    METHOD = "exact"

    def __init__(self, problem: SearchProblem, *, population: int, seed: int) -> None:
        """Raises `ContractError` where latency is not known as tables, or not one objective must be evaluated."""
        unknown = [i for i, metric in enumerate(problem.metrics) if metric not in problem.known_metrics]
        problem.require_known([Metric.LATENCY_MS], self.METHOD)
        if problem.tables is None:
            raise ContractError(
                "the method 'exact' solves over tables of latencies, but this problem only gives latencies of whole "
                "candidates: give the tables (SearchProblem.tables), or use jcw"
            )
        if len(unknown) != 1:
            raise ContractError(
                f"the method 'exact' minimises one figure that must be evaluated (loss or error) against known ones, "
                f"but the objectives {', '.join(problem.metrics)} have {len(unknown)}: give exactly one of them"
            )
        self._problem = problem
        self._space = problem.space
        self._counts = problem.space.num_choices
        self._population = population
        self._seed = seed
        self._column = unknown[0]
        self._history = History(method=self.METHOD, space=problem.space, population=population, seed=seed)
        self._errors = ErrorModel(problem.space, problem.errors)
        #: What is minimised, and the violation, of every genome that was evaluated.
        self._told = ToldFigures(problem.space.num_choices, 2)
        self._num_choices = np.array(problem.space.num_choices, dtype=np.int64)
        self._ordered = np.array([v.kind is not VariableKind.SCHEME for v in problem.space.variables])
        others = [m for m in problem.metrics if m in problem.known_metrics and m is not Metric.LATENCY_MS]
        bounded = [c.metric for c in problem.known_constraints if c.device is None]
        wanted = dict.fromkeys((Metric.LATENCY_MS, *others, *bounded))
        self._costs: dict[Metric, tuple[Factor, ...]] = {metric: problem.tables(metric) for metric in wanted}
        #: Figures that are traded against the error: more than one where there are bounds or objectives on them.
        self._traded = list(wanted)
        self._asked: tuple[Genome, ...] | None = None

    def ask(self) -> tuple[Genome, ...]:
        if self._asked is None:
            self._asked = self._made()
        return self._asked

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        values, excess = check_told(self._problem, genomes, objectives, violations)
        self._told.learn(genomes, np.column_stack((values[:, self._column], excess)))
        self._history.advance(genomes)
        self._asked = None

    def state(self) -> SearcherState:
        return {**self._history.to_json(), "told": self._told.to_json()}

    def restore(self, state: SearcherState) -> None:
        self._history.restore(state)
        try:
            self._told.restore(state["told"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ContractError(f"the stored state of the searcher is damaged: {error!r}") from None
        self._asked = None

    def report(self) -> tuple[str, ...]:
        """Where variables depend on each other too much for an exact solution, how far the front may be from it."""
        model = self._fitted()
        if not model.is_ready:
            return ()
        front = self._front(model.factors())
        front.hull(self._population)
        if front.gap <= 0.0:
            return ()
        return (
            "the widths of this network depend on each other too much to be solved exactly: by the estimates, points "
            f"of the front are within {front.gap:.1%} of its range of the best. Fewer channel counts "
            "(space.channels.max_choices) bring them closer",
        )

    def _made(self) -> tuple[Genome, ...]:
        """The next generation. The same until the next `tell`."""
        rng = np.random.default_rng([self._seed, self._history.generation])
        model = self._fitted()
        if not model.is_ready:
            drawn = initial_genomes(rng, self._space, self._population)
            return self._filled_up(rng, [g for g in drawn if self._is_new(g)])
        pool = self._solutions(rng, model)
        return self._filled_up(rng, pool)

    def _fitted(self) -> ErrorModel:
        self._errors.fit(self._told.genomes, self._told.rows[:, 0])
        return self._errors

    def _solutions(self, rng: np.random.Generator, model: ErrorModel) -> list[Genome]:
        """Up to a population of new feasible genomes, from the believed front first."""
        window = self._window()
        found: dict[Genome, None] = {}
        for draw in range(1 + _DRAWS):
            errors = model.factors() if draw == 0 else model.factors(rng, _DRAW_STRENGTH * draw)
            missing = self._population - len(found)
            solved = self._solved(rng, errors, _HULL_POINTS * missing, with_bounds=draw == 0)
            new = [g for g in self._within(solved, window) if g not in found]
            wanted = round(_BELIEVED_PART * self._population) if draw == 0 else missing
            found |= dict.fromkeys(self._spread(rng, new, wanted))
            if len(found) >= self._population:
                break
        return list(found)

    def _solved(
        self, rng: np.random.Generator, errors: Sequence[Factor], count: int, *, with_bounds: bool
    ) -> list[Genome]:
        """At most `count` points of the hull of error and latency, and such of mixes of figures and on the bounds;
        known ones among them."""
        points = [p.genome for p in self._front(errors).hull(count)]
        if len(self._traded) > 1:
            points += self._mixed(rng, errors)
        if with_bounds:
            points += self._on_bounds(rng, errors)
        return points

    def _mixed(self, rng: np.random.Generator, errors: Sequence[Factor]) -> list[Genome]:
        """Hulls of the error against random mixes of the figures, each figure in units of its range."""
        ends = np.array([self._space.smallest, self._space.unpruned])
        known = self._problem.require_known(self._traded, self.METHOD)(ends)
        rounds = 4
        points: list[Genome] = []
        for _ in range(rounds):
            shares = rng.dirichlet(np.ones(len(self._traded)))
            mixed = [
                Factor(variables=f.variables, values=share / max(float(np.ptp(known[metric])), 1e-300) * f.values)
                for share, metric in zip(shares, self._traded, strict=True)
                for f in self._costs[metric]
            ]
            front = ExactFront(errors, mixed, self._counts)
            points += [p.genome for p in front.hull(_MIXES * self._population // rounds)]
        return points

    def _on_bounds(self, rng: np.random.Generator, errors: Sequence[Factor]) -> list[Genome]:
        """The best that keeps all bounds, and the best that keeps them with less latency."""
        bounds = [Bound(self._bounded(c), c.max) for c in self._problem.known_constraints]
        if not bounds:
            return []
        latency = self._costs[Metric.LATENCY_MS]
        known = self._problem.require_known([Metric.LATENCY_MS], self.METHOD)
        solve = functools.partial(best_under, node_limit=_MAX_NODES, relative_gap=_RELATIVE_GAP)
        points = []
        best = solve(errors, bounds, self._counts)
        if best is None:
            return []
        points.append(best)
        low = float(self._front(()).weighted(0.0, 1.0).cost)
        high = float(known(np.array([best]))[Metric.LATENCY_MS][0])
        for _ in range(_BOUNDED_POINTS - 1):
            tighter = Bound(latency, low + (high - low) * float(rng.uniform(0.1, 0.95)))
            found = solve(errors, [*bounds, tighter], self._counts)
            if found is not None:
                points.append(found)
        return points

    def _bounded(self, constraint: Constraint) -> tuple[Factor, ...]:
        """Tables of what is bounded: a row of the programme for each bound, and so for each device."""
        if constraint.device is None:
            return self._costs[constraint.metric]
        assert self._problem.device_tables is not None
        return self._problem.device_tables(constraint.device)

    def _front(self, errors: Sequence[Factor]) -> ExactFront:
        return ExactFront(errors, self._costs[Metric.LATENCY_MS], self._counts)

    def _within(self, genomes: Sequence[Genome], window: tuple[float, float]) -> list[Genome]:
        """Those that were never told, keep all bounds on known figures, and have a latency in `window`."""
        new = [g for g in dict.fromkeys(self._problem.designs(genomes)) if self._is_new(g)] if genomes else []
        if not new:
            return []
        rows = np.array(new, dtype=np.int64)
        kept = self._problem.known_violations(rows) <= 0
        if np.isfinite(window).any():
            latency = self._latencies(rows)
            kept &= (latency >= window[0]) & (latency <= window[1])
        return [g for g, is_kept in zip(new, kept, strict=True) if is_kept]

    def _window(self) -> tuple[float, float]:
        """The latencies that are worth trying, where candidates broke bounds that only their evaluation could tell:
        around those of the feasible ones, or of the half that broke them least."""
        excess = self._told.rows[:, 1]
        if not (excess > 0).any():
            return -np.inf, np.inf
        limit = 0.0 if (excess <= 0).any() else float(np.median(excess))
        rows = self._told.genomes[excess <= limit]
        latency = self._latencies(rows)
        margin = 0.1 * float(np.ptp(latency))
        return float(latency.min()) - margin, float(latency.max()) + margin

    def _spread(self, rng: np.random.Generator, genomes: Sequence[Genome], count: int) -> list[Genome]:
        """At most `count`: the ends in latency, and between them any one of each of equal shares."""
        if len(genomes) <= count:
            return list(genomes)
        order = np.argsort(self._latencies(np.array(genomes, dtype=np.int64)), kind="stable")
        edges = np.linspace(0, len(genomes), count + 1)
        places = [int(rng.integers(round(a), max(round(b), round(a) + 1))) for a, b in itertools.pairwise(edges)]
        places[0], places[-1] = 0, len(genomes) - 1
        return [genomes[order[p]] for p in dict.fromkeys(places)]

    def _filled_up(self, rng: np.random.Generator, genomes: list[Genome]) -> tuple[Genome, ...]:
        """With neighbours of what is there, or of what was best so far, and at last with any new genome."""
        found = {genome_code(g, self._counts): g for g in genomes[: self._population]}
        parents = genomes or [tuple(row) for row in self._told.genomes.tolist()]
        if parents and len(found) < self._population:
            children = [
                child
                for _ in range(4 * self._population)
                if self._is_new(child := self._neighbour(rng, parents[int(rng.integers(len(parents)))]))
            ]
            for child in self._within(children, (-np.inf, np.inf))[: self._population - len(found)]:
                found.setdefault(genome_code(child, self._counts), child)
        missing = self._population - len(found)
        if missing:
            level = functools.partial(rng.uniform, 0.0, 1.0)
            drawn = draw_new(
                rng,
                self._space,
                missing,
                self._history.seen | dict.fromkeys(found),
                lambda: draw_at_level(rng, self._space, float(level())),
            )
            found |= {genome_code(g, self._counts): g for g in drawn}
        return tuple(found.values())

    def _neighbour(self, rng: np.random.Generator, genome: Genome) -> Genome:
        place = int(rng.integers(len(genome)))
        gene, count = genome[place], int(self._num_choices[place])
        moved = gene + int(rng.choice((-1, 1))) if self._ordered[place] else int(rng.integers(count))
        return (*genome[:place], min(count - 1, max(0, moved)), *genome[place + 1 :])

    def _is_new(self, genome: Genome) -> bool:
        return genome_code(genome, self._counts) not in self._history.seen

    def _latencies(self, rows: IntArray) -> FloatArray:
        return self._problem.require_known([Metric.LATENCY_MS], self.METHOD)(rows)[Metric.LATENCY_MS]
