"""What every `Searcher` must do. A method's test class inherits `SearcherSuite` and says how it is made."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from device_agent.contracts import ContractError, PruningScheme
from search.algorithms.base import Searcher
from search.algorithms.factors import Factor
from search.algorithms.registry import make_searcher
from search.domain.candidate import Evaluation
from search.domain.config import Method
from search.domain.objective import Constraint, Metric, Objective
from search.domain.space import Genome, SchemeChoice, SearchSpace, Variable, VariableKind
from search.errors import InfeasibleBudget, SearchError
from search.loop import (
    Evaluate,
    front_of,
    objective_matrix,
    run_search,
    state_from_json,
    state_to_json,
    total_violation,
)
from search.pareto import hypervolume
from search.problem import SearchProblem

TWO = (Objective(metric=Metric.LOSS), Objective(metric=Metric.LATENCY_MS))
THREE = (*TWO, Objective(metric=Metric.PARAMETERS))
DENSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SPACE = SearchSpace(
    variables=(
        *(Variable(kind=VariableKind.DENSITY, target=f"conv{i}", choices=DENSITIES) for i in range(12)),
        *(Variable(kind=VariableKind.CHANNELS, target=f"group{i}", choices=(4, 8, 12, 16)) for i in range(6)),
        Variable(kind=VariableKind.SCHEME, target="conv0", choices=("unstructured", "pattern:4x1/4", "group:4x1")),
    ),
    default_scheme=SchemeChoice(scheme=PruningScheme.GROUP, block_filters=4),
)
SMALL_SPACE = SearchSpace(
    variables=tuple(Variable(kind=VariableKind.CHANNELS, target=f"g{i}", choices=(1, 2, 3)) for i in range(3)),
    default_scheme=SchemeChoice(scheme=PruningScheme.DENSE),
)


def landscape(genome: Genome, space: SearchSpace = SPACE) -> Evaluation:
    """Layers differ in cost and in sensitivity; the scheme that is cheaper loses more."""
    place = np.array([g / (n - 1) for g, n in zip(genome, space.num_choices, strict=True)])
    layers = np.arange(len(place))
    cost, sensitivity = 1.0 + (layers * 7 % 5), 1.0 + (layers * 3 % 7)
    latency_ms = float(cost @ (0.1 + place))
    loss = float(sensitivity @ (1.0 - place) ** 2)
    parameters = float(np.sum((1.0 + layers % 3) * (0.2 + place)))
    return Evaluation(metrics={Metric.LOSS: loss, Metric.LATENCY_MS: latency_ms, Metric.PARAMETERS: parameters})


def evaluate(genomes: Sequence[Genome]) -> list[Evaluation]:
    return [landscape(g) for g in genomes]


def known_figures(genomes: ArrayLike, space: SearchSpace = SPACE) -> dict[Metric, np.ndarray]:
    """What a genome alone decides."""
    found = [landscape(tuple(g), space).metrics for g in np.asarray(genomes)]
    return {metric: np.array([f[metric] for f in found]) for metric in (Metric.LATENCY_MS, Metric.PARAMETERS)}


#: Methods know latency in advance where `known` is given.
PROBLEM = SearchProblem(space=SPACE, objectives=TWO)
SMALL_PROBLEM = SearchProblem(space=SMALL_SPACE, objectives=TWO)


def at_most(bound_ms: float) -> tuple[Constraint, ...]:
    return (Constraint(metric=Metric.LATENCY_MS, max=bound_ms),)


def constrained(bounds: Sequence[Constraint]) -> Evaluate:
    def run(genomes: Sequence[Genome]) -> list[Evaluation]:
        found = evaluate(genomes)
        return [Evaluation(metrics=e.metrics, violation=total_violation(e.metrics, bounds)) for e in found]

    return run


def tell_landscape(searcher: Searcher, genomes: Sequence[Genome], objectives=TWO, space: SearchSpace = SPACE) -> None:
    told = [landscape(g, space) for g in genomes]
    searcher.tell(genomes, objective_matrix(told, objectives), np.zeros(len(told)))


def final_volume(searcher: Searcher, generations: int) -> float:
    state = run_search(searcher=searcher, problem=PROBLEM, evaluate=evaluate, generations=generations)
    points = objective_matrix([i.evaluation for i in front_of(state.archive, TWO)], TWO)
    ends = objective_matrix([landscape(SPACE.smallest), landscape(SPACE.unpruned)], TWO)
    return hypervolume(points, ends.max(axis=0))


def known_part(space: SearchSpace = SPACE) -> dict[str, Any]:
    """What `SearchProblem` takes of figures that are known in advance."""
    return {
        "known": functools.partial(known_figures, space=space),
        "known_metrics": frozenset({Metric.LATENCY_MS, Metric.PARAMETERS}),
    }


def known_tables(metric: Metric, space: SearchSpace = SPACE) -> tuple[Factor, ...]:
    """The landscape's figures are sums over variables: what each choice adds to the first."""
    first = landscape(space.smallest, space).metrics[metric]
    tables = [Factor(variables=(), values=np.array(first))]
    for position, count in enumerate(space.num_choices):
        genomes = [(*space.smallest[:position], c, *space.smallest[position + 1 :]) for c in range(count)]
        values = np.array([landscape(g, space).metrics[metric] for g in genomes]) - first
        tables.append(Factor(variables=(position,), values=values))
    return tuple(tables)


