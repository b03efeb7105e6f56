"""Searches that choose what to measure between generations, through the worker and a simulated device."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from typing import Any

import pytest
from sqlalchemy import update

from device_agent.contracts import ContractError, FailureReason, KernelTask, Lease, MeasurementFailure, kernel_id
from device_agent.runtimes.simulated import CORE_VARIABLE
from search.domain.config import ChannelsConfig, MeasuringStrategy, SearchConfig, SpaceConfig
from search.domain.objective import Constraint, LatencyOverDevices, Metric
from search.latency.table import LatencyTable, load_table
from server.models import MeasurementRow
from server.searches.repository import LATENCY_TABLE, device_document, load_candidates, load_checkpoint
from server.states import JobStage
from server.worker import active as rounds
from server.worker.run import SearchFailed
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.worker_lab import Kill, WorkerLab, quick_search

MAX_KERNELS = 36

#: Few families: refitting a model takes the time of these tests.
CHANNELS = SpaceConfig(channels=ChannelsConfig(min_ratio=0.25, multiple_of=4))


def active(name: str, max_kernels: int = MAX_KERNELS, **changes: Any) -> SearchConfig:
    config = quick_search(name, space=CHANNELS, **changes)
    return dataclasses.replace(
        config,
        method=dataclasses.replace(config.method, generations=3),
        measuring=dataclasses.replace(
            config.measuring, strategy=MeasuringStrategy.ACTIVE, round_generations=2, max_kernels=max_kernels
        ),
    )


CORES = ("phone", "board")


def on_both(name: str, **changes: Any) -> SearchConfig:
    return active(name, devices=CORES, **changes)


def tables_of(worker: WorkerLab, search_id: str) -> list[LatencyTable]:
    ids = [worker.agents[core].device_id for core in CORES]
    return [load_table(worker.document(search_id, device_document(LATENCY_TABLE, own, ids))) for own in ids]


def rounds_stored(worker: WorkerLab, search_id: str) -> tuple[int, dict[str, list[str]]]:
    with worker.lab.database.read() as session:
        found = load_checkpoint(session, search_id, JobStage.SEARCHING)
    assert found is not None
    stored = json.loads(found.data)["rounds"]
    return stored["done"], stored["left_out"]


def table_of(worker: WorkerLab, search_id: str) -> LatencyTable:
    return load_table(worker.document(search_id, LATENCY_TABLE))


def test_a_search_ends_where_the_runtime_changed_between_its_rounds(
    sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = WorkerLab(sqlite_lab)
    killed = worker.submit(active("active"))
    worker.run(killed, Kill(note="round 1 of 2", steps=1))
    monkeypatch.setattr(rounds, "version_of", lambda _: "2+upgraded")
    with pytest.raises(SearchFailed, match=r"when the search began and is 2\+upgraded now"):
        worker.run(killed)


def test_a_worker_that_dies_in_rounds_and_between_them_changes_nothing(sqlite_lab: ServerLab) -> None:
    worker = WorkerLab(sqlite_lab)
    config = active("active")
    killed = worker.submit(config)
    # The kernels of the first round are measured, but it is not stored.
    worker.run(killed, Kill(note="round 1 of 2", steps=1))
    assert rounds_stored(worker, killed) == (0, {})
    before = table_of(worker, killed)
    # Stored, and the third generation has not begun.
    run = worker.run(killed, Kill(note="round 1 of 2", steps=1))
    assert rounds_stored(worker, killed) == (1, {})
    after = table_of(worker, killed)
    assert set(before.kernels) < set(after.kernels)
    chosen = [note for _, note in run.notes if note.startswith("round ")]
    assert chosen == [f"round 1 of 2: {len(after.kernels) - len(before.kernels)} kernels near the front"]
    worker.run(killed)
    whole = worker.done(config)
    assert worker.outcome(killed) == worker.outcome(whole)
    for name in (LATENCY_TABLE, "latency-card"):
        assert worker.document(killed, name) == worker.document(whole, name)
    assert_one_table(worker, killed)
    with pytest.raises(SearchFailed, match=r"chose its kernels as it went .* leave latency_from out"):
        worker.run(worker.submit(quick_search("grid", latency_from=whole)))


def assert_one_table(worker: WorkerLab, search_id: str) -> None:
    """The budget is kept, and all candidates have the latencies that the last table gives."""
    table = table_of(worker, search_id)
    assert len(table.kernels) == MAX_KERNELS
    result = worker.get(f"/v1/searches/{search_id}/result")
    assert result["device"]["kernels"] == MAX_KERNELS
    with worker.lab.database.read() as session:
        candidates = {c.candidate_id: c for c in load_candidates(session, search_id)}
    assert sorted({c.generation for c in candidates.values()}) == [1, 2, 3]
    for point in result["front"]:
        stored = candidates[point["candidate_id"]].metrics[Metric.LATENCY_MS.value]
        assert stored == pytest.approx(point["predicted_latency_ms"], rel=1e-9)
        assert point["measured_latency_ms"] == pytest.approx(stored, rel=0.1)
    told = [text for text in worker.messages(search_id) if text.startswith("round ")]
    assert [text.split(":")[0] for text in told] == ["round 1 of 2", "round 2 of 2"]
    assert all("latencies near the front are predicted to " in text for text in told)


def test_kernels_that_cannot_be_measured_are_left_out_and_not_chosen_again(
    sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = WorkerLab(sqlite_lab, CORES)
    search_id = worker.submit(on_both("failing", latency_over_devices=LatencyOverDevices.GEOMETRIC_MEAN))
    worker.run(search_id, Kill(stage=JobStage.SEARCHING, steps=1))
    asked: list[str] = []
    measured = worker._measured

    def broken_on_board(lease: Lease) -> Any:
        if isinstance(lease.task, KernelTask) and os.environ[CORE_VARIABLE] == "board":
            asked.append(kernel_id(lease.task.kernel))
            return MeasurementFailure(reason=FailureReason.UNSUPPORTED, detail="no such kernel here")
        return measured(lease)

    monkeypatch.setattr(worker, "_measured", broken_on_board)
    before = tables_of(worker, search_id)
    worker.run(search_id)
    assert rounds_stored(worker, search_id) == (2, {worker.agents["board"].device_id: asked})
    assert len(set(asked)) == len(asked) == MAX_KERNELS - len(before[1].kernels)
    phone, board = tables_of(worker, search_id)
    assert len(phone.kernels) == MAX_KERNELS
    assert board == before[1]
    told = [text for text in worker.messages(search_id) if "no such kernel here" in text]
    assert len(told) == len(asked)
    assert all(text.startswith("left out of the latency table on 'board': ") for text in told)
    assert worker.get(f"/v1/searches/{search_id}/result")["front"]


def test_budgets_that_leave_nothing_to_choose_are_refused(sqlite_lab: ServerLab) -> None:
    worker = WorkerLab(sqlite_lab)
    search_id = worker.submit(active("small", max_kernels=20))
    with pytest.raises(ContractError, match=r"the corners of small_cnn's .* are \d+ kernels, but max_kernels is 20"):
        worker.run(search_id)


def test_two_devices_are_asked_for_kernels_of_their_own(sqlite_lab: ServerLab) -> None:
    """Killed in a round, it ends as one that was not; what was measured for the first is a cache hit for the other."""
    worker = WorkerLab(sqlite_lab, CORES)
    config = on_both("active", latency_over_devices=LatencyOverDevices.GEOMETRIC_MEAN)
    killed = worker.submit(config)
    worker.run(killed, Kill(note="round 1 of 2", steps=1))
    # The kernels of the first round are measured on both, but it is not stored.
    assert rounds_stored(worker, killed) == (0, {})
    before = tables_of(worker, killed)
    run = worker.run(killed)
    assert rounds_stored(worker, killed) == (2, {})
    whole = worker.done(config)
    with worker.lab.database.write() as session:
        session.execute(update(MeasurementRow).values(duration_s=6.0))
    assert worker.outcome(killed) == worker.outcome(whole)
    last = tables_of(worker, killed)
    assert last == tables_of(worker, whole)
    new = [{k.kernel for k in now.kernels[len(then.kernels) :]} for now, then in zip(last, before, strict=True)]
    assert new[0] != new[1]
    told = [
        re.findall(r"(\d+) on", text) for text in dict.fromkeys(note for _, note in run.notes) if "near the" in text
    ]
    assert [sum(map(int, counts)) for counts in zip(*told, strict=True)] == [len(own) for own in new]
    assert all(new)
    result = worker.get(f"/v1/searches/{killed}/result")
    total = sum(effort(worker, killed, core)["measurements"] for core in CORES)
    assert result["search"]["measuring"]["measurements"] == total
    for table, core in zip(last, CORES, strict=True):
        assert len(table.kernels) <= MAX_KERNELS
        count = effort(worker, whole, core)["measurements"]
        assert count > len(table.kernels) + len(table.networks)
        assert effort(worker, killed, core) == effort_of(count, cache_hits=0, device_minutes=pytest.approx(0.1 * count))
        assert effort(worker, whole, core) == effort_of(count, cache_hits=count, device_minutes=0.0)
    for point in result["front"]:
        own = [device["predicted_latency_ms"] for device in point["devices"]]
        assert point["predicted_latency_ms"] == pytest.approx(math.sqrt(own[0] * own[1]))
        assert point["measured_latency_ms"] == pytest.approx(point["predicted_latency_ms"], rel=0.1)


def test_of_the_slowest_only_those_are_asked_that_may_be_it_or_have_a_bound(sqlite_lab: ServerLab) -> None:
    worker = WorkerLab(sqlite_lab, CORES)
    on_phone = Constraint(metric=Metric.LATENCY_MS, max=1000.0, device="phone")
    asked = []
    for constraints in ((), (on_phone,)):
        search_id = worker.submit(on_both("slowest", constraints=constraints))
        run = worker.run(search_id, Kill(note="round 1 of 2", steps=1))
        # On a slow machine devices count as away meanwhile, and the note says so.
        asked += [note.split(";")[0] for _, note in run.notes if note.startswith("round ")]
        worker.lab.post(f"/v1/searches/{search_id}:cancel")
    assert asked == [
        "round 1 of 2: 4 kernels (0 on 'phone', 4 on 'board') near the front",
        "round 1 of 2: 8 kernels (4 on 'phone', 4 on 'board') near the front",
    ]


def effort(worker: WorkerLab, search_id: str, core: str) -> dict[str, Any]:
    found: dict[str, Any] = worker.get(f"/v1/searches/{search_id}")["measuring"][worker.agents[core].device_id]
    return found


def effort_of(measurements: int, **rest: Any) -> dict[str, Any]:
    return {"measurements": measurements, **rest}
