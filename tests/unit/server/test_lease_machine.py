"""The lease machine under random sequences of what agents, reaper and network do, against a simple model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from sqlalchemy import func, insert, select, update

from device_agent.contracts import FailureReason, TaskReport, encode
from server.database import Database, upgrade
from server.fleet import leases, reports
from server.latency.repository import ensure_profile
from server.latency.source import SqlLatencySource
from server.models import DeviceRow, LatencyRow, MeasurementRow, ReportRow, TaskRow
from server.searches.queries import insert_search
from server.settings import Settings
from server.states import TaskState
from tests.unit.server.server_lab import PROFILE, RUNTIMES, failure, kernel_task, measurement, new_key

NUM_TASKS = 3
MAX_ATTEMPTS = 3
_template: list[Path] = []


def _fresh_database() -> Database:
    if not _template:
        folder = Path(tempfile.mkdtemp(prefix="kerf-lease-machine-"))
        upgrade(Settings(data_dir=folder))
        _template.append(folder / "kerf.db")
    copy = _template[0].with_name(f"{new_key()}.db")
    shutil.copy(_template[0], copy)
    return Database(f"sqlite:///{copy}", read_pool_size=1)


class LeaseMachine(RuleBasedStateMachine):
    """Leases that were given out, in any order and however stale, are renewed, released and reported."""

    given = Bundle("given")
    sent = Bundle("sent")

    @initialize()
    def start(self) -> None:
        self.database = _fresh_database()
        self.accepted: set[str] = set()
        self.current: dict[str, int] = {}
        with self.database.write() as session:
            session.execute(
                insert(DeviceRow).values(
                    id="device_1",
                    name="board",
                    agent_key_hash="k",
                    profile_id=ensure_profile(session, PROFILE),
                    profile=encode(PROFILE),
                    runtimes=encode(RUNTIMES),
                    agent_version="0.1.0",
                )
            )
            search_id = insert_search(session, name="s", device_id="device_1", config={}, created_by="t").id
        tasks = [kernel_task(i + 1) for i in range(NUM_TASKS)]
        SqlLatencySource(self.database).request("device_1", tasks, search_id)

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.dispose()
            Path(str(self.database.url.database)).unlink()

    @rule(target=given, limit=st.integers(1, 3))
    def claim(self, limit: int) -> object:
        with self.database.write() as session:
            lent = leases.claim(session, "device_1", limit, 100.0)
        for item in lent:
            assert item.task_id not in self.current, "lent twice"
            self.current[item.task_id] = item.attempt
        return multiple(*lent)

    @rule()
    def redeliver(self) -> None:
        with self.database.write() as session:
            held = leases.redeliver(session, "device_1", 64, 100.0)
        assert {item.task_id: item.attempt for item in held} == self.current

    @rule(lease=given)
    def renew(self, lease: leases.LeasedTask) -> None:
        with self.database.write() as session:
            kept = leases.renew(session, "device_1", lease.lease_id, lease.attempt, 100.0)
        assert (kept is not None) == self.is_current(lease)

    @rule(lease=given)
    def release(self, lease: leases.LeasedTask) -> None:
        with self.database.write() as session:
            taken = leases.release(session, "device_1", lease.lease_id, lease.attempt)
        assert (taken is not None) == self.is_current(lease)
        if taken is not None:
            del self.current[lease.task_id]

    @rule(lease=given)
    def expire(self, lease: leases.LeasedTask) -> None:
        with self.database.write() as session:
            session.execute(update(TaskRow).where(TaskRow.id == lease.task_id).values(lease_expires_at=1.0))
            leases.expire(session)
        self.current.pop(lease.task_id, None)

    @rule(target=sent, lease=given, works=st.booleans())
    def report(self, lease: leases.LeasedTask, works: bool) -> TaskReport:
        report = TaskReport(
            result_key=new_key(),
            lease_id=lease.lease_id,
            task_id=lease.task_id,
            attempt=lease.attempt,
            result=measurement() if works else failure(FailureReason.CRASHED),
        )
        was_current = self.is_current(lease)
        assert self.send(report) == ("accepted" if was_current else "late")
        if was_current:
            del self.current[lease.task_id]
            if works:
                self.accepted.add(report.result_key)
        return report

    @rule(report=consumes(sent))
    def report_again(self, report: TaskReport) -> None:
        assert self.send(report) == "duplicate"

    def send(self, report: TaskReport) -> str:
        with self.database.write() as session:
            taken = reports.take_reports(session, "device_1", (report,), max_attempts=MAX_ATTEMPTS)
        return taken.receipts[0].status.value

    def is_current(self, lease: leases.LeasedTask) -> bool:
        return self.current.get(lease.task_id) == lease.attempt

    @invariant()
    def nothing_is_lost_or_counted_twice(self) -> None:
        if not hasattr(self, "database"):
            return
        with self.database.read() as session:
            tasks = session.scalars(select(TaskRow)).all()
            stored = set(session.scalars(select(MeasurementRow.result_key).where(MeasurementRow.status == "accepted")))
            counted = session.scalar(select(func.coalesce(func.sum(LatencyRow.num_measurements), 0)))
            twice = session.execute(
                select(ReportRow.task_id)
                .where(ReportRow.status == "accepted")
                .group_by(ReportRow.task_id, ReportRow.attempt)
                .having(func.count() > 1)
            ).all()
        assert stored == self.accepted
        assert counted == len(self.accepted)
        assert not twice
        assert {t.id for t in tasks if t.state is TaskState.LEASED} == set(self.current)
        assert {t.result_key for t in tasks if t.state is TaskState.SUCCEEDED} == self.accepted
        assert all(t.failures <= MAX_ATTEMPTS for t in tasks)


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