def failing(genomes: Sequence[Genome]) -> list[Evaluation]:
    """Every fourth design, by what it is, cannot be evaluated: its loss is unknown, its latency is not."""
    found = evaluate(genomes)
    for place, genome in enumerate(genomes):
        if sum(genome) % 4 == 0:
            figures = {**found[place].metrics, Metric.LOSS: math.nan}
            found[place] = Evaluation(metrics=figures, failure="the training diverged")
    return found


class SearcherSuite:
    """Inherit, and define `METHOD`; override `known` where the method needs figures in advance."""

    METHOD: Method | str

    def known(self, space: SearchSpace) -> dict[str, Any]:
        """What the problem says about figures that cost nothing to know."""
        return {}

    def make(
        self,
        space: SearchSpace = SPACE,
        *,
        population: int = 12,
        seed: int = 0,
        objectives: Sequence[Objective] = TWO,
        constraints: Sequence[Constraint] = (),
        **known: Any,
    ) -> Searcher:
        problem = SearchProblem(
            space=space, objectives=tuple(objectives), constraints=tuple(constraints), **(known or self.known(space))
        )
        return make_searcher(self.METHOD, problem, population=population, seed=seed)

    def trace(self, searcher: Searcher, generations: int = 6, objectives: Sequence[Objective] = TWO) -> list:
        asked = []
        for _ in range(generations):
            asked.append(searcher.ask())
            tell_landscape(searcher, asked[-1], objectives)
        return asked

    def test_seed_decides_everything(self) -> None:
        assert self.trace(self.make(seed=3)) == self.trace(self.make(seed=3))
        assert self.trace(self.make(seed=3)) != self.trace(self.make(seed=4))

    def test_global_random_state_plays_no_part(self) -> None:
        np.random.seed(1)
        one = self.trace(self.make())
        np.random.seed(2)
        assert self.trace(self.make()) == one

    def test_asking_changes_nothing(self) -> None:
        searcher = self.make()
        assert searcher.ask() == searcher.ask()
        tell_landscape(searcher, searcher.ask())
        state = searcher.state()
        assert searcher.ask() == searcher.ask()
        assert searcher.state() == state

    def test_stays_in_the_space_and_never_repeats(self) -> None:
        asked = self.trace(self.make(population=16), 12)
        assert all(len(genomes) == 16 for genomes in asked)
        flat = list(itertools.chain(*asked))
        assert len(set(flat)) == len(flat)
        for genome in flat:
            SPACE.decode(genome)
            assert all(type(gene) is int for gene in genome)

    @pytest.mark.parametrize("stop", [0, 1, 4])
    def test_continues_identically_after_json(self, stop: int) -> None:
        undisturbed = self.make(seed=5)
        expected = self.trace(undisturbed, 8)
        first = self.make(seed=5)
        self.trace(first, stop)
        second = self.make(seed=5)
        second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
        assert self.trace(second, 8 - stop) == expected[stop:]
        assert json.dumps(second.state()) == json.dumps(undisturbed.state())

    def test_foreign_and_damaged_states_are_refused(self) -> None:
        state = self.make(seed=1).state()
        with pytest.raises(ContractError, match="seed 1, but this searcher has 2"):
            self.make(seed=2).restore(state)
        with pytest.raises(ContractError, match="population"):
            self.make(seed=1, population=14).restore(state)
        with pytest.raises(ContractError, match="space_id"):
            self.make(SMALL_SPACE, seed=1).restore(state)
        with pytest.raises(ContractError, match="method"):
            self.make(seed=1).restore({**state, "method": "guessing"})
        with pytest.raises(ContractError, match="damaged"):
            self.make(seed=1).restore({k: v for k, v in state.items() if k != "seen"})

    def test_small_space_is_used_up(self) -> None:
        searcher = self.make(SMALL_SPACE, population=8)
        found: list[Genome] = []
        while genomes := searcher.ask():
            found.extend(genomes)
            tell_landscape(searcher, genomes, space=SMALL_SPACE)
            assert len(found) <= 27
        assert sorted(found) == sorted(itertools.product(range(3), repeat=3))

    def test_undefined_objectives_are_survived(self) -> None:
        searcher = self.make()
        for _ in range(4):
            genomes = searcher.ask()
            values = objective_matrix([landscape(g) for g in genomes], TWO)
            values[::3, 0] = np.nan
            values[1, 1] = np.inf
            searcher.tell(genomes, values, np.zeros(len(genomes)))
        json.dumps(searcher.state(), allow_nan=False)
        genomes = searcher.ask()
        searcher.tell(genomes, np.full((len(genomes), 2), np.nan), np.zeros(len(genomes)))
        assert searcher.ask()

    def test_wrong_calls_are_refused(self) -> None:
        searcher = self.make()
        with pytest.raises(ContractError, match="not in the space"):
            searcher.tell([(99,) * 19], np.zeros((1, 2)), np.zeros(1))
        with pytest.raises(ContractError, match="not in the space"):
            searcher.tell([(0,)], np.zeros((1, 2)), np.zeros(1))
        with pytest.raises(ValueError, match="do not fit 1 genomes"):
            searcher.tell([SPACE.smallest], np.zeros((2, 2)), np.zeros(1))
        with pytest.raises(ContractError, match="population"):
            self.make(population=1)
        with pytest.raises(ContractError, match="seed"):
            self.make(seed=-1)

    def test_failed_evaluations_are_survived(self) -> None:
        """They end no search, are on no front, and a search that is taken up again goes on as it would have."""
        arguments: dict[str, Any] = {"problem": PROBLEM, "evaluate": failing}
        states: list[str] = []
        whole = run_search(
            searcher=self.make(),
            generations=6,
            on_generation=lambda state: states.append(json.dumps(state_to_json(state), allow_nan=False)),
            **arguments,
        )
        failures = [item for item in whole.archive if item.evaluation.failure is not None]
        assert 0 < len(failures) < len(whole.archive) / 2
        assert len(whole.archive) == 6 * 12
        front = front_of(whole.archive, TWO)
        assert front
        assert all(item.evaluation.failure is None for item in front)
        resumed = run_search(
            searcher=self.make(), generations=6, state=state_from_json(json.loads(states[2])), **arguments
        )
        assert json.dumps(state_to_json(resumed)) == states[-1]

    def test_failures_of_a_whole_generation_end_the_search(self) -> None:
        def broken(genomes: Sequence[Genome]) -> list[Evaluation]:
            return [Evaluation(metrics={}, failure=f"no number {i}") for i in range(len(genomes))]

        with pytest.raises(SearchError, match=r"none of the 12 candidates of a generation .* the first: no number 0"):
            run_search(searcher=self.make(), problem=PROBLEM, evaluate=broken, generations=3)

    def test_an_infeasible_budget_is_refused_with_the_smallest_value(self) -> None:
        smallest = landscape(SPACE.smallest).metrics[Metric.LATENCY_MS]
        with pytest.raises(InfeasibleBudget, match=f"latency_ms <= .* smallest .*{smallest:.6g}"):
            self.make(constraints=at_most(0.99 * smallest), **{**known_part(), **self.known(SPACE)})

    def test_arguments_are_not_changed(self) -> None:
        searcher = self.make()
        genomes = searcher.ask()
        values = objective_matrix([landscape(g) for g in genomes], TWO)
        values[0, 0] = np.nan
        before = values.copy()
        violations = np.zeros(len(genomes))
        searcher.tell(genomes, values, violations)
        np.testing.assert_array_equal(values, before)
        assert not violations.any()


