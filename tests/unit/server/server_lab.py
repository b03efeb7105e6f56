"""A server with a database, a user and agents, for tests: real app, real SQL, real requests."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import select, update

from device_agent.contracts import (
    Block,
    Conditions,
    CpuCluster,
    DeviceProfile,
    EnrolmentAnswer,
    EnrolmentRequest,
    FailureReason,
    KernelSpec,
    KernelTask,
    Lease,
    LeaseAnswer,
    LeaseRequest,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    Op,
    Provenance,
    ReportAnswer,
    ReportBatch,
    RuntimeInfo,
    Source,
    TaskReport,
    Verdict,
    VerdictReason,
    dumps,
    loads,
)
from device_agent.contracts.statistics import summarize
from server.accounts.service import Scope, mint_enrolment_code, mint_user_token
from server.accounts.tokens import SecretHasher
from server.artifacts.store import ArtifactStore
from server.database import Database
from server.ids import uuid7
from server.latency.source import SqlLatencySource
from server.models import TaskRow
from server.searches.queries import insert_search
from server.searches.repository import claim_runnable_job
from server.settings import Settings
from server.worker.run import SearchRun

SETUP = MeasuringSetup(runtime="native")

PROFILE = DeviceProfile(
    machine="aarch64",
    system="Linux",
    os_build="6.1",
    cpu_model="Cortex-A72",
    clusters=(CpuCluster(model="Cortex-A72", core_ids=(0, 1, 2, 3)),),
    isa_features=("neon",),
    memory_bytes=4 << 30,
)

RUNTIMES = (
    RuntimeInfo(name="native", version="1.0", binary_sha256="ab" * 32, isa="neon"),
    RuntimeInfo(name="tflite", unavailable="no wheel for this platform"),
)


def kernel_task(channels: int = 8, setup: MeasuringSetup = SETUP) -> KernelTask:
    spec = KernelSpec(op=Op.CONV2D, in_channels=channels, out_channels=16, input_h=8, input_w=8, kernel_h=3, kernel_w=3)
    return KernelTask(kernel=spec, setup=setup)


def measurement(
    median_ns: float = 1000.0,
    *,
    verdict: Verdict = Verdict.TRUSTED,
    reasons: tuple[VerdictReason, ...] = (),
    source: Source = Source.MEASURED,
    runtime: str = "native",
    runtime_version: str = "1.0",
) -> Measurement:
    times = (median_ns, median_ns)
    blocks = (Block(thread_cpu_ns=times, wall_ns=times, reference_ns=(5.0,)),) * 6
    return Measurement(
        provenance=Provenance(
            source=source,
            runtime=runtime,
            runtime_version=runtime_version,
            runtime_sha256="ab" * 32,
            isa="neon",
            threads=1,
            agent_version="0.1.0",
        ),
        blocks=blocks,
        iterations_per_sample=10,
        warmup_runs=3,
        statistics=summarize(blocks, SETUP.clock),
        verdict=verdict,
        reasons=reasons,
        before=Conditions(),
        after=Conditions(),
        output_sha256="cd" * 32,
    )


def failure(reason: FailureReason, detail: str = "it went wrong") -> MeasurementFailure:
    return MeasurementFailure(reason=reason, detail=detail)


def new_key() -> str:
    return str(uuid7())


@dataclass(frozen=True, slots=True, kw_only=True)
class LabAgent:
    device_id: str
    token: str


class ServerLab:
    """Ask it for agents, tasks and leases; `client` is for requests of your own."""

    def __init__(self, client: TestClient, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.database = Database.from_settings(settings)
        self.hasher = SecretHasher.from_settings(settings)
        self.source = SqlLatencySource(self.database)
        self.user = self.user_token()
        self.admin = self.user_token(Scope.ADMIN)

    def user_token(self, *scopes: Scope) -> str:
        with self.database.write() as session:
            if scopes:
                return mint_user_token(session, self.hasher, name="user", scopes=scopes)
            return mint_user_token(session, self.hasher, name="user")

    def code(self, max_uses: int = 1) -> str:
        with self.database.write() as session:
            return mint_enrolment_code(session, self.hasher, max_uses=max_uses)[0]

    def request(self, method: str, url: str, token: str | None = None, **kwargs: Any) -> Any:
        headers = {"Authorization": f"Bearer {token or self.user}", **kwargs.pop("headers", {})}
        return self.client.request(method, url, headers=headers, **kwargs)

    def get(self, url: str, token: str | None = None, **kwargs: Any) -> Any:
        return self.request("GET", url, token, **kwargs)

    def post(self, url: str, body: object = None, token: str | None = None, **kwargs: Any) -> Any:
        content = None if body is None else dumps(body)
        return self.request("POST", url, token, content=content, **kwargs)

    def enrolment(self, code: str, **changes: Any) -> EnrolmentRequest:
        request = EnrolmentRequest(
            code=code,
            agent_key=new_key(),
            device_name="board",
            profile=PROFILE,
            runtimes=RUNTIMES,
            agent_version="0.1.0",
        )
        return replace(request, **changes)

    def agent(self, **changes: Any) -> LabAgent:
        """An enrolled agent."""
        response = self.post("/v1/agents:enrol", self.enrolment(self.code(), **changes))
        assert response.status_code == 200, response.text
        answer = loads(EnrolmentAnswer, response.content)
        return LabAgent(device_id=answer.device_id, token=answer.token)

    def search(self, device_id: str, name: str = "a search") -> str:
        """A stored search, without anything behind it."""
        with self.database.write() as session:
            return insert_search(
                session, name=name, device_id=device_id, config=search_config(device=device_id), created_by="test"
            ).id

    def tasks(self, agent: LabAgent, count: int = 1, search_id: str | None = None) -> list[str]:
        """Waiting tasks for different kernels."""
        return self.source.request(
            agent.device_id, [kernel_task(i + 1) for i in range(count)], search_id or self.search(agent.device_id)
        )

    def lease(self, agent: LabAgent, count: int = 1, wait_s: float = 0.0) -> tuple[Lease, ...]:
        response = self.post("/v1/leases", LeaseRequest(max_leases=count, wait_s=wait_s), agent.token)
        assert response.status_code == 200, response.text
        return loads(LeaseAnswer, response.content).leases

    def report(self, agent: LabAgent, *reports: TaskReport) -> list[str]:
        """Statuses of the receipts."""
        response = self.post("/v1/reports", ReportBatch(reports=reports), agent.token)
        assert response.status_code == 200, response.text
        return [r.status.value for r in loads(ReportAnswer, response.content).receipts]

    def expire(self, *task_ids: str) -> None:
        """Let the database's clock run past the leases of these tasks."""
        with self.database.write() as session:
            session.execute(update(TaskRow).where(TaskRow.id.in_(task_ids)).values(lease_expires_at=1.0))

    def make_ready(self, *task_ids: str) -> None:
        """Let the pause after a failed attempt be over."""
        with self.database.write() as session:
            session.execute(update(TaskRow).where(TaskRow.id.in_(task_ids)).values(not_before=0.0))

    def task(self, task_id: str) -> TaskRow:
        with self.database.read() as session:
            return session.scalars(select(TaskRow).where(TaskRow.id == task_id)).one()

    def claimed_run(self) -> SearchRun:
        """The oldest search that waits, in the hands of a worker."""
        with self.database.write() as session:
            claim = claim_runnable_job(session, worker="w", stale_s=60.0)
        assert claim is not None
        return SearchRun(
            database=self.database,
            settings=self.settings,
            store=ArtifactStore(self.settings.artifacts_dir),
            claim=claim,
            interrupt=threading.Event(),
            lost=threading.Event(),
        )

    def close(self) -> None:
        self.database.dispose()


def report_of(lease: Lease, result: Measurement | MeasurementFailure, key: str | None = None) -> TaskReport:
    return TaskReport(
        result_key=key or new_key(),
        lease_id=lease.lease_id,
        task_id=lease.task_id,
        attempt=lease.attempt,
        result=result,
    )


def search_config(**changes: Any) -> dict[str, Any]:
    """A small valid config."""
    config: dict[str, Any] = {
        "name": "digits",
        "model": {"architecture": "small_cnn"},
        "dataset": {"name": "digits"},
        "space": {"channels": {}},
    }
    return {**config, **changes}


def statuses(responses: Sequence[Any]) -> list[int]:
    return [response.status_code for response in responses]
