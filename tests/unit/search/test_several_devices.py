"""One problem over several devices: what a latency means, what is bounded, and what is a sum of tables."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from device_agent.contracts import ContractError, Source
from search.algorithms.factors import Factor, evaluate
from search.algorithms.policy_gradient import PolicyGradientSearcher
from search.algorithms.registry import make_searcher
from search.domain.candidate import Candidate, EvaluatedCandidate, Evaluation
from search.domain.config import ChannelsConfig, SearchConfig, SpaceConfig, WeightsConfig, parse_config
from search.domain.objective import Constraint, LatencyOverDevices, Metric, Objective
from search.errors import InfeasibleBudget
from search.known_figures import NetworkFigures
from search.latency.fleet import FleetLatencyModel, over_devices
from search.latency.knots import knots_for
from search.latency.network import NetworkLatencyModel, fit_network_model
from search.latency.table import KernelLatency, LatencyTable, NetworkLatency
from search.loop import SearchState, state_from_json, state_to_json, total_violation
from search.lowering import lower
from search.mapping import MappingInput, RateVector, network_layers
from search.problem import SearchProblem
from search.space_builder import build_space
from tests.unit.search.sample_networks import resnet_spec

OBJECTIVES = (Objective(metric=Metric.LOSS), Objective(metric=Metric.LATENCY_MS))
SPEC = resnet_spec()
SPACE = build_space(SPEC, SpaceConfig(channels=ChannelsConfig(), weights=WeightsConfig()))
GENOMES = np.random.default_rng(3).integers(0, SPACE.num_choices, size=(20, len(SPACE.variables)))


def model_of(overhead_ns: float, macs_per_ns: float) -> NetworkLatencyModel:
    """A device whose kernels cost an overhead and their arithmetic."""

    def kernel_ns(macs: int) -> float:
        return overhead_ns + macs / macs_per_ns

    networks = []
    for genome in (SPACE.smallest, *GENOMES[:3], SPACE.unpruned):
        plan = lower(SPEC, SPACE.decode(tuple(int(g) for g in genome)))
        total = sum(kernel_ns(k.macs) for k in plan.kernels)
        networks.append(NetworkLatency(kernels=plan.kernels, latency_ns=1.1 * total + 10_000))
    kernels = tuple(KernelLatency(kernel=k, latency_ns=kernel_ns(k.macs)) for k in knots_for(SPEC, SPACE, 200))
    table = LatencyTable(
        device_id="d",
        setup_id="m",
        runtime="native",
        runtime_version="1",
        source=Source.SIMULATED,
        kernels=kernels,
        networks=tuple(networks),
    )
    return fit_network_model(table)


#: Neither is the slower one for all networks.
MODELS = {"phone": model_of(62_000, 40.0), "pi4": model_of(2_000, 8.0)}


def problem(over: LatencyOverDevices = LatencyOverDevices.MAX, **changes: Any) -> SearchProblem:
    figures = NetworkFigures(SPEC, SPACE, FleetLatencyModel(MODELS, over))
    return SearchProblem(
        space=SPACE,
        objectives=OBJECTIVES,
        known=figures,
        known_metrics=NetworkFigures.METRICS,
        known_latencies=figures.latencies_ms,
        tables=figures.tables,
        device_tables=figures.device_tables,
        **changes,
    )


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        (LatencyOverDevices.MAX, [8.0, 5.0]),
        (LatencyOverDevices.MEAN, [5.0, 5.0]),
        (LatencyOverDevices.GEOMETRIC_MEAN, [4.0, 5.0]),
    ],
)
def test_one_latency_of_several(over: LatencyOverDevices, expected: list[float]) -> None:
    np.testing.assert_allclose(over_devices([[2.0, 8.0], [5.0, 5.0]], over), expected, rtol=1e-12)
    assert over_devices([0.1], over) == 0.1


@pytest.mark.parametrize("over", list(LatencyOverDevices))
def test_figures_are_those_of_each_device(over: LatencyOverDevices) -> None:
    stated = problem(over)
    assert stated.known is not None
    assert stated.known_latencies is not None
    by_device = stated.known_latencies(GENOMES)
    slowest = set()
    for row, genome in enumerate(GENOMES):
        plan = lower(SPEC, SPACE.decode(tuple(int(g) for g in genome)))
        latencies = {name: model.latency_ms(plan) for name, model in MODELS.items()}
        assert {name: by_device[name][row] for name in MODELS} == pytest.approx(latencies, rel=1e-9)
        fleet_ms = FleetLatencyModel(MODELS, over).latency_ms(plan)
        assert stated.known(GENOMES)[Metric.LATENCY_MS][row] == pytest.approx(fleet_ms, rel=1e-9)
        slowest.add(max(latencies, key=latencies.__getitem__))
    assert slowest == set(MODELS), "the models are to change places"


def test_one_device_of_a_fleet_is_that_device_bit_for_bit() -> None:
    alone = NetworkFigures(SPEC, SPACE, MODELS["pi4"])(GENOMES)
    fleet = NetworkFigures(SPEC, SPACE, FleetLatencyModel({"pi4": MODELS["pi4"]}, LatencyOverDevices.MAX))(GENOMES)
    for metric in NetworkFigures.METRICS:
        assert alone[metric].tobytes() == fleet[metric].tobytes()


def bounds_at(**quantiles: float) -> tuple[Constraint, ...]:
    """A bound on each of these devices, at a quantile of the latencies of random networks there."""
    latencies = NetworkFigures(SPEC, SPACE, FleetLatencyModel(MODELS, LatencyOverDevices.MAX)).latencies_ms(GENOMES)
    return tuple(
        Constraint(metric=Metric.LATENCY_MS, device=device, max=float(np.quantile(latencies[device], quantile)))
        for device, quantile in quantiles.items()
    )


@pytest.mark.parametrize("method", ["jcw", "aacp", "nsga2", "random"])
def test_bounds_on_one_device_hold(method: str) -> None:
    bounds = bounds_at(pi4=0.3, phone=0.7)
    stated = problem(constraints=bounds)
    assert stated.known_latencies is not None
    latencies = stated.known_latencies(GENOMES)
    violations = stated.known_violations(GENOMES)
    for row, violation in enumerate(violations):
        figures = {name: float(values[row]) for name, values in latencies.items()}
        assert total_violation({}, bounds, figures) == pytest.approx(violation)
    assert (violations == 0).any()
    assert (violations > 0).any()
    searcher = make_searcher(method, stated, population=8, seed=0)
    asked = np.array(searcher.ask())
    assert asked.shape == (8, len(SPACE.variables))
    if method == "aacp":
        assert not stated.known_violations(asked).any()


def mapped_problem(constraints: tuple[Constraint, ...]) -> SearchProblem:
    figures = NetworkFigures(SPEC, SPACE, FleetLatencyModel(MODELS, LatencyOverDevices.MAX))
    mapping = MappingInput(
        layers=network_layers(SPEC, SPACE, figures.latency_tables(), figures.with_sums),
        rates=tuple(RateVector(target=t, densities=dict.fromkeys(SPEC.prunable_ops, t)) for t in (0.2, 0.4, 0.7)),
    )
    return problem(constraints=constraints, mapping=mapping)


@pytest.mark.parametrize(
    ("method", "generations", "kept_part"), [("policy_gradient", 4, 0.75), ("rule_mapping", 1, 1.0)]
)
def test_methods_that_map_schemes_keep_to_bounds_on_devices(method: str, generations: int, kept_part: float) -> None:
    stated = mapped_problem(bounds_at(pi4=0.1, phone=0.9))
    assert stated.known is not None
    searcher = make_searcher(method, stated, population=12, seed=0)
    for generation in range(generations + 1):
        genomes = np.array(searcher.ask())
        kept = stated.known_violations(genomes) <= 0
        if generation < generations:
            place = (genomes / (np.array(SPACE.num_choices) - 1).clip(1)).mean(axis=1)
            latency = stated.known(genomes)[Metric.LATENCY_MS]
            violations = stated.known_violations(genomes)
            searcher.tell(searcher.ask(), np.column_stack(((1 - place) ** 2, latency)), violations)
    assert kept.mean() >= kept_part


def test_a_policy_is_asked_for_no_latency_that_the_bounds_on_devices_forbid() -> None:
    """The latency over the devices is the phone's for most networks, and the bounds are on the other one."""
    free, bounded = (
        PolicyGradientSearcher(mapped_problem(bounds), population=12, seed=0) for bounds in ((), bounds_at(pi4=0.1))
    )
    stated = mapped_problem(bounds_at(pi4=0.1))
    assert stated.known is not None
    feasible = GENOMES[stated.known_violations(GENOMES) <= 0]
    assert len(feasible)
    highest = float(stated.known(feasible)[Metric.LATENCY_MS].max())
    assert highest <= bounded.highest_target_ms < 0.7 * free.highest_target_ms


