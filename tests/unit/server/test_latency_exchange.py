"""Import and export of latencies: all of a file or nothing, nothing twice, and the same again after a round trip."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from device_agent.contracts import ContractError, MeasuringSetup, Source, Verdict, VerdictReason, decode, encode
from search.limited_process import Limits
from server.errors import Unprocessable
from server.latency.exchange import export, parse_process, service, tables
from server.latency.exchange.mapping import ImportMapping
from server.latency.exchange.parsing import ParsedFile, RowErrors
from server.latency.exchange.tables import TableFormat
from server.latency.listing import LatencyFilter
from tests.unit.server.server_lab import (
    PROFILE,
    LabAgent,
    ServerLab,
    kernel_task,
    measurement,
    report_of,
    search_config,
)

MAPPING = yaml.safe_load("""
unit: us
latency: time_us
device: {cpu_model: Cortex-A55, machine: aarch64}
columns: {in_channels: cin, out_channels: cout, density: dens, kernel_h: k, kernel_w: k}
constants:
  {op: conv2d, input_h: 8, input_w: 8, padding: 1, scheme: group, block_filters: 4, runtime: theirs,
   runtime_version: "2.0", threads: 1, governor: performance, affinity: "3"}
missing: [0]
""")
CSV = "cin,cout,dens,k,time_us\n8,16,0.5,3,12.5\n16,16,0.25,3,7\n16,32,0.25,3,0\n"


def send(lab: ServerLab, name: str, data: bytes, mapping: Any = MAPPING, device: str = "their board") -> Any:
    digest = hashlib.sha256(data).hexdigest()
    assert lab.request("PUT", f"/v1/artifacts/sha256/{digest}", content=data).status_code in (200, 201, 204)
    body = {"device": device, "file_name": name, "file_sha256": digest}
    return lab.post("/v1/latency:import", body if mapping is None else {**body, "mapping": mapping})


def figures(lab: ServerLab, **wanted: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = lab.get("/v1/latencies", params=wanted).json()["items"]
    return items


@pytest.fixture
def agent(sqlite_lab: ServerLab) -> LabAgent:
    """A device with four kernels measured, one of them rejected."""
    agent = sqlite_lab.agent()
    sqlite_lab.tasks(agent, 4)
    rejected = measurement(300.25, verdict=Verdict.REJECTED, reasons=(VerdictReason.WRONG_OUTPUT,))
    results = (measurement(100.125), measurement(1 / 3, verdict=Verdict.NOISY), rejected, measurement(7e9))
    leases = sqlite_lab.lease(agent, 4)
    sqlite_lab.report(agent, *(report_of(lease, result) for lease, result in zip(leases, results, strict=True)))
    return agent


def test_a_table_becomes_an_imported_device_that_gets_no_work(lab: ServerLab) -> None:
    answer = send(lab, "theirs.csv", CSV.encode()).json()
    assert (answer["rows"], answer["added"], answer["already_there"], answer["missing"]) == (3, 2, 0, 1)
    first, second = sorted(figures(lab), key=lambda item: item["latency"]["median_ns"])
    assert (first["latency"]["median_ns"], second["latency"]["median_ns"]) == (7000.0, 12500.0)
    assert first["kernel"]["pruning"]["density"] == 0.25
    assert first["kernel"]["kernel_w"] == 3
    assert (first["latency"]["verdict"], first["series"]["source"]) == ("noisy", "imported")
    assert (first["series"]["governor"], first["series"]["affinity"]) == ("performance", [3])
    (measured,) = lab.get("/v1/measurements", params={"limit": 1}).json()["items"]
    assert (measured["reasons"], measured["task_id"], measured["statistics"]) == (["not_verified"], None, None)
    assert lab.get(f"/v1/measurements/{measured['result_key']}/raw").status_code == 404

    device = lab.get(f"/v1/devices/{answer['device_id']}").json()
    assert (device["state"], device["last_seen_at"], device["profile"]["imported"]) == ("imported", None, True)
    search = lab.agent()
    task = kernel_task(8, MeasuringSetup(runtime="theirs"))
    with pytest.raises(Unprocessable, match="is imported: it has no agent"):
        lab.source.request(answer["device_id"], [task], lab.search(search.device_id))
    refused = lab.post("/v1/searches", search_config(device="their board"))
    assert refused.status_code == 422
    assert "'their board' is imported" in refused.json()["detail"]
    assert lab.post(f"/v1/devices/{answer['device_id']}:enable", token=lab.admin).status_code == 404


def test_a_file_is_imported_once(lab: ServerLab) -> None:
    first = send(lab, "theirs.csv", CSV.encode()).json()
    again = send(lab, "theirs.csv", CSV.encode()).json()
    assert (again["added"], again["already_there"]) == (0, 2)
    assert (again["import_id"], again["device_id"]) == (first["import_id"], first["device_id"])
    longer = send(lab, "longer.csv", (CSV + "8,8,1,3,20\n8,16,0.5,3,13\n").encode()).json()
    assert (longer["added"], longer["already_there"]) == (2, 2)
    by_count = {item["latency"]["median_ns"]: item["latency"] for item in figures(lab)}
    assert set(by_count) == {7000.0, 13000.0, 20000.0}
    again = by_count[13000.0]
    assert (again["num_measurements"], again["min_median_ns"], again["max_median_ns"]) == (2, 12500.0, 13000.0)
    (series,) = lab.get("/v1/latency-series").json()["items"]
    assert series["num_measurements"] == 4


def test_every_bad_row_is_named_and_nothing_is_written(sqlite_lab: ServerLab) -> None:
    text = CSV + "8,16,1.5,3,9\nx,16,0.5,3,9\n8,16,0.5,3,-1\n8.5,16,0.5,3,9\n8,16,0.5,3,nan\n"
    answer = send(sqlite_lab, "theirs.csv", text.encode())
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "bad_rows"
    assert [error["field"] for error in problem["errors"]] == [f"line {n}" for n in range(5, 10)]
    messages = [error["message"] for error in problem["errors"]]
    for message, part in zip(
        messages, ("density", "'x' is no number", "-1", "'8.5' is no whole", "'nan'"), strict=True
    ):
        assert part in message
    assert "5 rows cannot be used, and nothing was imported" in problem["detail"]
    assert sqlite_lab.get("/v1/devices").json()["items"] == []
    assert sqlite_lab.get("/v1/kernels").json()["items"] == []


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"columns": {**MAPPING["columns"], "in_channels": "inputs"}}, "no column 'inputs'"),
        ({"columns": {**MAPPING["columns"], "chanels": "cin"}}, "no field 'chanels'"),
        ({"constants": {"op": "conv2d"}}, "nothing says 'runtime'"),
        ({"unit": "h"}, "'h' is not one of"),
        ({"axes": [{"name": "a", "field": "density", "values": [1]}]}, "either `latency`"),
        ({"ci95_low": "k"}, "two ends"),
    ],
)
def test_bad_mappings(sqlite_lab: ServerLab, change: dict[str, Any], part: str) -> None:
    answer = send(sqlite_lab, "theirs.csv", CSV.encode(), {**MAPPING, **change})
    assert answer.status_code == 422
    assert part in answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("t.csv", b"cin,cout\n1\n", "line 2 has 1 cells"),
        ("t.csv", b"\xff\xfe", "no UTF-8"),
        ("t.csv", b"cin,cin\n", "two columns"),
        ("t.json", b"{", "no JSON"),
        ("t.parquet", b"PAR1" + bytes(20), "no Parquet"),
        ("t.xlsx", b"PK", "none of .csv"),
        ("t.csv", b"", "no rows"),
    ],
)
def test_files_that_are_not_what_they_say(sqlite_lab: ServerLab, name: str, data: bytes, part: str) -> None:
    answer = send(sqlite_lab, name, data)
    assert answer.status_code == 422
    assert part in answer.json()["detail"]


def test_limits(sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ROWS", 2)
    assert "more than 2 rows" in send(sqlite_lab, "t.csv", CSV.encode()).json()["detail"]
    monkeypatch.setattr(service, "MAX_FILE_BYTES", 10)
    assert send(sqlite_lab, "t.csv", CSV.encode()).status_code == 413


def test_a_large_file_is_read_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapping, path = decode(ImportMapping, MAPPING), tmp_path / ("ab" * 32)

    def read(data: bytes) -> tuple[Any, Any]:
        """What comes of it in this process and in one of its own."""
        path.write_bytes(data)
        found: list[Any] = []
        for limit in (1 << 20, 0):
            monkeypatch.setattr(parse_process, "SMALL_BYTES", limit)
            try:
                found.append(parse_process.parse_stored(path, "theirs.csv", mapping))
            except RowErrors as error:
                found.append((type(error), str(error), error.errors, error.count))
        return found[0], found[1]

    here, there = read(CSV.encode())
    assert isinstance(here, ParsedFile)
    assert len(here.latencies) == 2
    assert there == here
    here, there = read(CSV.encode() + b"x,16,0.5,3,9\n")
    assert here[0] is RowErrors
    assert there == here
    # Small to send, and gigabytes where many are read at once.
    names = ",".join(f"c{n}" for n in range(500))
    path.write_text(f"{names}\n" + ("," * 499 + "\n") * 5000)
    monkeypatch.setattr(parse_process, "LIMITS", Limits(memory_bytes=32 << 20, timeout_s=60))
    with pytest.raises(ContractError, match=r"takes more than .* to read: make it smaller"):
        parse_process.parse_stored(path, "theirs.csv", mapping)


ARRAY_MAPPING = {
    "unit": "ms",
    "device": {"cpu_model": "Cortex-A72"},
    "constants": {
        "op": "conv2d",
        "input_h": 8,
        "input_w": 8,
        "scheme": "unstructured",
        "runtime": "r",
        "runtime_version": "1",
        "threads": 1,
    },
    "axes": [
        {
            "name": "layer",
            "records": [
                {"in_channels": 3, "out_channels": 8, "only": {"in": 0}},
                {"in_channels": 8, "out_channels": 8},
            ],
        },
        {"name": "in", "scale": "in_channels", "values": [0.5, 1]},
        {"name": "density", "field": "density", "values": [None, 0.5, 1]},
    ],
    "missing": [0],
}


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


class TestArrays:
    def test_axes_say_what_cells_are(self, sqlite_lab: ServerLab) -> None:
        array = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
        answer = send(sqlite_lab, "a.npy", npy(array), ARRAY_MAPPING).json()
        # Layer 0 has one input width, of index 0; the first density is left out.
        assert (answer["rows"], answer["added"]) == (6, 6)
        found = {
            (f["kernel"]["in_channels"], f["kernel"]["pruning"]["density"]): f["latency"]["median_ns"] / 1e6
            for f in figures(sqlite_lab)
        }
        assert found == {(3, 0.5): 1, (3, 1): 2, (4, 0.5): 7, (4, 1): 8, (8, 0.5): 10, (8, 1): 11}

    def test_what_is_no_plain_array_is_refused(self, sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return (pytest.fail, ("a pickle was loaded",))

        whole = npy(np.ones((2, 2, 3)))
        objects = npy(np.ones(1))[:128].replace(b"'<f8'", b"'|O' ") + pickle.dumps(Bomb())
        huge, garbled = whole.replace(b"(2, 2, 3)", b"(9, 9, 9)"), whole.replace(b"(2, 2, 3)", b"(2, 2,399")
        for data, part in (
            (objects, "holds object"),
            (whole[:-8], "cut or changed"),
            (huge, "cut or changed"),
            (garbled, "header cannot be read"),
            (npy(np.ones((2, 2, 2))), "shape is (2, 2, 2)"),
            (b"123", "no NumPy array"),
        ):
            answer = send(sqlite_lab, "a.npy", data, ARRAY_MAPPING)
            assert answer.status_code == 422, data
            assert part in answer.json()["detail"]
        monkeypatch.setattr(tables, "MAX_CELLS", 11)
        assert "more than 11" in send(sqlite_lab, "a.npy", whole, ARRAY_MAPPING).json()["detail"]
        answer = send(sqlite_lab, "a.npy", whole, None)
        assert "needs a mapping" in answer.json()["detail"]


class TestRoundTrip:
    @pytest.mark.parametrize("form", ["csv", "json", "parquet"])
    def test_an_export_comes_back_as_it_was(self, sqlite_lab: ServerLab, agent: LabAgent, form: str) -> None:
        lab = sqlite_lab
        answer = lab.get(f"/v1/latency:export?format={form}&device=board")
        assert answer.status_code == 200
        imported = send(lab, f"board.{form}", answer.content, None, "a copy").json()
        assert (imported["added"], imported["missing"]) == (4, 0)
        assert send(lab, f"board.{form}", answer.content, None, "a copy").json()["added"] == 0

        before, after = (lab.get(f"/v1/latency:export?format=json&device={d}").json() for d in ("board", "a copy"))
        changed = {"source", "device_name", "device_id", "profile_id", "series_id", "result_key", "profile"}
        # Outputs and memory were not checked here, so that their figures stay with the original.
        changed |= {"output_sha256", "memory_bytes"}
        assert {row["source"] for row in after} == {"imported"}
        assert [{k: v for k, v in row.items() if k not in changed} for row in after] == [
            {k: v for k, v in row.items() if k not in changed} for row in before
        ]
        assert json.loads(after[0]["profile"]) == {**json.loads(before[0]["profile"]), "imported": True}
        assert {row["median_ns"] for row in after} == {100.125, 1 / 3, 300.25, 7e9}

    @pytest.mark.parametrize("form", ["csv", "json"])
    def test_an_imported_device_that_comes_back_adds_nothing(self, sqlite_lab: ServerLab, form: str) -> None:
        """The export tells when figures were taken in, which the file that they came in did not."""
        lab = sqlite_lab
        first = send(lab, "theirs.csv", CSV.encode()).json()
        exported = lab.get(f"/v1/latency:export?format={form}&device=their board").content
        again = send(lab, f"again.{form}", exported, None).json()
        assert (again["rows"], again["added"], again["already_there"]) == (2, 0, 2)
        assert again["series_ids"] == first["series_ids"]
        assert lab.get(f"/v1/latency:export?format={form}&device=their board").content == exported
        # The same figure measured at another time is another measurement.
        rows = lab.get("/v1/latency:export?format=json&device=their board").json()
        moved = [
            {**row, "measured_at": at} for row in rows[:1] for at in ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
        ]
        copied = send(lab, "moved.json", json.dumps(moved).encode(), None, "another board").json()
        assert (copied["added"], copied["already_there"]) == (2, 0)

    def test_names_are_no_formulas_in_a_spreadsheet(self, sqlite_lab: ServerLab) -> None:
        lab = sqlite_lab
        names = ["=1+1", "+1", "-1", "@sum", "'=1", "'plain", "a=1"]
        rows = "".join(f"8,{n + 1},0.5,3,{n + 5},{name}\n" for n, name in enumerate(names))
        columns = {**MAPPING["columns"], "runtime": "runtime"}
        constants = {key: value for key, value in MAPPING["constants"].items() if key != "runtime"}
        mapping = {**MAPPING, "columns": columns, "constants": constants}
        text = CSV.splitlines()[0] + ",runtime\n" + rows
        assert send(lab, "theirs.csv", text.encode(), mapping, "=1+1").json()["added"] == len(names)
        exported = lab.get("/v1/latency:export?format=csv&device==1%2B1").text
        cells = list(csv.DictReader(io.StringIO(exported, newline="")))
        assert {row["device_name"] for row in cells} == {"'=1+1"}
        assert {row["runtime"] for row in cells} == {"'=1+1", "'+1", "'-1", "'@sum", "''=1", "'plain", "a=1"}
        assert send(lab, "again.csv", exported.encode(), None, "a copy").json()["added"] == len(names)
        told = lab.get("/v1/latency:export?format=json&device=a copy").json()
        assert {row["runtime"] for row in told} == set(names)

    def test_what_was_not_measured_does_not_lose_that_mark(self, sqlite_lab: ServerLab) -> None:
        agent = sqlite_lab.agent(profile=replace(PROFILE, simulated=True))
        sqlite_lab.tasks(agent)
        sqlite_lab.report(agent, report_of(sqlite_lab.lease(agent)[0], measurement(source=Source.SIMULATED)))
        data = sqlite_lab.get("/v1/latency:export").content
        answer = send(sqlite_lab, "x.csv", data, None, "a copy")
        assert "'simulated' figures are not imported" in answer.json()["detail"]

    def test_a_changed_kernel_is_noticed(self, sqlite_lab: ServerLab, agent: LabAgent) -> None:
        rows = sqlite_lab.get("/v1/latency:export?format=json").json()
        data = json.dumps([{**rows[0], "stride": 2}]).encode()
        assert "a cell was changed" in send(sqlite_lab, "x.json", data, None, "c").json()["detail"]

    def test_devices_are_not_joined(self, sqlite_lab: ServerLab, agent: LabAgent) -> None:
        other = sqlite_lab.agent()
        sqlite_lab.tasks(other)
        sqlite_lab.report(other, report_of(sqlite_lab.lease(other)[0], measurement()))
        data = sqlite_lab.get("/v1/latency:export").content
        assert "rows of 2 devices" in send(sqlite_lab, "x.csv", data, None, "c").json()["detail"]
        one = sqlite_lab.get(f"/v1/latency:export?device={other.device_id}").content
        answer = send(sqlite_lab, "x.csv", one, None, "board")
        assert answer.status_code == 409
        assert "has an agent" in answer.json()["detail"]


class TestExport:
    def test_each_row_says_where_it_comes_from(self, sqlite_lab: ServerLab, agent: LabAgent) -> None:
        answer = sqlite_lab.get("/v1/latency:export?verdict=rejected")
        (row,) = csv.DictReader(io.StringIO(answer.text))
        expected = {
            "median_ns": "300.25",
            "verdict": "rejected",
            "reasons": "wrong_output",
            "source": "measured",
            "runtime": "native",
            "runtime_version": "1.0",
            "runtime_sha256": "ab" * 32,
            "threads": "1",
            "agent_version": "0.1.0",
            "mode": "dense",
            "device_id": agent.device_id,
            "device_name": "board",
        }
        assert {name: row[name] for name in expected} == expected
        assert json.loads(row["profile"])["cpu_model"] == "Cortex-A72"
        assert json.loads(row["setup"]) == encode(MeasuringSetup(runtime="native"))
        assert "latencies.csv" in answer.headers["content-disposition"]

    def test_pages_make_the_same_file(self, sqlite_lab: ServerLab, agent: LabAgent) -> None:
        for form in (TableFormat.CSV, TableFormat.JSON):
            whole, paged = (
                b"".join(export.exported(sqlite_lab.database, LatencyFilter(), form, rows)) for rows in (1000, 1)
            )
            assert whole == paged
            assert whole.count(b"native") >= 4

    def test_nothing_to_export(self, sqlite_lab: ServerLab) -> None:
        assert sqlite_lab.get("/v1/latency:export?format=json").json() == []
        assert sqlite_lab.get("/v1/latency:export").text.count("\n") == 1
        assert sqlite_lab.get("/v1/latency:export?format=npy").status_code == 422
        assert sqlite_lab.get("/v1/latency:export?device=none").status_code == 404


def test_a_json_file_that_is_small_to_send_and_large_to_read() -> None:
    with pytest.raises(ContractError, match="lists and objects: split it"):
        tables.read_rows(b"[" + b"[]," * tables.MAX_JSON_CONTAINERS + b"[]]", TableFormat.JSON)
