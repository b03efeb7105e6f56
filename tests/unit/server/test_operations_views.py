"""What an operator sees: workers, /metrics, log lines with identities, and probes that mean what they say."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update
from starlette.types import Message

from device_agent.contracts import FailureReason, Verdict
from server import status
from server.accounts.service import Scope
from server.fleet.devices import DeviceState
from server.fleet.unknown_reports import UnknownReports
from server.headers import DEFAULT_HEADERS
from server.models import WorkerRow
from server.settings import Settings
from server.states import JobState
from server.worker.presence import present
from server.workers import repository as workers
from server.workers.endpoints import WorkerState
from tests.unit.server.server_lab import ServerLab, failure, measurement, report_of

DEPLOY = Path(__file__).parents[3] / "deploy"


def figures(lab: ServerLab, token: str | None = None) -> dict[tuple[str, ...], float]:
    """/metrics as {(name, label values ...): value}."""
    answer = lab.get("/metrics", token)
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


class TestWorkers:
    def test_a_worker_is_seen_from_its_start_to_its_end(self, lab: ServerLab) -> None:
        search_id = lab.search(lab.agent().device_id)
        started = threading.Event()
        with present(lab.database, "bench:/data") as presence:
            _until(lambda: len(_workers(lab)) == 1)
            with presence.serving(search_id):
                _until(lambda: _workers(lab)[0]["state"] == "busy")
                (found,) = _workers(lab)
                assert (found["name"], found["search_id"]) == ("bench:/data", search_id)
            _until(lambda: _workers(lab)[0]["state"] == "idle")
            started.set()
        assert _workers(lab) == []

    def test_one_that_ended_without_a_word_is_silent_and_later_forgotten(self, lab: ServerLab) -> None:
        with lab.database.write() as session:
            dead = workers.enter_worker(session, name="dead", host="h", version="0")
            session.execute(update(WorkerRow).values(heartbeat_at=WorkerRow.heartbeat_at - 61.0))
        assert [(w["id"], w["state"]) for w in _workers(lab)] == [(dead, "silent")]
        with lab.database.write() as session:
            session.execute(update(WorkerRow).values(heartbeat_at=1.0))
            alive = workers.enter_worker(session, name="new", host="h", version="0")
        assert [w["id"] for w in _workers(lab)] == [alive]

    def test_a_row_that_is_gone_is_made_anew(self, sqlite_lab: ServerLab) -> None:
        with sqlite_lab.database.write() as session:
            assert not workers.beat(session, "worker_0", None)


class TestMetrics:
    def test_the_figures(self, lab: ServerLab) -> None:
        agent = lab.agent()
        lab.tasks(agent, 4)
        first, second = lab.lease(agent, 2)
        before = figures(lab)
        lab.report(agent, report_of(first, replace(measurement(), duration_s=2.5)))
        lab.report(agent, report_of(second, failure(FailureReason.CRASHED)))
        found = figures(lab)
        assert before["kerf_tasks", "leased"], before["kerf_tasks", "pending"] == (2.0, 2.0)
        assert found["kerf_tasks", "leased"] == 0.0
        assert found["kerf_tasks", "pending"] == 3.0
        assert found["kerf_devices", "online"] == 1.0
        assert found["kerf_searches", "pending"] == 1.0
        assert found[("kerf_oldest_pending_task_age_seconds",)] >= 0.0

        def grown(*key: str) -> float:
            return found.get(key, 0.0) - before.get(key, 0.0)

        assert grown("kerf_measurements_total", "trusted") == 1.0
        assert grown("kerf_measurement_failures_total", "crashed") == 1.0
        assert grown("kerf_device_busy_seconds_total") == 2.5
        assert grown("kerf_reports_total", "accepted") == 2.0
        assert grown("kerf_http_requests_total", "POST", "/v1/reports", "200") == 2.0

    def test_reports_of_unknown_tasks_are_counted_and_fill_no_log(self, sqlite_lab: ServerLab) -> None:
        agent = sqlite_lab.agent()
        sqlite_lab.tasks(agent)
        (lease,) = sqlite_lab.lease(agent)
        foreign = [
            report_of(replace(lease, task_id=f"task_{n}"), measurement(), key=f"key of task {n}") for n in range(6)
        ]
        key = ("kerf_reports_of_unknown_tasks_total",)
        before = figures(sqlite_lab)[key]
        with structlog.testing.capture_logs() as lines:
            for batch in (foreign[:3], foreign[3:]):
                assert sqlite_lab.report(agent, *batch) == ["late"] * 3
        told = [line for line in lines if line["event"] == "reports_of_unknown_tasks"]
        assert [(line["device_id"], line["reports"], line["task_id"]) for line in told] == [
            (agent.device_id, 3, "task_0")
        ]
        assert figures(sqlite_lab)[key] - before == 6.0

    def test_each_device_has_a_line_a_minute(self) -> None:
        now = [0.0]
        reports = UnknownReports(max_devices=2, clock=lambda: now[0])

        def lines_of(device_id: str, count: int) -> list[int]:
            with structlog.testing.capture_logs() as lines:
                reports.took(device_id, count, "task_1")
            return [line["reports"] for line in lines]

        assert [lines_of("a", n) for n in (1, 10, 100)] == [[1], [], []]
        assert lines_of("b", 5) == [5]
        now[0] = 60.0
        assert lines_of("a", 1000) == [1110]
        # Whoever was not heard of for longest is forgotten, and begins anew.
        assert (lines_of("c", 1), lines_of("b", 1)) == ([1], [1])

    def test_an_empty_service_has_figures_too(self, lab: ServerLab) -> None:
        found = figures(lab)
        assert found["kerf_tasks", "pending"] == 0.0
        assert found["kerf_workers", "idle"] == 0.0
        assert found[("kerf_data_free_bytes",)] > 0.0
        assert found[("kerf_leases_overdue",)] == 0.0

    def test_overdue_leases_show(self, lab: ServerLab) -> None:
        agent = lab.agent()
        lab.expire(*lab.tasks(agent, 2))
        lab.lease(agent, 2)
        found = figures(lab)
        # Just lent, and to be renewed long before it ends.
        left_s = found[("kerf_lease_next_end_seconds",)]
        assert found[("kerf_oldest_lease_age_seconds",)] == pytest.approx(lab.settings.lease_duration_s - left_s)
        with lab.database.write() as session:
            session.execute(text("UPDATE measurement_task SET lease_expires_at = 1.0"))
        found = figures(lab)
        assert found[("kerf_oldest_lease_age_seconds",)] > 1e9
        assert found[("kerf_leases_overdue",)] == 2.0
        assert found[("kerf_lease_next_end_seconds",)] < 0.0

    def test_who_may_read_them(self, app: FastAPI, sqlite_settings: Settings) -> None:
        app.state.settings = sqlite_settings
        with TestClient(app) as far:
            lab = ServerLab(far, sqlite_settings)
            assert far.get("/metrics").status_code == 401
            assert lab.get("/metrics", "wrong").status_code == 401
            assert lab.get("/metrics", lab.user_token(Scope.READ)).status_code == 200
            assert lab.get("/metrics", lab.agent().token).status_code == 403
            lab.close()
        near = ("127.0.0.1", 5000)
        with TestClient(app, base_url="http://127.0.0.1:8321", client=near) as here:
            assert here.get("/metrics").status_code == 200
            assert here.get("/metrics", headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 401
        app.state.settings = replace(sqlite_settings, open_metrics=True)
        with TestClient(app) as far:
            assert far.get("/metrics").status_code == 200

    def test_dashboard_and_alerts_name_figures_that_there_are(self, sqlite_lab: ServerLab) -> None:
        agent = sqlite_lab.agent()
        sqlite_lab.tasks(agent, 2)
        for lease, result in zip(
            sqlite_lab.lease(agent, 2), (measurement(), failure(FailureReason.CRASHED)), strict=True
        ):
            sqlite_lab.report(agent, report_of(lease, result))
        with sqlite_lab.database.write() as session:
            progress = '{"stage": "searching", "done": 1, "total": 2}'
            session.execute(text("UPDATE search_job SET worker='w', heartbeat_at=1.0, progress=:p"), {"p": progress})
        known = {key[0] for key in figures(sqlite_lab)}
        files = [DEPLOY / "grafana" / "kerf.json", DEPLOY / "prometheus" / "kerf.rules.yml"]
        for file in files:
            named = set(re.findall(r"\bkerf_[a-z0-9_]+", file.read_text(encoding="utf-8")))
            assert len(named) > 5
            assert named <= known, file

    def test_dashboard_and_alerts_name_labels_that_there_are(self, sqlite_lab: ServerLab) -> None:
        """A misspelt label makes an alert that never fires."""
        values: dict[str, set[str]] = {
            "verdict": {verdict.value for verdict in Verdict},
            "job": {"kerf"},
            "status": {"500", "503"},
        }
        states: dict[str, set[str]] = {
            "kerf_tasks": {"pending", "leased"},
            "kerf_workers": {state.value for state in WorkerState},
            "kerf_devices": {state.value for state in DeviceState},
            "kerf_searches": {state.value for state in JobState},
        }
        families = text_string_to_metric_families(sqlite_lab.get("/metrics").text)
        labels = {name for family in families for sample in family.samples for name in sample.labels}
        # Of what an empty service has no line of, and what Prometheus adds.
        labels |= {"verdict", "reason", "search_id", "stage", "instance", "job"}
        expressions = [
            *re.findall(r'"expr": "(.*)"', (DEPLOY / "grafana" / "kerf.json").read_text(encoding="utf-8")),
            *(
                rule["expr"]
                for group in yaml.safe_load((DEPLOY / "prometheus" / "kerf.rules.yml").read_text(encoding="utf-8"))[
                    "groups"
                ]
                for rule in group["rules"]
            ),
        ]
        checked = 0
        for expression in expressions:
            for listed in re.findall(r"by \(([^)]*)\)", expression):
                assert {name.strip() for name in listed.split(",")} <= labels | {"le"}, expression
            for metric, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression.replace('\\"', '"')):
                for label, value in re.findall(r'(\w+)(?:=~|!=|=)"([^"]*)"', matchers):
                    known = states[metric] if label == "state" else values[label]
                    assert any(re.fullmatch(value, word) for word in known), expression
                    checked += 1
        assert checked >= 6


class TestRequestLog:
    @pytest.fixture
    def lines(self) -> Iterator[io.StringIO]:
        stream = io.StringIO()
        before = structlog.get_config()
        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer()],
            logger_factory=structlog.PrintLoggerFactory(stream),
        )
        yield stream
        structlog.configure(**before)

    def test_a_line_names_who_what_and_how_long(self, sqlite_lab: ServerLab, lines: io.StringIO) -> None:
        search_id = sqlite_lab.search(sqlite_lab.agent().device_id)
        answer = sqlite_lab.get(f"/v1/searches/{search_id}", headers={"X-Request-ID": "from-the-proxy.1"})
        assert answer.headers["x-request-id"] == "from-the-proxy.1"
        line = next(line for line in map(json.loads, lines.getvalue().splitlines()) if line.get("search_id"))
        assert line["request_id"] == "from-the-proxy.1"
        assert (line["method"], line["route"], line["status"]) == ("GET", "/v1/searches/{search_id}", 200)
        assert line["search_id"] == search_id
        assert line["token_id"].startswith("token_")
        assert line["duration_ms"] >= 0

    def test_lines_from_inside_a_request_carry_its_identity(self, sqlite_lab: ServerLab, lines: io.StringIO) -> None:
        agent = sqlite_lab.agent()
        sqlite_lab.tasks(agent, 1)
        (lease,) = sqlite_lab.lease(agent)
        sqlite_lab.report(agent, report_of(lease, failure(FailureReason.CRASHED)))
        found = [json.loads(line) for line in lines.getvalue().splitlines()]
        inner = next(line for line in found if line["event"] == "attempt_failed")
        outer = next(line for line in found if line["event"] == "request" and line["route"] == "/v1/reports")
        assert inner["request_id"] == outer["request_id"]
        assert inner["task_id"] == lease.task_id
        assert outer["agent_id"] == agent.device_id

    def test_a_fault_of_ours_is_told_with_its_request_and_answered_like_everything(
        self, sqlite_lab: ServerLab, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(status, "newest_schema", lambda: [][0])
        answer = sqlite_lab.client.get("/readyz", headers={"X-Request-ID": "the-one"})
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert answer.headers["x-request-id"] == "the-one"
        assert {name.lower() for name in DEFAULT_HEADERS} <= set(answer.headers)
        failed, request = map(json.loads, lines.getvalue().splitlines()[-2:])
        assert (failed["event"], failed["request_id"], request["status"]) == ("request_failed", "the-one", 500)
        assert "IndexError" in str(failed["exc_info"])
        assert "IndexError" not in answer.text

    def test_whoever_leaves_before_the_end_of_his_request_is_no_fault_of_ours(
        self, sqlite_lab: ServerLab, lines: io.StringIO
    ) -> None:
        sent: list[Message] = []

        async def leave() -> Message:
            return {"type": "http.disconnect"}

        async def note(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/agents:enrol", "raw_path": b"/v1/agents:enrol",
            "query_string": b"", "headers": [], "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80), "root_path": "",
        }  # fmt: skip
        sqlite_lab.client.portal.call(sqlite_lab.client.app, scope, leave, note)  # type: ignore[union-attr]
        assert sent[0]["status"] == 400
        assert [json.loads(line)["event"] for line in lines.getvalue().splitlines()] == ["request"]

    def test_what_is_asked_all_the_time_is_silent_unless_it_fails(
        self, sqlite_lab: ServerLab, lines: io.StringIO
    ) -> None:
        agent = sqlite_lab.agent()
        sqlite_lab.client.get("/healthz")
        sqlite_lab.lease(agent)
        routes = [json.loads(line).get("route") for line in lines.getvalue().splitlines()]
        assert not {"/healthz", "/v1/leases"} & set(routes)
        sqlite_lab.post("/v1/leases", {"max_leases": 0}, agent.token)
        assert json.loads(lines.getvalue().splitlines()[-1])["route"] == "/v1/leases"

    def test_libraries_write_lines_of_the_same_form(self) -> None:
        """In a process of its own, as the server is: pytest has loggers of its own."""
        code = """if True:
            import logging, uvicorn.config, structlog
            from server.logs import configure_logging
            uvicorn.Config("x:y", log_level="warning")
            for _ in range(2):
                configure_logging(as_json=True)
            structlog.get_logger().warning("ours", number=1)
            logging.getLogger("uvicorn.error").warning("Invalid %s", "request")
            try:
                1 / 0
            except ZeroDivisionError:
                logging.getLogger("some.library").exception("failed")
            logging.getLogger("some.library").info("not told")
        """
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        ours, theirs, failed = map(json.loads, done.stderr.splitlines())
        assert (ours["event"], theirs["event"], failed["event"]) == ("ours", "Invalid request", "failed")
        assert theirs["level"] == "warning"
        assert theirs["timestamp"].endswith("Z")
        assert "ZeroDivisionError" in failed["exception"]

    def test_no_line_has_a_secret(self, sqlite_lab: ServerLab, lines: io.StringIO) -> None:
        agent, code = sqlite_lab.agent(), sqlite_lab.code()
        sqlite_lab.post("/v1/agents:enrol", sqlite_lab.enrolment(code, device_name="x"))
        sqlite_lab.get("/v1/searches", "kerf_u_wrong")
        sqlite_lab.client.post("/login", data={"token": sqlite_lab.user})
        sqlite_lab.get("/v1/tokens", sqlite_lab.admin)
        assert lines.getvalue().count("\n") >= 4
        for secret in (sqlite_lab.user, sqlite_lab.admin, agent.token, code, "kerf_u_wrong"):
            assert secret not in lines.getvalue()

    @pytest.mark.parametrize("sent", ["a b", "x" * 65, "ä", '"'])
    def test_identities_from_outside_are_checked(self, sqlite_lab: ServerLab, sent: str) -> None:
        answer = sqlite_lab.client.get("/healthz", headers={"X-Request-ID": sent.encode()})
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])


class TestProbes:
    def test_a_process_whose_regular_work_ended_is_not_healthy(self, sqlite_lab: ServerLab) -> None:
        context = sqlite_lab.client.app.state.context  # type: ignore[attr-defined]
        assert sqlite_lab.client.get("/healthz").status_code == 200

        async def ends() -> None:
            pass

        async def add() -> None:
            task = asyncio.create_task(ends(), name="reap leases")
            await task
            context.background.append(task)

        sqlite_lab.client.portal.call(add)  # type: ignore[union-attr]
        answer = sqlite_lab.client.get("/healthz")
        assert (answer.status_code, answer.json()["code"]) == (503, "unhealthy")
        assert "reap leases" in answer.json()["detail"]

    def test_a_process_that_stops_takes_no_more(self, sqlite_lab: ServerLab) -> None:
        context = sqlite_lab.client.app.state.context  # type: ignore[attr-defined]
        context.stopping.set()
        assert sqlite_lab.client.get("/readyz").json()["code"] == "stopping"
        assert sqlite_lab.client.get("/healthz").status_code == 200


def _workers(lab: ServerLab) -> list[dict[str, str]]:
    items: list[dict[str, str]] = lab.get("/v1/workers").json()["items"]
    return items


def _until(condition: object) -> None:
    from tests.integration.running_site import wait_until

    wait_until(condition, "what the worker tells")  # type: ignore[arg-type]