def test_bounds_that_no_network_meets_on_one_device_are_refused_with_its_name() -> None:
    bound = Constraint(metric=Metric.LATENCY_MS, device="pi4", max=1e-6)
    with pytest.raises(InfeasibleBudget, match="latency_ms on pi4 <= 1e-06"):
        make_searcher("jcw", problem(constraints=(bound,)), population=8, seed=0)


def test_latencies_are_sums_of_tables_where_they_are_known_to_be() -> None:
    stated = problem(LatencyOverDevices.MEAN)
    assert stated.known is not None
    assert stated.known_latencies is not None
    assert stated.tables is not None
    assert stated.device_tables is not None
    by_device = stated.known_latencies(GENOMES)
    for name in MODELS:
        np.testing.assert_allclose(evaluate(stated.device_tables(name), GENOMES), by_device[name], rtol=1e-9)
    for metric in NetworkFigures.METRICS:
        np.testing.assert_allclose(evaluate(stated.tables(metric), GENOMES), stated.known(GENOMES)[metric], rtol=1e-9)
    for over in (LatencyOverDevices.MAX, LatencyOverDevices.GEOMETRIC_MEAN):
        with pytest.raises(ContractError, match="set latency_over_devices to 'mean'"):
            make_searcher("exact", problem(over), population=8, seed=0)


