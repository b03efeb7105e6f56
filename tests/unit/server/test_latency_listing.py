"""Series, filters and comparison: figures of different keys stay apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from device_agent.contracts import Block, Measurement, Provenance
from device_agent.contracts.statistics import summarize
from server.latency import compare, queries
from server.latency.series import SeriesKey
from tests.unit.server.server_lab import SETUP, LabAgent, ServerLab, kernel_task, measurement, report_of


def under(median_ns: float, **changes: Any) -> Measurement:
    """A measurement with another provenance."""
    found = measurement(median_ns)
    times = [(factor * median_ns,) * 2 for factor in (0.99, 1.0, 1.0, 1.0, 1.0, 1.01)]
    blocks = tuple(Block(thread_cpu_ns=ns, wall_ns=ns) for ns in times)
    return replace(
        found,
        provenance=replace(found.provenance, **changes),
        blocks=blocks,
        statistics=summarize(blocks, SETUP.clock),
    )


def measure(lab: ServerLab, agent: LabAgent, *results: Measurement) -> None:
    """The results, of kernels in turn, as the answers to one search."""
    search = lab.search(agent.device_id)
    lab.source.request(agent.device_id, [kernel_task(i + 1) for i in range(len(results))], search, force=True)
    leases = lab.lease(agent, len(results))
    assert len(leases) == len(results)
    lab.report(agent, *(report_of(lease, result) for lease, result in zip(leases, results, strict=True)))


@pytest.mark.parametrize(
    "change",
    [
        {"affinity": (2, 3)},
        {"governor": "powersave"},
        {"agent_version": "0.2.0"},
        {"isa": "dotprod"},
        {"runtime_version": "1.1"},
        {"runtime_sha256": "cd" * 32},
        {"mode": "sparse"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_part_of_the_key_is_averaged_over(sqlite_lab: ServerLab, change: dict[str, Any]) -> None:
    lab = sqlite_lab
    agent = lab.agent()
    measure(lab, agent, under(100.0))
    measure(lab, agent, under(200.0, **change))
    rows = lab.get("/v1/latencies").json()["items"]
    assert sorted(row["latency"]["median_ns"] for row in rows) == [100.0, 200.0]
    assert all(row["latency"]["num_measurements"] == 1 for row in rows)
    assert len({row["series"]["id"] for row in rows}) == (1 if "mode" in change else 2)
    (name,) = change
    if name != "mode":
        told = {str(row["series"][name]) for row in rows}
        assert len(told) == 2


def test_every_part_of_provenance_is_key_or_mode() -> None:
    assert set(Provenance.__dataclass_fields__) - set(SeriesKey.__dataclass_fields__) == {"mode"}


def test_a_query_answers_from_one_series(sqlite_lab: ServerLab) -> None:
    """Kernel 2 was measured under the old runtime alone: it is not put beside kernel 1 of the new one."""
    lab = sqlite_lab
    agent = lab.agent()
    measure(lab, agent, under(100.0), under(300.0))
    measure(lab, agent, under(90.0, runtime_version="1.1"))
    body = {
        "device_id": agent.device_id,
        "kernels": [kernel_task(1).kernel, kernel_task(2).kernel],
        "setup": kernel_task(1).setup,
    }
    answer = lab.post("/v1/latency:query", body).json()
    assert answer["series"]["runtime_version"] == "1.1"
    assert [entry and entry["median_ns"] for entry in answer["latencies"]] == [90.0, None]
    old = next(s for s in lab.get("/v1/latency-series").json()["items"] if s["runtime_version"] == "1.0")
    answer = lab.post("/v1/latency:query", {**body, "series_id": old["id"]}).json()
    assert [entry and entry["median_ns"] for entry in answer["latencies"]] == [100.0, 300.0]
    other = lab.agent()
    refused = lab.post("/v1/latency:query", {**body, "device_id": other.device_id, "series_id": old["id"]})
    assert refused.status_code == 422


def test_filters_and_pages(lab: ServerLab) -> None:
    agent = lab.agent()
    measure(lab, agent, *(under(100.0 + i) for i in range(4)))

    def medians(**wanted: Any) -> list[float]:
        items = lab.get("/v1/latencies", params=wanted).json()["items"]
        return sorted(item["latency"]["median_ns"] for item in items)

    assert medians(device="board", op="conv2d", kernel_h=3, input_h=8) == [100.0, 101.0, 102.0, 103.0]
    assert medians(in_channels=2, min_density=0.5, scheme="dense") == [101.0]
    for nothing in ({"max_density": 0.5}, {"source": "imported"}, {"verdict": "noisy"}, {"runtime": "tflite"}):
        assert medians(**nothing) == []
    assert lab.get("/v1/latencies?device=none").status_code == 404
    found, cursor = [], None
    while True:
        page = lab.get("/v1/latencies", params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
        found += [item["latency"]["kernel_id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(found) == 4
    assert found == sorted(found), "of one series"
    assert lab.get("/v1/latencies?cursor=eA").status_code == 400


class TestComparison:
    def test_two_runtimes_versions_of_a_device(self, sqlite_lab: ServerLab) -> None:
        lab = sqlite_lab
        agent = lab.agent()
        measure(lab, agent, under(100.0), under(200.0), under(400.0))
        measure(lab, agent, under(50.0, runtime_version="1.1"), under(200.0, runtime_version="1.1"))
        refused = lab.get("/v1/latency:compare?first_device=board&second_device=board")
        assert refused.status_code == 422
        assert refused.json()["code"] == "several_series"
        assert "differ in runtime version" in refused.json()["detail"]
        old, new = sorted(lab.get("/v1/latency-series").json()["items"], key=lambda s: s["runtime_version"])
        params = {"first_series": old["id"], "second_series": new["id"]}
        found = lab.get("/v1/latency:compare", params=params).json()
        assert found["differing_parts"] == ["runtime version"]
        assert (found["summary"]["count"], found["only_first"], found["only_second"]) == (2, 1, 0)
        assert found["summary"]["geometric_mean"] == pytest.approx(0.5**0.5)
        faster, same = found["kernels"]
        assert (faster["ratio"], faster["differs"], same["differs"]) == (0.5, True, False)
        low, high = faster["ratio_ci95"]
        assert low < 0.5 < high
        assert lab.get("/v1/latency:compare", params={**params, "second_series": old["id"]}).status_code == 422

    def test_a_kernel_in_two_modes_is_no_one_figure(self, sqlite_lab: ServerLab) -> None:
        lab = sqlite_lab
        first, second = lab.agent(), lab.agent(device_name="other")
        measure(lab, first, under(100.0))
        measure(lab, first, under(40.0, mode="sparse"))
        measure(lab, second, under(100.0))
        found = lab.get("/v1/latency:compare?first_device=board&second_device=other&second_runtime=native").json()
        assert (found["ambiguous"], found["summary"], found["kernels"]) == (1, None, [])
        assert "device" in found["differing_parts"]

    @pytest.mark.parametrize("sizes", [(8, 6), (3, 8), (8, 2)])
    def test_of_large_series_a_part_is_drawn(
        self, sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int]
    ) -> None:
        """Whatever is compared of a part is what all of it would say of those kernels; a small side is never cut."""
        lab = sqlite_lab
        first, second = lab.agent(), lab.agent(device_name="other")
        for agent, count in zip((first, second), sizes, strict=True):
            measure(lab, agent, *(under(100.0 + i) for i in range(count)))
        path = "/v1/latency:compare?first_device=board&second_device=other"
        whole = lab.get(path).json()
        assert whole["is_sample"] is False
        monkeypatch.setattr(compare, "MAX_COMPARED", 4)
        part = lab.get(path).json()
        assert part["is_sample"] is (min(sizes) > 4)
        if not part["is_sample"]:
            assert part == whole
            return
        kept = {item["kernel_id"] for item in part["kernels"]}
        ordered = sorted(item["kernel_id"] for item in whole["kernels"])
        assert kept == set(ordered[: len(kept)])
        assert part["summary"]["count"] == len(kept) == 4
        assert part["only_second"] == 0


def test_measurements_are_looked_through_in_parts(lab: ServerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = lab.agent()
    measure(lab, agent, *(under(100.0 + i) for i in range(7)))
    whole = lab.get("/v1/measurements", params={"device_id": agent.device_id, "verdict": "trusted"}).json()
    assert (len(whole["items"]), whole["next"]) == (7, None)
    monkeypatch.setattr(queries, "LOOKED_THROUGH", 3)
    keys, pages, cursor = [], 0, None
    while pages == 0 or cursor is not None:
        params = {"verdict": "rejected" if pages % 2 else "trusted", **({"cursor": cursor} if cursor else {})}
        page = lab.get("/v1/measurements", params=params).json()
        keys += [item["result_key"] for item in page["items"]]
        pages, cursor = pages + 1, page["next"]
    # The second of three parts asked for what nothing is.
    assert pages == 3
    assert keys == [item["result_key"] for item in whole["items"][:3] + whole["items"][6:]]
