"""The methods that map schemes to layers through the service, killed while rates are found and while it searches."""

from __future__ import annotations

import dataclasses
import time

import pytest

from device_agent.contracts import PruningScheme, encode
from search.domain.config import (
    MappingConfig,
    Method,
    SearchConfig,
    SelectionConfig,
    SpaceConfig,
    WeightsConfig,
)
from server.cli.local_stack import LocalStack
from tests.end_to_end.stacks import simulated_search

pytestmark = pytest.mark.xdist_group("stack")

#: A search that hangs must not hang the tests; none takes a tenth of this.
TIMEOUT_S = 300.0


def mapping_search(method: Method) -> SearchConfig:
    config = simulated_search(f"mapping by {method}")
    weights = WeightsConfig(
        densities=(0.2, 0.5, 1.0),
        schemes=("group:4x1", "block_punched:8x4"),
        fully_connected=("block:2x8",),
    )
    return dataclasses.replace(
        config,
        space=SpaceConfig(weights=weights),
        method=dataclasses.replace(config.method, name=method),
        measuring=dataclasses.replace(config.measuring, max_kernels=60),
        model=dataclasses.replace(config.model, train_epochs=2),
        selection=SelectionConfig(candidates=1),
        mapping=MappingConfig(epochs=2, targets=(0.2, 0.4, 0.6), betas=(0.05, 0.3)),
    )


def run(stack: LocalStack, config: SearchConfig, kill_at: tuple[str, ...] = ()) -> str:
    """Submit, kill the worker whenever an event with the next of the texts comes, and wait for the end."""
    with stack.client() as client:
        search_id = str(client.searches.create(encode(config))["id"])
        for text in kill_at:
            for event in client.searches.events(search_id):
                if text in str(event):
                    break
            stack.processes["worker"].kill()
            stack.processes["worker"].wait()
            stack.start("worker")
        deadline = time.monotonic() + TIMEOUT_S
        while (state := client.searches.get(search_id)["state"]) != "completed":
            assert state not in ("failed", "cancelled"), client.searches.get(search_id)
            assert time.monotonic() < deadline, "the search did not end"
            time.sleep(0.1)
    return search_id


@pytest.mark.slow
def test_rates_are_found_once_and_a_killed_search_ends_on_the_same_front(simulated_stack: LocalStack) -> None:
    config = mapping_search(Method.RULE_MAPPING)
    whole = run(simulated_stack, config)
    killed = run(simulated_stack, config, kill_at=("pruning rates, epoch 1",))
    with simulated_stack.client() as client:
        fronts = [client.searches.searched_front(search_id) for search_id in (whole, killed)]
        points = client.searches.result(killed)["front"]
        texts = [event for event in client.searches.events(killed) if "pruning rates that keep" in str(event)]
    assert fronts[0] == fronts[1]
    assert len(texts) == 3  # one for each target, although the worker was killed meanwhile
    schemes = {p["scheme"] for point in fronts[0]["front"] for p in point["decisions"]["pruning"].values()}
    assert schemes - {PruningScheme.DENSE.value}
    for point in points:
        assert point["failure"] is None
        assert point["output_max_abs_error"] < 1e-4


def test_a_policy_searches_and_its_files_verify(simulated_stack: LocalStack) -> None:
    killed = run(simulated_stack, mapping_search(Method.POLICY_GRADIENT), kill_at=("'generation'",))
    with simulated_stack.client() as client:
        points = client.searches.result(killed)["front"]
    assert points
    for point in points:
        assert point["failure"] is None
        assert point["output_max_abs_error"] < 1e-4
