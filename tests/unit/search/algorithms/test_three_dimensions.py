"""The method of three dimensions: its stages, its resumption, and its front against random search."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import ArrayLike

from device_agent.contracts import ContractError
from search.algorithms.axis_model import fit_axis_model
from search.algorithms.axis_points import AxisPoints
from search.algorithms.random_search import RandomSearcher
from search.algorithms.registry import make_searcher
from search.domain.candidate import Evaluation
from search.domain.config import ChannelsConfig, DepthConfig, ResolutionConfig, SpaceConfig, WeightsConfig
from search.domain.objective import Constraint, Metric, Objective
from search.domain.space import Genome, VariableKind
from search.genome_costs import GenomeCosts
from search.loop import SearchState, front_of, objective_matrix, run_search, state_from_json, state_to_json
from search.pareto import FloatArray, hypervolume
from search.problem import SearchProblem
from search.space_builder import build_space
from tests.unit.search.algorithms.searcher_suite import TWO
from tests.unit.search.sample_networks import resnet_spec

SPEC = resnet_spec()
SPACE = build_space(
    SPEC,
    SpaceConfig(channels=ChannelsConfig(min_ratio=0.25), depth=DepthConfig(), resolution=ResolutionConfig()),
)
AXES = AxisPoints(SPACE)
COSTS = GenomeCosts(SPEC, SPACE, {"ms": lambda kernel: 0.01 + kernel.macs / 1e6, "macs": lambda k: float(k.macs)})


def known(genomes: ArrayLike) -> dict[Metric, FloatArray]:
    latency, macs = COSTS.sums(genomes).T
    return {Metric.LATENCY_MS: latency, Metric.MACS: macs}


def loss_of(genome: Genome) -> float:
    """Saturating in each dimension and not separable; blocks differ, and so do groups."""
    genes = np.array(genome)
    place = {kind: [p for p, v in enumerate(SPACE.variables) if v.kind is kind] for kind in VariableKind}
    depth = 1.0 - (genes[place[VariableKind.DEPTH]] == 0) @ np.linspace(0.05, 0.2, len(place[VariableKind.DEPTH]))
    width = np.mean([(genes[p] + 1) / len(SPACE.variables[p].choices) for p in place[VariableKind.CHANNELS]])
    side = genes[place[VariableKind.RESOLUTION][0]] / 4
    return float(
        0.1
        + 0.8 * np.exp(-3 * depth)
        + 1.2 * np.exp(-4 * width)
        + 0.5 * np.exp(-3 * side)
        + 0.2 * (1.1 - width) * (1.1 - side) * (1.5 - depth)
    )


def evaluate(genomes: Sequence[Genome]) -> list[Evaluation]:
    figures = known(genomes)
    return [
        Evaluation(metrics={Metric.LOSS: loss_of(g), **{m: float(v[row]) for m, v in figures.items()}})
        for row, g in enumerate(genomes)
    ]


def problem(constraints: tuple[Constraint, ...] = ()) -> SearchProblem:
    return SearchProblem(
        space=SPACE,
        objectives=TWO,
        constraints=constraints,
        known=known,
        known_metrics=frozenset({Metric.LATENCY_MS, Metric.MACS}),
    )


def search(generations: int, state: SearchState | None = None, constraints: tuple[Constraint, ...] = ()) -> SearchState:
    return run_search(
        searcher=make_searcher("three_dimensions", problem(constraints), population=8, seed=0),
        problem=problem(constraints),
        evaluate=evaluate,
        generations=generations,
        state=state,
    )


def volume(state: SearchState) -> float:
    points = objective_matrix([i.evaluation for i in front_of(state.archive, TWO)], TWO)
    ends = objective_matrix(evaluate([SPACE.smallest, SPACE.unpruned]), TWO)
    return hypervolume(points, ends.max(axis=0))


def test_stages_come_in_their_order() -> None:
    genomes = [i.candidate.genome for i in search(8).archive]
    assert genomes[0] == SPACE.unpruned
    assert genomes[1:8] == list(AXES.without_one_block())
    assert genomes[8:12] == list(AXES.width_chain())
    assert genomes[12:16] == list(AXES.resolution_chain())
    depth = AXES.coordinates(genomes[16:19])
    assert (np.diff(depth[:, 0]) < 0).all()
    assert (depth[:, 1:] == 1.0).all()
    # What the model proposes lies off the axes.
    off_axis = (AXES.coordinates(genomes[19:]) < 1.0).sum(axis=1) > 1
    assert off_axis.mean() > 0.5
    assert len(set(genomes)) == len(genomes)


def test_blocks_go_in_the_order_of_what_they_lose_for_what_they_save() -> None:
    state = search(3)
    depth = [p for p, v in enumerate(SPACE.variables) if v.kind is VariableKind.DEPTH]
    first = state.archive[17].candidate.genome
    # All blocks of this network cost about the same; the first ones lose least.
    assert {p for p in depth if first[p] == 0} <= set(depth[:5])


def test_continues_identically_after_json() -> None:
    expected = search(8)
    for stop in (1, 3, 5):
        state = state_from_json(json.loads(json.dumps(state_to_json(search(stop)), allow_nan=False)))
        resumed = search(8, state)
        assert [i.candidate.genome for i in resumed.archive] == [i.candidate.genome for i in expected.archive]
        assert json.dumps(state_to_json(resumed)) == json.dumps(state_to_json(expected))


def test_beats_random_at_equal_budget_over_five_seeds() -> None:
    own = search(8)
    for seed in range(5):
        rival = run_search(
            searcher=RandomSearcher(problem(), population=8, seed=seed),
            problem=problem(),
            evaluate=evaluate,
            generations=-(-len(own.archive) // 8),
        )
        assert volume(own) > volume(rival)


def test_optima_are_reported_with_their_residuals() -> None:
    searcher = make_searcher("three_dimensions", problem(), population=8, seed=0)
    state = run_search(searcher=searcher, problem=problem(), evaluate=evaluate, generations=5)
    optima = state.searcher["optima"]
    assert {o["cost"] for o in optima} == {"paper", "latency_ms"}
    for found in optima:
        assert found["cost_residual"] < 1e-6
        assert max(found["residuals"]) < 1e-3
    lines = searcher.report()
    told = [line for line in lines if line.startswith("continuous optimum at ")]
    assert len(told) == len(optima)
    legal = [line for line in lines if line.startswith("legal optimum at ")]
    assert len(legal) == sum(o["cost"] == "latency_ms" for o in optima)
    assert len(lines) == len(told) + len(legal)
    for line in legal:
        budget_ms, latency_ms = (float(number) for number in re.findall(r"([\d.e+-]+) ms", line))
        assert latency_ms <= budget_ms * 1.01
    assert "largest KKT residual" in lines[0]


def test_keeps_to_bounds_and_ends_by_itself() -> None:
    bound = Constraint(metric=Metric.MACS, max=0.4 * float(known([SPACE.unpruned])[Metric.MACS][0]))
    state = search(200, constraints=(bound,))
    proposed = [i for i in state.archive if (AXES.coordinates([i.candidate.genome]) < 1.0).sum() > 1]
    assert len(proposed) > 8
    assert all(i.evaluation.metrics[Metric.MACS] <= bound.max for i in proposed)
    assert state.generation < 200


def test_failed_points_are_left_out_of_the_fit() -> None:
    searcher = make_searcher("three_dimensions", problem(), population=8, seed=0)
    for generation in range(6):
        genomes = searcher.ask()
        values = objective_matrix(evaluate(genomes), TWO)
        values[1::5, 0] = np.nan
        searcher.tell(genomes, values, np.zeros(len(genomes)))
        json.dumps(searcher.state(), allow_nan=False)
        assert generation > 3 or genomes


@pytest.mark.parametrize("part", ["depth", "channels", "resolution"])
def test_one_dimension_is_enough(part: str) -> None:
    config = {"depth": DepthConfig(), "channels": ChannelsConfig(), "resolution": ResolutionConfig()}
    space = build_space(SPEC, SpaceConfig(**{part: config[part]}))
    costs = GenomeCosts(SPEC, space, {"ms": lambda kernel: 0.01 + kernel.macs / 1e6})

    def figures(genomes: ArrayLike) -> dict[Metric, FloatArray]:
        return {Metric.LATENCY_MS: costs.sums(genomes)[:, 0]}

    alone = SearchProblem(space=space, objectives=TWO, known=figures, known_metrics=frozenset({Metric.LATENCY_MS}))
    searcher = make_searcher("three_dimensions", alone, population=4, seed=0)
    asked: list[Genome] = []
    for _ in range(40):
        genomes = searcher.ask()
        if not genomes:
            break
        asked += genomes
        latency = figures(genomes)[Metric.LATENCY_MS]
        searcher.tell(genomes, np.column_stack((np.exp(-latency), latency)), np.zeros(len(genomes)))
    assert not searcher.ask()
    assert len(set(asked)) == len(asked) > 3
    assert list(searcher.state()["optima"])


def test_rank_is_that_of_the_polynomial() -> None:
    fronts = []
    for rank in (1, 2):
        searcher = make_searcher("three_dimensions", problem(), population=8, seed=0, rank=rank)
        state = run_search(searcher=searcher, problem=problem(), evaluate=evaluate, generations=5)
        assert len(state.searcher["optima"]) > 0
        fronts.append([o["value"] for o in state.searcher["optima"]])
    assert fronts[0] != fronts[1]


def test_chains_and_legal_points() -> None:
    widths = AXES.coordinates(AXES.width_chain())
    assert (np.diff(widths[:, 1]) < 0).all()
    assert len(widths) == 4
    sides = AXES.coordinates(AXES.resolution_chain())
    np.testing.assert_allclose(sides[:, 2], [28 / 32, 24 / 32, 20 / 32, 0.5])
    legal = AXES.legal(AXES.blocks)
    assert len(set(legal)) == len(legal) == (len(AXES.blocks) + 1) * 5 * len(AXES.width_levels())
    assert {SPACE.unpruned, SPACE.smallest} <= set(legal)
    assert all(len(set(axis)) == 1 for axis in itertools.islice(zip(*AXES.coordinates(legal[:1]), strict=True), 3))


def test_density_is_a_fourth_axis_for_a_polynomial_on_demand() -> None:
    space = build_space(
        SPEC, SpaceConfig(channels=ChannelsConfig(min_ratio=0.25), weights=WeightsConfig(), depth=DepthConfig())
    )
    assert AxisPoints(space).names == ("depth", "width")
    axes = AxisPoints(space, with_density=True)
    assert axes.names == ("depth", "width", "density")
    samples = axes.samples(axes.blocks)
    points = axes.coordinates(samples)
    assert len(set(samples)) == len(samples) == 1 + 3 * 4
    assert ((points < 1.0).sum(axis=1) <= 1).all()
    # A product of powers of the three is not in the family, but close to it.
    accuracy = 0.9 * np.prod(points ** (0.1, 0.2, 0.3), axis=1)
    model = fit_axis_model(points, accuracy)
    rng = np.random.default_rng(0)
    others = axes.coordinates([tuple(int(g) for g in rng.integers(0, space.num_choices)) for _ in range(60)])
    inside = np.clip(others, model.low, model.high)
    np.testing.assert_allclose(model(others), 0.9 * np.prod(inside ** (0.1, 0.2, 0.3), axis=1), atol=0.03)


def test_what_it_cannot_do_is_refused() -> None:
    densities = SearchProblem(space=SPACE, objectives=(Objective(metric=Metric.MACS), *TWO[1:]), known=known)
    with pytest.raises(ContractError, match="must know latency_ms"):
        make_searcher("three_dimensions", densities, population=8, seed=0)
    with pytest.raises(ContractError, match="fits the accuracy of networks"):
        make_searcher(
            "three_dimensions",
            SearchProblem(
                space=SPACE,
                objectives=(Objective(metric=Metric.MACS), *TWO[1:]),
                known=known,
                known_metrics=frozenset({Metric.LATENCY_MS, Metric.MACS}),
            ),
            population=8,
            seed=0,
        )
    state = make_searcher("three_dimensions", problem(), population=8, seed=0).state()
    with pytest.raises(ContractError, match="population 8, but this searcher has 9"):
        make_searcher("three_dimensions", problem(), population=9, seed=0).restore(state)
    with pytest.raises(ContractError, match="rank 2 is for the method 'three_dimensions'"):
        make_searcher("jcw", problem(), population=8, seed=0, rank=2)
    with pytest.raises(ContractError, match="damaged"):
        make_searcher("three_dimensions", problem(), population=8, seed=0).restore({**state, "told": 3})
