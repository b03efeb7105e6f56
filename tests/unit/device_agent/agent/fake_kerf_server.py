"""A server for agent tests: real HTTP, and the real lease state machine, in memory.

The far side is faked, never the agent: requests travel over a socket. A task is PENDING, then LEASED to one attempt,
then done; a renewal or release of another attempt gets 409, a repeated result_key is a duplicate, and the result of an
older attempt is late. `fault` makes coming answers go wrong.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from device_agent.contracts import (
    ContractError,
    EnrolmentAnswer,
    EnrolmentRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    KernelTask,
    Lease,
    LeaseAnswer,
    LeaseRequest,
    NetworkTask,
    RenewAnswer,
    RenewRequest,
    ReportAnswer,
    ReportBatch,
    ReportReceipt,
    ReportStatus,
    TaskReport,
    dumps,
    loads,
)

TOKEN = "kerf_a_testtoken0123456789"
CODE = "kerf_e_testcode0123456789"


@dataclass
class Fault:
    """One wrong answer: to the next request whose path ends with `path_end`."""

    path_end: str
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"title": "unavailable", "status": 503}'
    content_type: str = "application/problem+json"
    #: Close the connection instead of answering: before the request has its effect, or after.
    drop: str = ""


@dataclass
class ServerTask:
    task_id: str
    task: KernelTask | NetworkTask
    state: str = "PENDING"
    attempt: int = 0
    lease_id: str = ""
    reports: list[TaskReport] = field(default_factory=list)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """An agent that was killed hangs up in the middle of an answer: that is what these tests do."""


class FakeServer:
    """Start with `with FakeServer() as server`; `server.url` is its address."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.tasks: dict[str, ServerTask] = {}
        self.results: dict[str, TaskReport] = {}
        self.late: list[TaskReport] = []
        self.duplicates: list[str] = []
        self.heartbeats: list[HeartbeatRequest] = []
        self.enrolments: list[EnrolmentRequest] = []
        self.requests: list[str] = []
        self.refused_results: set[str] = set()
        self.released: list[str] = []
        self.artifacts: dict[str, bytes] = {}
        self.faults: deque[Fault] = deque()
        self.lease_duration_s = 120.0
        self.heartbeat_interval_s = 30.0
        self.token = TOKEN
        self.codes = {CODE}
        self.drain = False
        self.cancel_tasks: set[str] = set()
        self._http = _QuietServer(("127.0.0.1", 0), _handler_of(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.changed.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def add_task(self, task: KernelTask | NetworkTask) -> str:
        with self.changed:
            task_id = f"t{len(self.tasks):04d}"
            self.tasks[task_id] = ServerTask(task_id, task)
            self.changed.notify_all()
            return task_id

    def add_artifact(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.artifacts[digest] = content
        return digest

    def fault(self, path_end: str, **how: Any) -> None:
        with self.lock:
            self.faults.append(Fault(path_end, **how))

    def expire_leases(self) -> None:
        """What the reaper does when a lease was not renewed."""
        with self.changed:
            for task in self.tasks.values():
                if task.state == "LEASED":
                    task.state, task.lease_id = "PENDING", ""
            self.changed.notify_all()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), f"never came; requests: {self.requests[-20:]}"

    def done(self, count: int) -> Callable[[], bool]:
        return lambda: sum(task.state == "DONE" for task in self.tasks.values()) >= count

    # The endpoints: (status, answer), called under the lock.

    def enrol(self, request: EnrolmentRequest) -> tuple[int, object]:
        if request.code not in self.codes:
            return problem(401, "enrolment_code_unknown")
        self.enrolments.append(request)
        answer = EnrolmentAnswer(
            device_id="d1", token=self.token, heartbeat_interval_s=self.heartbeat_interval_s, lease_wait_s=2.0
        )
        return 200, answer

    def heartbeat(self, request: HeartbeatRequest) -> tuple[int, object]:
        self.heartbeats.append(request)
        return 200, HeartbeatAnswer(interval_s=self.heartbeat_interval_s, drain=self.drain)

    def lease(self, request: LeaseRequest) -> tuple[int, object]:
        def available() -> list[ServerTask]:
            held = [task for task in self.tasks.values() if task.state == "LEASED"]
            pending = [] if self.drain else [task for task in self.tasks.values() if task.state == "PENDING"]
            return (held + pending)[: request.max_leases]

        self.changed.wait_for(lambda: bool(available()), request.wait_s)
        leases = []
        for task in available():
            if task.state == "PENDING":
                task.state, task.attempt = "LEASED", task.attempt + 1
                task.lease_id = f"{task.task_id}-l{task.attempt}"
            leases.append(
                Lease(
                    lease_id=task.lease_id,
                    task_id=task.task_id,
                    attempt=task.attempt,
                    duration_s=self.lease_duration_s,
                    deadline_s=60.0,
                    task=task.task,
                )
            )
        self.changed.notify_all()
        return 200, LeaseAnswer(leases=tuple(leases))

    def renew(self, lease_id: str, request: RenewRequest) -> tuple[int, object]:
        task = self._leased(lease_id, request.attempt)
        if task is None:
            return problem(409, "lease_lost")
        return 200, RenewAnswer(duration_s=self.lease_duration_s, cancel=task.task_id in self.cancel_tasks)

    def release(self, lease_id: str, request: RenewRequest) -> tuple[int, object]:
        task = self._leased(lease_id, request.attempt)
        if task is None:
            return problem(409, "lease_lost")
        task.state, task.lease_id = "PENDING", ""
        self.released.append(lease_id)
        return 204, None

    def report(self, batch: ReportBatch) -> tuple[int, object]:
        for report in batch.reports:
            if report.result_key in self.refused_results or (
                "measurement" in self.refused_results and hasattr(report.result, "statistics")
            ):
                return problem(422, "report_malformed")
        return 200, ReportAnswer(receipts=tuple(self._take(report) for report in batch.reports))

    def _take(self, report: TaskReport) -> ReportReceipt:
        status = ReportStatus.ACCEPTED
        if report.result_key in self.results:
            status = ReportStatus.DUPLICATE
            self.duplicates.append(report.result_key)
        elif (task := self._leased(report.lease_id, report.attempt)) is None:
            status = ReportStatus.LATE
            self.results[report.result_key] = report
            self.late.append(report)
        else:
            self.results[report.result_key] = report
            task.state = "DONE"
            task.reports.append(report)
        return ReportReceipt(result_key=report.result_key, status=status)

    def _leased(self, lease_id: str, attempt: int) -> ServerTask | None:
        for task in self.tasks.values():
            if task.state == "LEASED" and (task.lease_id, task.attempt) == (lease_id, attempt):
                return task
        return None


def problem(status: int, code: str, **more: object) -> tuple[int, dict[str, object]]:
    return status, {"type": "about:blank", "title": code, "status": status, "code": code, "detail": "", **more}


def _handler_of(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            with server.changed:
                server.requests.append(self.path)
                server.changed.notify_all()
                fault = self._fault()
                if fault is not None and fault.drop != "after":
                    self._go_wrong(fault)
                    return
                status, answer = self._dispatch(body)
                server.changed.notify_all()
            if fault is not None:
                self._go_wrong(fault)
                return
            content = b"" if answer is None else dumps(answer).encode()
            kind = "application/problem+json" if status >= 400 else "application/json"
            self._answer(status, content, kind)

        def do_GET(self) -> None:
            with server.changed:
                server.requests.append(self.path)
                server.changed.notify_all()
                fault = self._fault()
                content = server.artifacts.get(self.path.rsplit("/", 1)[-1])
            if fault is not None and fault.drop != "half":
                self._go_wrong(fault)
                return
            if content is None:
                status, answer = problem(404, "artifact_unknown")
                self._answer(status, json.dumps(answer).encode(), "application/problem+json")
                return
            first = int(self.headers.get("range", "bytes=0-")[len("bytes=") : -1])
            part = content[first:]
            self.send_response(206 if first else 200)
            self.send_header("content-length", str(len(part)))
            self.end_headers()
            if fault is not None:
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
                return
            self.wfile.write(part)

        def _dispatch(self, body: bytes) -> tuple[int, object]:
            try:
                if self.path == "/v1/agents:enrol":
                    return server.enrol(loads(EnrolmentRequest, body))
                if self.headers.get("authorization") != f"Bearer {server.token}":
                    return problem(401, "token_unknown")
                if self.path == "/v1/agents:heartbeat":
                    return server.heartbeat(loads(HeartbeatRequest, body))
                if self.path == "/v1/leases":
                    return server.lease(loads(LeaseRequest, body))
                if self.path == "/v1/reports":
                    return server.report(loads(ReportBatch, body))
                lease_id, _, verb = self.path.removeprefix("/v1/leases/").partition(":")
                if verb == "renew":
                    return server.renew(lease_id, loads(RenewRequest, body))
                if verb == "release":
                    return server.release(lease_id, loads(RenewRequest, body))
            except ContractError as error:
                return problem(422, "malformed", detail=str(error))
            return problem(404, "no_such_endpoint")

        def _fault(self) -> Fault | None:
            for fault in server.faults:
                if self.path.endswith(fault.path_end):
                    server.faults.remove(fault)
                    return fault
            return None

        def _go_wrong(self, fault: Fault) -> None:
            if fault.drop:
                self.close_connection = True
                return
            self._answer(fault.status, fault.body, fault.content_type, fault.headers)

        def _answer(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            if content:
                self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    return Handler