def test_exact_keeps_a_bound_on_each_device() -> None:
    latencies = problem().known_latencies
    assert latencies is not None
    bounds = tuple(
        Constraint(metric=Metric.LATENCY_MS, device=name, max=float(np.quantile(values, 0.4)))
        for name, values in latencies(GENOMES).items()
    )
    errors = tuple(
        Factor(variables=(v,), values=np.linspace(1.0, 0.0, count) ** 2) for v, count in enumerate(SPACE.num_choices)
    )
    stated = problem(LatencyOverDevices.MEAN, constraints=bounds, errors=errors)
    asked = np.array(make_searcher("exact", stated, population=8, seed=0).ask())
    assert len(asked) == 8
    kept = stated.known_violations(asked) <= 0
    assert kept.sum() >= 6
    highest = [float((latencies(asked)[str(bound.device)][kept] / bound.max).max()) for bound in bounds]
    assert max(highest) > 0.9


def test_latencies_by_device_survive_json() -> None:
    evaluation = Evaluation(metrics={Metric.LATENCY_MS: 3.0}, latencies_ms={"pi4": 3.0, "phone": 1.0})
    item = EvaluatedCandidate(candidate=Candidate(space_id="s", genome=(1,)), evaluation=evaluation)
    state = SearchState(generation=1, searcher={}, archive=(item,))
    assert state_from_json(json.loads(json.dumps(state_to_json(state)))) == state


def config(**changes: Any) -> SearchConfig:
    channels: dict[str, Any] = {"channels": {}}
    base = {"name": "n", "model": {"architecture": "small_cnn"}, "dataset": {"name": "digits"}, "space": channels}
    return parse_config({**base, **changes})


def test_a_config_names_devices() -> None:
    bound = {"metric": "latency_ms", "max": 4.0, "device": "pi4"}
    found = config(devices=["pi4", "phone"], latency_over_devices="mean", constraints=[bound])
    assert found.devices == ("pi4", "phone")
    assert found.constraints[0].subject == "latency_ms on pi4"
    assert config(device="pi4", constraints=[bound]).constraints[0].device == "pi4"
    assert math.isclose(config(device="pi4", constraints=[bound]).constraints[0].violation(5.0), 0.25)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "pi4", "devices": ["phone"]}, "device 'pi4' and devices phone are both given"),
        ({"devices": ["pi4", "phone", "pi4"]}, "devices has 'pi4' twice"),
        ({"latency_over_devices": "mean"}, "needs two or more 'devices'"),
        ({"devices": ["a", "b"], "method": {"name": "exact"}}, "set latency_over_devices to 'mean'"),
        ({"latency_over_devices": "median", "devices": ["a", "b"]}, "'median' is not one of 'max', 'mean'"),
        ({"constraints": [{"metric": "latency_ms", "max": 1, "device": "pi4"}]}, "'device' and 'devices' name none"),
        (
            {"devices": ["a", "b"], "constraints": [{"metric": "latency_ms", "max": 1, "device": "pi4"}]},
            "on device 'pi4', but this search is for a, b",
        ),
        (
            {"device": "a", "constraints": [{"metric": "macs", "max": 1, "device": "a"}]},
            "macs is the same on every device",
        ),
    ],
)
def test_contradicting_devices_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError) as refused:
        config(**changes)
    assert words in str(refused.value)