class EvolutionarySuite(SearcherSuite):
    """What searchers that learn must do beyond."""

    #: How much better than random search the front must be after 240 evaluations, as a ratio of volumes.
    GAIN_OVER_RANDOM = 1.05
    #: Points on the front under a bound after 192 evaluations.
    MIN_BOUNDED_FRONT = 8

    def test_beats_random_over_five_seeds(self) -> None:
        from search.algorithms.random_search import RandomSearcher

        for seed in range(5):
            own = final_volume(self.make(population=16, seed=seed), 15)
            assert own > self.GAIN_OVER_RANDOM * final_volume(RandomSearcher(PROBLEM, population=16, seed=seed), 15)

    def test_improves_on_its_first_generation(self) -> None:
        assert final_volume(self.make(population=16), 15) > 1.05 * final_volume(self.make(population=16), 1)

    def test_finds_and_keeps_to_the_feasible(self) -> None:
        bound_ms = 0.35 * landscape(SPACE.unpruned).metrics[Metric.LATENCY_MS]
        state = run_search(
            searcher=self.make(population=16, constraints=at_most(bound_ms)),
            problem=PROBLEM,
            evaluate=constrained(at_most(bound_ms)),
            generations=12,
        )
        late = state.archive[-48:]
        assert sum(i.evaluation.violation == 0 for i in late) > len(late) / 2
        assert all(i.evaluation.metrics[Metric.LATENCY_MS] <= bound_ms for i in front_of(state.archive, TWO))
        assert len(front_of(state.archive, TWO)) >= self.MIN_BOUNDED_FRONT

    def test_works_towards_an_unreachable_bound(self) -> None:
        state = run_search(
            searcher=self.make(population=12), problem=PROBLEM, evaluate=constrained(at_most(0.5)), generations=8
        )
        assert front_of(state.archive, TWO) == ()
        violations = [i.evaluation.violation for i in state.archive]
        assert np.mean(violations[-12:]) < np.mean(violations[:12])

    def test_three_objectives(self) -> None:
        asked = self.trace(self.make(objectives=THREE), 6, THREE)
        assert len(set(itertools.chain(*asked))) == 6 * 12

    def test_number_of_objectives_must_not_change(self) -> None:
        searcher = self.make()
        tell_landscape(searcher, searcher.ask())
        with pytest.raises(ValueError, match="3 objectives were told, but the problem has 2"):
            tell_landscape(searcher, searcher.ask(), THREE)

    def test_known_good_genomes_may_be_told(self) -> None:
        searcher = self.make()
        tell_landscape(searcher, [SPACE.smallest, SPACE.unpruned, (3,) * 18 + (1,)])
        genomes = searcher.ask()
        assert len(genomes) == 12
        assert SPACE.smallest not in genomes
