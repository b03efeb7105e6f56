"""A search never joins latencies of a real and of an emulated device, not even of one that changed in between."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlalchemy import update

from device_agent.contracts import KernelTask, Source, encode, setup_id
from search.domain.config import parse_config
from search.latency.table import LatencyTable, dump_table, kernel_latency
from server.latency.repository import ensure_profile
from server.latency.source import MeasurementSummary
from server.models import DeviceRow
from server.searches import repository
from server.searches.queries import events_after
from server.searches.repository import LATENCY_TABLE
from server.states import JobStage
from server.worker.latencies import ProfileSummary
from server.worker.measuring import Order, check_one_source, measure, warn_mixed
from server.worker.run import SearchFailed, SearchRun
from server.worker.stages.profiling import _taken_over
from tests.samples import flat_statistics
from tests.unit.server.server_lab import (
    PROFILE,
    LabAgent,
    ServerLab,
    kernel_task,
    measurement,
    report_of,
    search_config,
)


def claimed_run(lab: ServerLab, agent: LabAgent) -> SearchRun:
    lab.search(agent.device_id)
    return lab.claimed_run()


def become(lab: ServerLab, agent: LabAgent, *, emulated: bool) -> None:
    profile = replace(PROFILE, emulated=emulated)
    with lab.database.write() as session:
        session.execute(
            update(DeviceRow)
            .where(DeviceRow.id == agent.device_id)
            .values(profile=encode(profile), profile_id=ensure_profile(session, profile))
        )


def measured(
    lab: ServerLab, agent: LabAgent, run: SearchRun, sources: tuple[Source, ...]
) -> tuple[list[KernelTask], list[str]]:
    """Tasks that the search asked for at once, measured one by one by a device that changes between them."""
    tasks = [kernel_task(i + 1) for i in range(len(sources))]
    ids = lab.source.request(agent.device_id, tasks, run.search_id)
    for source in sources:
        become(lab, agent, emulated=source is Source.EMULATED)
        assert lab.report(agent, report_of(lab.lease(agent)[0], measurement(source=source))) == ["accepted"]
    return tasks, ids


def test_measurements_of_one_source_are_returned(lab: ServerLab) -> None:
    agent = lab.agent()
    run = claimed_run(lab, agent)
    tasks, _ = measured(lab, agent, run, (Source.MEASURED, Source.MEASURED))
    order = Order(device_id=agent.device_id, tasks=tasks, source=Source.MEASURED)
    (found,) = measure(run, JobStage.PROFILING, [order], "kernels")
    assert len(found) == 2


def test_a_device_that_changes_under_a_search_ends_it(lab: ServerLab) -> None:
    agent = lab.agent()
    run = claimed_run(lab, agent)
    _, ids = measured(lab, agent, run, (Source.MEASURED, Source.EMULATED))
    with pytest.raises(SearchFailed, match="both emulated and measured"):
        check_one_source("board", lab.source.results(ids).values(), None)


def test_measurements_of_another_source_than_the_table_are_refused(lab: ServerLab) -> None:
    agent = lab.agent()
    run = claimed_run(lab, agent)
    tasks, _ = measured(lab, agent, run, (Source.EMULATED,))
    order = Order(device_id=agent.device_id, tasks=tasks, source=Source.MEASURED)
    with pytest.raises(SearchFailed, match="both emulated and measured"):
        measure(run, JobStage.VERIFYING, [order], "networks")


def test_a_table_of_two_series_says_so(sqlite_lab: ServerLab) -> None:
    lab = sqlite_lab
    agent = lab.agent()
    run = claimed_run(lab, agent)
    tasks = [kernel_task(i + 1) for i in range(3)]
    ids = lab.source.request(agent.device_id, tasks, run.search_id)
    for governor in ("performance", "performance", "powersave"):
        result = measurement()
        result = replace(result, provenance=replace(result.provenance, governor=governor))
        assert lab.report(agent, report_of(lab.lease(agent)[0], result)) == ["accepted"]
    results = lab.source.results(ids)
    found = [item for item in (results[i] for i in ids) if isinstance(item, MeasurementSummary)]
    warn_mixed(run, found[:2], "")
    assert messages(lab, run) == []
    warn_mixed(run, found, " on 'board'")
    (text,) = messages(lab, run)
    assert text.startswith("the latency table on 'board' joins 2 series, which differ in governor")


def messages(lab: ServerLab, run: SearchRun) -> list[str]:
    with lab.database.read() as session:
        found = events_after(session, run.search_id, 0, 1000)
        return [event.data["text"] for event in found if event.kind == "message"]


def test_a_table_of_another_source_is_not_taken_over(lab: ServerLab) -> None:
    agent = lab.agent()
    run = claimed_run(lab, agent)
    config = parse_config(search_config())
    table = LatencyTable(
        device_id=agent.device_id,
        setup_id=setup_id(config.measuring.kernels),
        runtime="native",
        runtime_version="1",
        source=Source.MEASURED,
        kernels=(kernel_latency(kernel_task().kernel, flat_statistics(10.0)),),
    )
    summary = ProfileSummary(
        isa="neon", threads=1, kernels_reused=0, tflite_dense_ns=None, native_dense_ns=None, usual_references={}
    )
    run.put_document(LATENCY_TABLE, dump_table(table))
    with lab.database.write() as session:
        repository.save_checkpoint(
            session, run.claim, stage=JobStage.PROFILING, step=1, data=json.dumps(encode(summary))
        )
    assert _taken_over(run, run.search_id, agent.device_id)[0] == table
    become(lab, agent, emulated=True)
    with pytest.raises(SearchFailed, match="is measured, but what its device gives now is emulated"):
        _taken_over(run, run.search_id, agent.device_id)
