"""From a network and a stored table to a front: the same seed on the same table gives the same front, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from device_agent.contracts import Source
from search.algorithms.registry import make_searcher
from search.domain.candidate import Evaluation
from search.domain.config import ChannelsConfig, SpaceConfig, WeightsConfig
from search.domain.objective import Metric, Objective
from search.domain.space import Genome
from search.known_figures import NetworkFigures
from search.latency.knots import knots_for
from search.latency.network import fit_network_model
from search.latency.table import KernelLatency, LatencyTable, NetworkLatency, dump_table, load_table
from search.loop import front_of, run_search, state_to_json
from search.lowering import lower
from search.problem import SearchProblem
from search.space_builder import build_space
from tests.unit.search.sample_networks import resnet_spec

OBJECTIVES = (Objective(metric=Metric.LOSS), Objective(metric=Metric.LATENCY_MS))
SPEC = resnet_spec()
SPACE = build_space(SPEC, SpaceConfig(channels=ChannelsConfig(), weights=WeightsConfig()))


def measured_table() -> LatencyTable:
    """A table with noise, as a device would fill it."""
    rng = np.random.default_rng(0)

    def noisy(latency_ns: float) -> float:
        return latency_ns * float(1 + 0.01 * rng.standard_normal())

    kernels = tuple(
        KernelLatency(kernel=k, latency_ns=noisy(2000 + k.macs / 20), std_ns=20.0) for k in knots_for(SPEC, SPACE, 200)
    )
    networks = []
    for _ in range(5):
        plan = lower(SPEC, SPACE.decode(tuple(int(g) for g in rng.integers(0, SPACE.num_choices))))
        total = sum(2000 + k.macs / 20 for k in plan.kernels)
        networks.append(NetworkLatency(kernels=plan.kernels, latency_ns=noisy(1.1 * total + 10_000)))
    return LatencyTable(
        device_id="d",
        setup_id="m",
        runtime="native",
        runtime_version="1",
        source=Source.SIMULATED,
        kernels=kernels,
        networks=tuple(networks),
    )


def search_text(method: str, table: LatencyTable) -> str:
    model = fit_network_model(table)
    figures = NetworkFigures(SPEC, SPACE, model)
    problem = SearchProblem(space=SPACE, objectives=OBJECTIVES, known=figures, known_metrics=NetworkFigures.METRICS)

    def evaluate(genomes: Sequence[Genome]) -> list[Evaluation]:
        found = []
        for genome in genomes:
            plan = lower(SPEC, SPACE.decode(genome))
            loss = sum((1 - g / (n - 1)) ** 2 for g, n in zip(genome, SPACE.num_choices, strict=True))
            found.append(Evaluation(metrics={Metric.LOSS: loss, Metric.LATENCY_MS: model.latency_ms(plan)}))
        return found

    state = run_search(
        searcher=make_searcher(method, problem, population=12, seed=1),
        problem=problem,
        evaluate=evaluate,
        generations=6,
    )
    front = front_of(state.archive, OBJECTIVES)
    assert len(front) > 5
    return json.dumps([state_to_json(state), [item.candidate.genome for item in front]])


@pytest.mark.parametrize("method", ["jcw", "nsga2", "random"])
def test_stored_table_gives_the_same_search(method: str) -> None:
    table = measured_table()
    stored = load_table(dump_table(table))
    assert search_text(method, stored) == search_text(method, table)


def test_another_table_gives_another_front() -> None:
    table = measured_table()
    slower = LatencyTable(
        device_id=table.device_id,
        setup_id=table.setup_id,
        runtime=table.runtime,
        runtime_version=table.runtime_version,
        source=table.source,
        kernels=tuple(
            KernelLatency(kernel=e.kernel, latency_ns=e.latency_ns * (1 + e.kernel.in_channels)) for e in table.kernels
        ),
        networks=table.networks,
    )
    assert search_text("jcw", slower) != search_text("jcw", table)
