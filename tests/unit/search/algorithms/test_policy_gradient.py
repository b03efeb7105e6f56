"""The policy's gradient and learning, the steps of an episode, and how the method uses what it knows."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from device_agent.contracts import ContractError
from search.algorithms.policy_gradient import PolicyGradientSearcher
from search.algorithms.policy_network import Episodes, PolicyNetwork
from search.algorithms.policy_steps import actions_of, features_of, genomes_of, padded, steps_of
from search.domain.objective import Constraint, Metric, Objective
from search.domain.space import VariableKind
from search.problem import SearchProblem
from tests.unit.search.algorithms.mapping_samples import resnet_problem
from tests.unit.search.algorithms.searcher_suite import SPACE, known_part, tell_landscape


def small_policy(seed: int = 0) -> PolicyNetwork:
    rng = np.random.default_rng(seed)
    allowed = np.array([[True, True, True], [True, True, False], [True, True, True]])
    places = np.array([[0.0, 0.5, 1.0], [0.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    policy = PolicyNetwork(rng.standard_normal((3, 4)), places, allowed, rng)
    for name, values in policy.parameters.items():
        policy.parameters[name] = values + 0.1 * rng.standard_normal(values.shape)
    return policy


def test_the_gradient_is_that_of_the_objective() -> None:
    policy = small_policy()
    rng = np.random.default_rng(1)
    episodes = policy.sample(rng, np.array([0.1, 0.6, 0.9, 0.4]))
    assert (episodes.actions[:, 1] < 2).all()
    advantages, bonus = np.array([1.0, -0.5, 2.0, 0.3]), 0.2

    def objective() -> float:
        """With the states of the walks held, as REINFORCE has it."""
        _, _, logits = policy._forward(episodes)
        shifted = np.exp(logits - logits.max(axis=2, keepdims=True))
        p = shifted / shifted.sum(axis=2, keepdims=True)
        entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(axis=(0, 2))
        return float((advantages * policy.log_probabilities(episodes).sum(axis=1) + bonus * entropy).mean())

    gradient = policy.gradient(episodes, advantages, bonus)
    for name, values in policy.parameters.items():
        for place in list(np.ndindex(values.shape))[::3]:
            kept = values[place]
            values[place] = kept + 1e-5
            above = objective()
            values[place] = kept - 1e-5
            below = objective()
            values[place] = kept
            assert gradient[name][place] == pytest.approx((above - below) / 2e-5, abs=1e-6)


def test_rewarded_actions_become_likely() -> None:
    policy = small_policy()
    rng = np.random.default_rng(2)
    targets = np.full(64, 0.5)
    for _ in range(60):
        episodes = policy.sample(rng, targets)
        rewards = (episodes.actions == [2, 0, 1]).sum(axis=1).astype(np.float64)
        policy.ascend(policy.gradient(episodes, rewards - rewards.mean(), 0.0))
    assert (policy.sample(rng, targets).actions == [2, 0, 1]).mean() > 0.9


def test_a_policy_is_restored_exactly() -> None:
    policy = small_policy()
    episodes = Episodes(actions=np.zeros((2, 3), dtype=np.int64), targets=np.array([0.2, 0.8]))
    policy.ascend(policy.gradient(episodes, np.array([1.0, -1.0]), 0.01))
    other = small_policy(5)
    other._features = policy._features
    other.restore(json.loads(json.dumps(policy.to_json(), allow_nan=False)))
    for one in (policy, other):
        one.ascend(one.gradient(episodes, np.array([0.3, 1.0]), 0.01))
    for name, values in policy.parameters.items():
        np.testing.assert_array_equal(values, other.parameters[name])
    with pytest.raises(ValueError, match="not finite"):
        other.restore({**policy.to_json(), "table": np.full((3, 3), np.nan).tolist()})


def test_steps_join_scheme_and_density_and_leave_out_what_prunes_alike() -> None:
    steps = {step.name: step for step in steps_of(SPACE)}
    assert len(steps) == 18
    assert steps["group3"].kind is VariableKind.CHANNELS
    # conv0: 6 densities below 1 of two schemes, patterns up to 4/9 (0.2, 0.3, 0.4 and the cap), and dense once.
    assert len(steps["conv0"].actions) == 2 * 6 + 4 + 1
    prunings = {
        SPACE.decode(tuple(genome)).pruning["conv0"]
        for genome in genomes_of([steps["conv0"]], np.arange(17)[:, None], len(SPACE.variables))
    }
    assert len(prunings) == 17


def test_walks_and_genomes_are_each_others_inverse() -> None:
    steps = steps_of(SPACE)
    rng = np.random.default_rng(0)
    _, allowed = padded(steps)
    walks = np.column_stack([rng.integers(0, row.sum(), 50) for row in allowed])
    genomes = genomes_of(steps, walks, len(SPACE.variables))
    found, possible = actions_of(steps, genomes)
    assert possible.all()
    np.testing.assert_array_equal(found, walks)


def test_states_know_the_layers() -> None:
    problem = resnet_problem()
    steps = steps_of(problem.space)
    with_layers, without = features_of(steps, problem.mapping), features_of(steps, None)
    assert with_layers.shape == without.shape
    assert np.isfinite(with_layers).all()
    assert np.abs(with_layers).max() <= 1.0
    assert not without[:, 3:].any()
    assert with_layers[:, 3:].any()


def test_it_works_on_a_network_within_its_bound() -> None:
    problem = resnet_problem()
    latencies = problem.known(np.array([problem.space.smallest, problem.space.unpruned]))[Metric.LATENCY_MS]
    bound = Constraint(metric=Metric.LATENCY_MS, max=float(latencies[0] + 0.3 * (latencies[1] - latencies[0])))
    problem = dataclasses.replace(problem, constraints=(bound,))
    searcher = PolicyGradientSearcher(problem, population=12, seed=0)
    for _ in range(4):
        genomes = np.array(searcher.ask())
        place = (genomes / (np.array(problem.space.num_choices) - 1).clip(1)).mean(axis=1)
        latency = problem.known(genomes)[Metric.LATENCY_MS]
        searcher.tell(searcher.ask(), np.column_stack(((1 - place) ** 2, latency)), problem.known_violations(genomes))
    assert (problem.known_violations(np.array(searcher.ask())) <= 0).mean() > 0.7


def test_what_it_needs_is_said() -> None:
    two = (Objective(metric=Metric.LOSS), Objective(metric=Metric.LATENCY_MS))
    with pytest.raises(ContractError, match="must know latency_ms of a candidate before"):
        PolicyGradientSearcher(SearchProblem(space=SPACE, objectives=two), population=8, seed=0)
    known = (Objective(metric=Metric.LATENCY_MS), Objective(metric=Metric.PARAMETERS))
    with pytest.raises(ContractError, match="needs an objective that must be evaluated"):
        PolicyGradientSearcher(SearchProblem(space=SPACE, objectives=known, **known_part()), population=8, seed=0)


def test_damaged_policies_are_refused() -> None:
    two = (Objective(metric=Metric.LOSS), Objective(metric=Metric.LATENCY_MS))
    problem = SearchProblem(space=SPACE, objectives=two, **known_part())
    searcher = PolicyGradientSearcher(problem, population=8, seed=0)
    tell_landscape(searcher, searcher.ask())
    state = searcher.state()
    for damaged in ({**state, "policy": {}}, {**state, "baseline": [0.0]}, {**state, "told": {"0": [1.0]}}):
        with pytest.raises(ContractError, match="damaged"):
            PolicyGradientSearcher(problem, population=8, seed=0).restore(damaged)
