"""Pausing, resuming and cancelling a running search."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Container

import pytest

from device_agent.contracts import encode
from kerf import ApiError, Client
from server.cli.local_stack import LocalStack
from tests.end_to_end.stacks import simulated_search

pytestmark = pytest.mark.xdist_group("stack")

#: A search that hangs must not hang the tests; none takes a tenth of this.
TIMEOUT_S = 300.0


def submit(client: Client, generations: int) -> str:
    config = simulated_search("steered")
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, generations=generations))
    return str(client.searches.create(encode(config))["id"])


def wait_for_state(client: Client, search_id: str, states: Container[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while client.searches.get(search_id)["state"] not in states:
        assert time.monotonic() < deadline, client.searches.get(search_id)
        time.sleep(0.05)


def wait_for_generation(client: Client, search_id: str) -> None:
    for event in client.searches.events(search_id):
        if event["kind"] == "generation":
            return
    raise AssertionError(f"the search ended before its first generation: {client.searches.get(search_id)}")


@pytest.mark.slow  # test_several_devices pauses one, too.
def test_a_paused_search_goes_on_to_the_same_front(simulated_stack: LocalStack) -> None:
    with simulated_stack.client() as client:
        undisturbed = submit(client, generations=40)
        wait_for_state(client, undisturbed, {"completed", "failed"})
        paused = submit(client, generations=40)
        wait_for_generation(client, paused)
        client.searches.pause(paused)
        wait_for_state(client, paused, {"paused"})
        assert client.searches.pause(paused)["state"] == "paused"
        client.searches.resume(paused)
        wait_for_state(client, paused, {"completed", "failed"})
        assert client.searches.get(paused)["state"] == "completed"
        fronts = [client.searches.searched_front(search_id) for search_id in (undisturbed, paused)]
    assert fronts[0] == fronts[1]


def test_a_cancelled_search_ends_and_frees_the_worker(simulated_stack: LocalStack) -> None:
    with simulated_stack.client() as client:
        cancelled = submit(client, generations=1000)
        wait_for_generation(client, cancelled)
        following = submit(client, generations=1)
        client.searches.cancel(cancelled)
        wait_for_state(client, cancelled, {"cancelled"})
        wait_for_state(client, following, {"completed", "failed"})
        assert client.searches.get(following)["state"] == "completed"
        with pytest.raises(ApiError, match="cancelled"):
            client.searches.resume(cancelled)
