"""A search over two simulated devices of different speeds: real processes, one front, figures of each device."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from device_agent.contracts import Verdict, encode
from device_agent.runtimes.simulated import CORE_VARIABLE
from kerf import ApiError, Client
from search.domain.config import SearchConfig, SelectionConfig
from search.domain.objective import Constraint, LatencyOverDevices, Metric
from search.domain.result import SearchResult, result_schema
from search.latency.fleet import over_devices
from server.cli.local_stack import LocalStack, StackOptions, running_stack
from server.cli.searches import run_search
from tests.end_to_end.stacks import simulated_search

pytestmark = pytest.mark.xdist_group("stack")

#: A search that hangs must not hang the tests; none takes a tenth of this.
TIMEOUT_S = 300.0

PHONE, BOARD = "local", "board"


def start_board(stack: LocalStack, state_dir: Path) -> None:
    """A second agent, of a device that computes its latencies for another core."""
    if BOARD not in stack.commands:
        local = stack.commands["agent"]
        agent = local[: local.index("--server")]
        with stack.client() as client:
            code = client.devices.create_enrolment_code()["code"]
        agent += ["--server", stack.url, "--code", code, "--name", BOARD, "--state-dir", str(state_dir), "--simulated"]
        stack.commands[BOARD] = ["/usr/bin/env", f"{CORE_VARIABLE}=board", *agent]
    stack.start(BOARD)


def stop_board(stack: LocalStack) -> None:
    process = stack.processes.pop(BOARD, None)
    if process is not None:
        process.terminate()
        process.wait()


def is_enrolled(client: Client) -> bool:
    return {d["name"] for d in client.devices.list()} == {PHONE, BOARD}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    state = tmp_path_factory.mktemp("fleet")
    with pytest.MonkeyPatch.context() as environment:
        # An agent that is away counts as offline after three of these.
        environment.setenv("KERF_HEARTBEAT_INTERVAL_S", "1")
        # A job that is asked to pause while its worker is dead is settled after this.
        environment.setenv("KERF_JOB_STALE_S", "5")
        yield from running_fleet(state)


def running_fleet(state: Path) -> Iterator[LocalStack]:
    with running_stack(StackOptions(state_dir=state, simulated=True)) as stack:
        start_board(stack, state / "board")
        with stack.client() as client:
            stack.wait_for("the second agent to enrol", lambda: is_enrolled(client))
        try:
            yield stack
        finally:
            stop_board(stack)


def fleet_search(name: str, **changes: object) -> SearchConfig:
    config = simulated_search(name)
    return dataclasses.replace(
        config,
        devices=(PHONE, BOARD),
        model=dataclasses.replace(config.model, train_epochs=2),
        measuring=dataclasses.replace(config.measuring, calibration_networks=3),
        selection=SelectionConfig(candidates=2),
        training=dataclasses.replace(config.training, epochs=0.5),
        **changes,
    )


@pytest.fixture(scope="module")
def disturbed(fleet: LocalStack) -> tuple[str, list[str]]:
    """A search that waited for a device that was away, lost its worker meanwhile, was paused and resumed; and what it
    told the user.
    """
    stop_board(fleet)
    with fleet.client() as client:
        search_id = client.searches.create(encode(fleet_search("disturbed")))["id"]
        wait_until_only_the_board_has_work(client, search_id)
        fleet.processes["worker"].kill()
        fleet.processes["worker"].wait()
        fleet.start("worker")
        client.searches.pause(search_id)
        wait_for(client, search_id, "paused")
        client.searches.resume(search_id)
        start_board(fleet, Path())
        told = [event["data"]["text"] for event in client.searches.events(search_id) if event["kind"] == "message"]
        wait_for(client, search_id, "completed")
    return search_id, told


def test_a_disturbed_search_ends_as_an_undisturbed_one_with_the_same_tables(
    fleet: LocalStack, disturbed: tuple[str, list[str]], tmp_path: Path
) -> None:
    search_id, _ = disturbed
    console = Console(file=io.StringIO(), width=200)
    with fleet.client() as client:
        result = run_search(client, fleet_search("again", latency_from=search_id), {}, tmp_path, console)
        earlier = client.searches.result(search_id)
        assert json.loads((tmp_path / "front.json").read_text()) == client.searches.searched_front(search_id)
        tables = [client.searches.latency_table(search_id, device=device.id) for device in result.devices]
        with pytest.raises(ApiError, match="has no device"):
            client.searches.latency_table(search_id, device="device_0")
    names = ("latency-table.json", f"latency-table.{result.devices[1].id}.json")
    assert [json.loads((tmp_path / name).read_text()) for name in names] == tables
    assert [table["device_id"] for table in tables] == [device.id for device in result.devices]
    assert tables[0]["runtime_version"] != tables[1]["runtime_version"]
    assert json.loads((tmp_path / "result.json").read_text())["front"] == earlier["front"]
    assert_figures_of_every_device(result)
    jsonschema.validate(earlier, result_schema())
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert f"on {PHONE}" in printed
    assert f"on {BOARD}" in printed


def assert_figures_of_every_device(result: SearchResult) -> None:
    ids = [device.id for device in result.devices]
    assert [device.name for device in result.devices] == [PHONE, BOARD]
    assert result.device == result.devices[0]
    assert result.search.settings["devices"] == ids
    assert len(result.front) == 2
    for point in result.front:
        assert [at.device_id for at in point.devices] == ids
        for at in point.devices:
            assert at.verdict is Verdict.TRUSTED
            assert at.output_max_abs_error is not None
            assert at.output_max_abs_error < 1e-4
            assert at.measured_latency_ms == pytest.approx(at.predicted_latency_ms, rel=0.1)
        measured = [at.measured_latency_ms for at in point.devices]
        assert point.measured_latency_ms == max(measured)
        assert point.predicted_latency_ms == max(at.predicted_latency_ms for at in point.devices)
        assert measured[0] != measured[1]
    assert [baseline.device_id for baseline in result.baseline.devices] == ids
    dense = [baseline.latency_ms.tflite_dense or 0.0 for baseline in result.baseline.devices]
    assert min(dense) > 0
    assert result.baseline.latency_ms.tflite_dense == max(dense)


def test_the_user_is_told_which_device_a_search_waits_for(disturbed: tuple[str, list[str]]) -> None:
    _, told = disturbed
    waits = [text for text in told if text.startswith("waiting for the device")]
    assert waits
    assert all(f"'{BOARD}', which is offline: start its agent" in text for text in waits)


@pytest.mark.slow  # test_methods_in_worker has both without processes.
def test_a_bound_on_one_device_and_a_mean_over_both(
    fleet: LocalStack, disturbed: tuple[str, list[str]], tmp_path: Path
) -> None:
    search_id, _ = disturbed
    with fleet.client() as client:
        front = client.searches.result(search_id)["front"]
        bound_ms = float(np.mean([point["devices"][1]["predicted_latency_ms"] for point in front]))
        config = fleet_search(
            "bounded",
            latency_from=search_id,
            latency_over_devices=LatencyOverDevices.MEAN,
            constraints=(Constraint(metric=Metric.LATENCY_MS, max=bound_ms, device=BOARD),),
        )
        config = dataclasses.replace(config, selection=SelectionConfig(candidates=1))
        bounded = run_search(client, config, {}, tmp_path, Console(file=io.StringIO()))
    for point in bounded.front:
        own = [at.predicted_latency_ms for at in point.devices]
        assert own[1] <= bound_ms
        assert point.predicted_latency_ms == pytest.approx(float(over_devices(own, LatencyOverDevices.MEAN)))


def wait_until_only_the_board_has_work(client: Client, search_id: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        open_tasks = {d["name"]: d["pending_tasks"] + d["leased_tasks"] for d in client.devices.list()}
        offline = {d["name"] for d in client.devices.list() if d["state"] == "offline"}
        told = client.searches.get(search_id)["progress"].get("note", "")
        if open_tasks[BOARD] and not open_tasks[PHONE] and BOARD in offline and f"waits for '{BOARD}'" in told:
            return
        found = client.searches.get(search_id)
        assert found["state"] in ("pending", "running"), found
        assert time.monotonic() < deadline, (open_tasks, told)
        time.sleep(0.1)


def wait_for(client: Client, search_id: str, state: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while (found := client.searches.get(search_id))["state"] != state:
        assert found["state"] not in ("failed", "cancelled"), found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
