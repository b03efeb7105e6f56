"""`kerf doctor` against machines, servers and fleets that have something wrong with them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

import kerf
from device_agent.contracts import RuntimeInfo
from server.accounts.service import Scope
from server.cli.connection import connect
from server.cli.console import plain_console
from server.cli.diagnosis import machine, service
from server.cli.diagnosis.finding import Finding, Level, broken
from server.cli.doctor import SomethingIsBroken, print_finding
from server.cli.main import app
from server.models import DeviceRow, SearchRow, TokenRow, WorkerRow
from server.settings import Settings
from server.states import JobState
from server.workers import repository as workers
from tests.unit.server.server_lab import ServerLab, search_config

GOOD_RUNTIMES = [
    {"name": "native", "version": "0.1.0", "isa": "avx2", "unavailable": None},
    {"name": "tflite", "version": "2.3", "isa": "x86_64", "unavailable": None},
    {"name": "ncnn", "version": "", "isa": "", "unavailable": "ncnn is not installed"},
]


def agent(runtimes: Sequence[Any] = GOOD_RUNTIMES, checks: Sequence[Any] = ()) -> machine.RunAgent:
    def run(arguments: Sequence[str]) -> str:
        return json.dumps({"runtimes": runtimes} if arguments[0] == "probe" else checks)

    return run


def by_name(findings: Any) -> dict[str, Finding]:
    found = {finding.name: finding for finding in findings}
    for finding in found.values():
        assert finding.remedy or finding.level in (Level.OK, Level.UNKNOWN), finding
    return found


def test_a_machine_that_is_well(sqlite_settings: Settings) -> None:
    governor = {"name": "governor", "ok": True, "found": "performance", "remedy": None}
    found = by_name(machine.machine_findings(sqlite_settings, agent(checks=[governor])))
    levels = {name: finding.level for name, finding in found.items()}
    assert levels.pop("data folder") in (Level.OK, Level.WARNING)
    assert levels.pop("runtime ncnn") is Level.UNKNOWN
    assert set(levels.values()) == {Level.OK}
    assert {"kerf", "torch", "runtime native", "runtime tflite", "governor", "database"} <= set(levels)


def test_what_a_machine_lacks_is_told_with_the_remedy(sqlite_settings: Settings, tmp_path: Path) -> None:
    runtimes = [{**GOOD_RUNTIMES[0], "unavailable": "no C++ compiler was found"}, GOOD_RUNTIMES[1]]
    boost = {"name": "boost", "ok": False, "found": "turbo is on", "remedy": "turn it off"}
    heat = {"name": "temperature", "ok": None, "found": "no sensor can be read", "remedy": None}
    settings = dataclasses.replace(sqlite_settings, data_dir=tmp_path / "empty")
    found = by_name(machine.machine_findings(settings, agent(runtimes, [boost, heat])))
    assert found["runtime native"].level is Level.BROKEN
    assert "no C++ compiler" in found["runtime native"].found
    assert "compiler" in (found["runtime native"].remedy or "")
    assert (found["boost"].level, found["boost"].remedy) == (Level.WARNING, "turn it off")
    assert found["temperature"].level is Level.UNKNOWN
    assert found["database"].level is Level.UNKNOWN
    assert not (tmp_path / "empty").exists()


def test_an_agent_that_cannot_run_is_broken(sqlite_settings: Settings) -> None:
    def run(arguments: Sequence[str]) -> str:
        raise ValueError("libstdc++.so.6: cannot open shared object file")

    found = by_name(machine.machine_findings(sqlite_settings, run))
    assert found["agent"].level is Level.BROKEN
    assert "libstdc++" in found["agent"].found


def test_the_agents_commands_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[4]))
    probed = json.loads(machine.run_agent(["probe", "--simulated", "--log-level", "error"]))
    assert [runtime["name"] for runtime in probed["runtimes"]]
    checks = json.loads(machine.run_agent(["preflight", "--seconds", "0", "--json", "--log-level", "error"]))
    assert {"governor", "boost", "temperature"} <= {check["name"] for check in checks}
    with pytest.raises(ValueError, match="invalid choice"):
        machine.run_agent(["probbe"])


@pytest.mark.parametrize(
    ("free_bytes", "level"), [(1 << 20, Level.BROKEN), (1 << 29, Level.WARNING), (1 << 40, Level.OK)]
)
def test_a_full_disk_is_found(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch, free_bytes: int, level: Level
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
    assert by_name(machine.machine_findings(sqlite_settings, agent()))["data folder"].level is level


def test_a_database_of_another_schema_is_found(sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.schema.newest_schema", lambda: "9999")
    found = by_name(machine.machine_findings(sqlite_settings, agent()))["database"]
    assert found.level is Level.BROKEN
    assert "kerf db upgrade" in (found.remedy or "")


def examine(lab: ServerLab, token: str | None = None, now: datetime | None = None) -> dict[str, Finding]:
    with connect("http://testserver", token) as client:
        return by_name(service.service_findings(client, now))


def start_worker(lab: ServerLab, **values: Any) -> None:
    """A worker as the database knows it."""
    with lab.database.write() as session:
        worker_id = workers.enter_worker(session, name="w", host="h", version=service.__version__)
        if values:
            session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(**values))


def test_workers_that_are_not_there_or_hang_are_found(server: ServerLab) -> None:
    found = examine(server)["workers"]
    assert (found.level, found.found) == (Level.BROKEN, "none is running: searches wait")
    start_worker(server, search_id="search_0")
    assert examine(server)["workers"].found == "1 running, 1 with a search"
    start_worker(server, name="dead", heartbeat_at=1.0e9)
    assert "ended without a word" in examine(server)["worker dead"].found
    start_worker(server, name="old", version="0.0.1")
    assert "version 0.0.1" in examine(server)["worker old"].found


def test_a_server_that_is_well(server: ServerLab) -> None:
    agent = server.agent()
    start_worker(server)
    with server.database.write() as session:
        session.execute(update(DeviceRow).values(agent_version=service.__version__))
    found = examine(server)
    assert {finding.level for finding in found.values()} == {Level.OK}, found
    assert "online with native" in found[f"device {name_of(server, agent.device_id)}"].found


def name_of(lab: ServerLab, device_id: str) -> str:
    return str(lab.get(f"/v1/devices/{device_id}").json()["name"])


def change_device(lab: ServerLab, **values: Any) -> Finding:
    device_id = lab.agent().device_id
    with lab.database.write() as session:
        values = {"agent_version": service.__version__, **values}
        session.execute(update(DeviceRow).where(DeviceRow.id == device_id).values(**values))
    return examine(lab)[f"device {name_of(lab, device_id)}"]


def test_devices_that_cannot_measure_are_found(server: ServerLab) -> None:
    assert examine(server)["devices"].level is Level.BROKEN
    assert "enrol-code" in (examine(server)["devices"].remedy or "")
    runtime = dataclasses.asdict(RuntimeInfo(name="native", unavailable="no compiler"))
    for values, level, words in (
        ({"last_seen_at": 1.0}, Level.WARNING, "offline since 1970"),
        ({"enabled": False}, Level.WARNING, "disabled"),
        ({"agent_version": "0.0.1"}, Level.WARNING, "version 0.0.1"),
        ({"runtimes": [runtime]}, Level.BROKEN, "native: no compiler"),
        ({"conditions": {"governor": "ondemand"}}, Level.WARNING, "governor ondemand"),
        ({"conditions": {"throttled": True}}, Level.WARNING, "lowers its clock"),
    ):
        finding = change_device(server, **values)
        assert finding.level is level, finding
        assert words in finding.found


def test_tokens_that_do_not_do_are_found(server: ServerLab) -> None:
    server.agent()
    assert examine(server, server.user_token(Scope.READ))["token"].level is Level.WARNING
    assert examine(server, server.agent().token)["token"].level is Level.BROKEN
    unknown = examine(server, "kerf_u_nonsense")
    assert unknown["token"].level is Level.BROKEN
    assert "kerf tokens create" in (unknown["token"].remedy or "")
    with server.database.write() as session:
        session.execute(update(TokenRow).where(TokenRow.device_id.is_(None)).values(expires_at=4e9))
    soon = datetime.fromtimestamp(4e9, UTC) - timedelta(days=1)
    assert "expires" in examine(server, now=soon)["token"].found


def test_searches_that_nobody_takes_are_found(server: ServerLab) -> None:
    server.agent()
    for _ in range(2):
        assert server.post("/v1/searches", search_config()).status_code == 201
    assert examine(server)["searches"].level is Level.OK
    late = datetime.now(UTC) + timedelta(hours=1)
    assert examine(server, now=late)["searches"].level is Level.WARNING
    with server.database.write() as session:
        first = session.query(SearchRow).first()
        assert first is not None
        first.state = JobState.RUNNING
    assert examine(server, now=late)["searches"].level is Level.OK


def test_a_server_of_another_version_or_not_ready_is_found(server: ServerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "__version__", "9.9")
    assert examine(server)["version"].level is Level.WARNING
    monkeypatch.setattr("server.status.newest_schema", lambda: "9999")
    found = examine(server)["server ready"]
    assert found.level is Level.BROKEN
    assert "kerf db upgrade" in found.found


def test_the_exit_code_tells_whether_something_is_broken(server: ServerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    start_worker(server)
    result = runner.invoke(app, ["doctor", "--no-machine", "--json"])
    assert isinstance(result.exception, SomethingIsBroken)
    told = json.loads(result.output)
    assert told["broken"] == 1
    assert [f["name"] for f in told["findings"] if f["level"] == "broken"] == ["devices"]
    server.agent()
    result = runner.invoke(app, ["doctor", "--no-machine"])
    assert result.exit_code == 0, result.output
    assert "0 broken, 0 warnings" in result.output

    def away(client: kerf.Client) -> Any:
        yield Finding(name="server", level=Level.BROKEN, found="is [away]", remedy="start it [now]")

    monkeypatch.setattr("server.cli.doctor.service_findings", away)
    result = runner.invoke(app, ["doctor", "--no-machine"])
    assert "is [away]" in result.output
    assert "-> start it [now]" in result.output


def test_long_findings_go_on_below_their_beginning() -> None:
    console = plain_console(width=70)
    with console.capture() as captured:
        print_finding(broken("a name", "words [x] " * 9, "do this"), console)
    first, *more = captured.get().splitlines()
    assert first.startswith("broken   a name                words [x]")
    assert len(more) > 2
    assert all(line.startswith(31 * " ") and line[31] != " " for line in more)
    assert more[-1].strip() == "-> do this"
