"""Reading the latency database over HTTP."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session

from device_agent.contracts import (
    Conditions,
    HeartbeatRequest,
    KernelSpec,
    PruningScheme,
    Verdict,
    VerdictReason,
    WeightPruning,
    encode,
    kernel_id,
)
from server.latency import profit
from server.latency.schemas import LatencyQuery
from server.models import ProfitPartRow, SeriesRow
from tests.unit.server.server_lab import (
    PROFILE,
    RUNTIMES,
    SETUP,
    LabAgent,
    ServerLab,
    kernel_task,
    measurement,
    report_of,
)


@pytest.fixture
def agent(lab: ServerLab) -> LabAgent:
    """A device with three measured kernels: 100, 200 and (rejected) 300 ns."""
    agent = lab.agent()
    lab.tasks(agent, 3)
    rejected = measurement(300.0, verdict=Verdict.REJECTED, reasons=(VerdictReason.WRONG_OUTPUT,))
    results = (measurement(100.0), measurement(200.0, verdict=Verdict.NOISY), rejected)
    leases = lab.lease(agent, 3)
    lab.report(agent, *(report_of(lease, result) for lease, result in zip(leases, results, strict=True)))
    return agent


def kernels(*channels: int) -> tuple[KernelSpec, ...]:
    return tuple(kernel_task(c).kernel for c in channels)


class TestKernels:
    def test_filters_and_pages(self, lab: ServerLab, agent: LabAgent) -> None:
        items = lab.get("/v1/kernels").json()["items"]
        assert [k["id"] for k in items] == sorted(kernel_id(k) for k in kernels(1, 2, 3))
        assert [k["kernel"]["in_channels"] for k in lab.get("/v1/kernels?in_channels=2").json()["items"]] == [2]
        assert lab.get("/v1/kernels?op=add").json() == {"items": [], "next": None}
        first = lab.get("/v1/kernels?limit=2").json()
        assert len(lab.get(f"/v1/kernels?limit=2&cursor={first['next']}").json()["items"]) == 1

    def test_one(self, lab: ServerLab, agent: LabAgent) -> None:
        (spec,) = kernels(1)
        view = lab.get(f"/v1/kernels/{kernel_id(spec)}").json()
        assert (view["kernel"], view["macs"]) == (encode(spec), spec.macs)
        assert lab.get("/v1/kernels/k_0").status_code == 404


class TestMeasurements:
    def test_verdict_and_provenance_stand_beside_the_number(self, lab: ServerLab, agent: LabAgent) -> None:
        items = lab.get("/v1/measurements").json()["items"]
        assert [m["statistics"]["median_ns"] for m in items] == [300.0, 200.0, 100.0]
        assert items[0]["verdict"] == "rejected"
        assert items[0]["reasons"] == ["wrong_output"]
        assert items[2]["provenance"] == encode(measurement().provenance)

    @pytest.mark.parametrize(
        ("query", "medians"),
        [
            ("verdict=noisy", [200.0]),
            ("runtime=tflite", []),
            ("source=measured&status=accepted&limit=2", [300.0, 200.0]),
            ("device_id=device_0", []),
        ],
    )
    def test_filters(self, lab: ServerLab, agent: LabAgent, query: str, medians: list[float]) -> None:
        items = lab.get(f"/v1/measurements?{query}").json()["items"]
        assert [m["statistics"]["median_ns"] for m in items] == medians

    def test_raw_samples(self, lab: ServerLab, agent: LabAgent) -> None:
        key = lab.get("/v1/measurements").json()["items"][2]["result_key"]
        assert lab.get(f"/v1/measurements/{key}/raw").json() == encode(measurement(100.0))
        assert lab.get("/v1/measurements/x/raw").status_code == 404


class TestLatencyQuery:
    def ask(self, lab: ServerLab, query: LatencyQuery) -> list[float | None]:
        response = lab.post("/v1/latency:query", query)
        assert response.status_code == 200, response.text
        return [None if entry is None else entry["median_ns"] for entry in response.json()["latencies"]]

    def test_in_the_order_asked_with_none_for_what_is_not_measured(self, lab: ServerLab, agent: LabAgent) -> None:
        query = LatencyQuery(device_id=agent.device_id, kernels=kernels(2, 9, 1, 3, 2), setup=SETUP)
        assert self.ask(lab, query) == [200.0, None, 100.0, None, 200.0]

    def test_keys_are_not_mixed(self, lab: ServerLab, agent: LabAgent) -> None:
        query = LatencyQuery(device_id=agent.device_id, kernels=kernels(1), setup=SETUP)
        assert self.ask(lab, replace(query, setup=replace(SETUP, budget_s=9.0))) == [None]
        assert self.ask(lab, replace(query, runtime_version="0.9")) == [None]
        assert self.ask(lab, replace(query, runtime_version="1.0")) == [100.0]
        upgraded = HeartbeatRequest(
            conditions=Conditions(),
            runtimes=RUNTIMES,
            profile=replace(PROFILE, os_build="6.2"),
            agent_version="0.1.0",
        )
        lab.post("/v1/agents:heartbeat", upgraded, agent.token)
        assert self.ask(lab, query) == [None]

    def test_bad_queries(self, lab: ServerLab, agent: LabAgent) -> None:
        body = {"device_id": "device_0", "kernels": [encode(kernels(1)[0])], "setup": encode(SETUP)}
        assert lab.post("/v1/latency:query", body).status_code == 404
        response = lab.post("/v1/latency:query", {**body, "kernels": []})
        assert "0 kernels" in response.json()["detail"]


def test_a_profit_map_that_is_made_anew_meanwhile(
    lab: ServerLab, agent: LabAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map is its summary and its parts: who has read the one gets the others of the same map."""
    monkeypatch.setattr(profit, "MEASUREMENTS_AT_ONCE", 0)
    database, dense = lab.database, kernel_task(2)
    pruned = replace(dense.kernel, pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.25))
    lab.source.request(agent.device_id, [replace(dense, kernel=pruned)], lab.search(agent.device_id))
    lab.report(agent, *(report_of(lease, measurement(50.0)) for lease in lab.lease(agent, 1)))
    assert profit.refresh_profit(database, quiet_s=0.0) is not None
    (series,) = lab.get("/v1/latency-series").json()["items"]
    address = f"/v1/latency:profit?series={series['id']}"
    whole = lab.get(address).json()
    assert whole["kernels"]

    def read_before(session: Session, row: SeriesRow) -> profit.FoundProfit:
        found = profit.require_profit(session, row)
        found.places()
        with database.write() as other:
            other.execute(delete(ProfitPartRow))
        return found

    monkeypatch.setattr("server.latency.endpoints.require_profit", read_before)
    assert lab.get(address).json() == whole
