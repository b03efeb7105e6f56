"""Devices in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, exists, func, insert, or_, select, update
from sqlalchemy.orm import Session

from device_agent.contracts import EnrolmentRequest, HeartbeatRequest, encode, profile_id
from server.columns import now_s
from server.errors import NotFound
from server.ids import new_id
from server.latency.drift import alarms
from server.latency.repository import ensure_profile
from server.models import DeviceRow, TaskRow
from server.states import TaskState

#: What a heartbeat tells of a device that is still the same.
_HEARTBEAT = ("runtimes", "agent_version", "conditions", "spooled_reports")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """A device, how long ago it was heard of, what it has to do, and which of its series have drifted."""

    row: DeviceRow
    silent_s: float
    num_pending: int
    num_leased: int
    drifted_series: tuple[str, ...]


def find_by_agent_key(session: Session, agent_key_hash: str) -> DeviceRow | None:
    return session.scalars(select(DeviceRow).where(DeviceRow.agent_key_hash == agent_key_hash)).one_or_none()


def insert_device(session: Session, request: EnrolmentRequest, agent_key_hash: str) -> str:
    """Add a device; a name that is taken gets a number behind it."""
    device_id = new_id("device")
    ensure_profile(session, request.profile)
    session.execute(
        insert(DeviceRow).values(
            id=device_id,
            name=_free_name(session, request.device_name.strip() or request.profile.machine),
            agent_key_hash=agent_key_hash,
            profile_id=profile_id(request.profile),
            profile=encode(request.profile),
            runtimes=encode(request.runtimes),
            agent_version=request.agent_version,
        )
    )
    return device_id


def set_enrolment_code(session: Session, device_id: str, code_id: str) -> None:
    """Note with which code the agent of a device enrolled last."""
    session.execute(
        update(DeviceRow)
        .where(DeviceRow.id == device_id)
        .values(enrolment_code_id=code_id)
        .execution_options(synchronize_session=False)
    )


def _free_name(session: Session, wanted: str) -> str:
    taken = set(session.scalars(select(DeviceRow.name).where(DeviceRow.name.startswith(wanted, autoescape=True))))
    number, name = 1, wanted
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


#: Built once: agents report in all the time, and to build it takes longer than to run it. Only for a device whose
#: description is the one that is stored.
_SAVE_HEARTBEAT = (
    update(DeviceRow.__table__)  # type: ignore[arg-type]
    .where(DeviceRow.id == bindparam("told_id"), DeviceRow.profile_id == bindparam("told_profile_id"))
    .values(
        **{name: bindparam(f"told_{name}", type_=DeviceRow.__table__.c[name].type) for name in _HEARTBEAT},
        last_seen_at=now_s(),
    )
    .returning(DeviceRow.enabled)
)


def save_heartbeat(session: Session, device_id: str, request: HeartbeatRequest) -> bool | None:
    """Store a heartbeat in one statement; returns whether the device is enabled, None where its profile is another."""
    told = {"id": device_id, "profile_id": profile_id(request.profile), **_told(request)}
    known = session.execute(
        _SAVE_HEARTBEAT, {f"told_{name}": value for name, value in told.items()}
    ).scalar_one_or_none()
    return None if known is None else bool(known)


def save_facts(session: Session, device_id: str, request: EnrolmentRequest | HeartbeatRequest) -> bool:
    """Store what an agent tells about its device; returns whether the device is enabled."""
    enabled = session.execute(
        update(DeviceRow)
        .where(DeviceRow.id == device_id)
        .values(
            **_told(request),
            profile_id=ensure_profile(session, request.profile),
            profile=encode(request.profile),
            last_seen_at=now_s(),
        )
        .returning(DeviceRow.enabled)
        .execution_options(synchronize_session=False)
    ).scalar_one()
    return bool(enabled)


def _told(request: EnrolmentRequest | HeartbeatRequest) -> dict[str, Any]:
    told: dict[str, Any] = {"runtimes": encode(request.runtimes), "agent_version": request.agent_version}
    if isinstance(request, HeartbeatRequest):
        told |= {"conditions": encode(request.conditions), "spooled_reports": request.spooled_reports}
    return told


def set_enabled(session: Session, device_id: str, enabled: bool) -> None:
    changed = session.execute(
        update(DeviceRow)
        .where(DeviceRow.id == device_id, DeviceRow.agent_key_hash.is_not(None))
        .values(enabled=enabled)
        .returning(DeviceRow.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if changed is None:
        raise NotFound(f"there is no device {device_id!r} with an agent: GET /v1/devices lists them")


def list_devices(session: Session, *, after: str | None, limit: int, busy: bool = False) -> list[DeviceStatus]:
    """Devices in the order of their enrolment; `busy` are those with tasks that wait or are being measured."""
    query = select(DeviceRow, (now_s() - DeviceRow.last_seen_at).label("silent_s")).order_by(DeviceRow.id).limit(limit)
    if after is not None:
        query = query.where(DeviceRow.id > after)
    if busy:
        # One for each state: its index has the tasks of that state alone.
        tasks = (
            exists().where(TaskRow.device_id == DeviceRow.id, TaskRow.state == state)
            for state in (TaskState.PENDING, TaskState.LEASED)
        )
        query = query.where(or_(*tasks))
    found = [(row[0], float(row[1])) for row in session.execute(query)]
    identities = [row.id for row, _ in found]
    counts, drifted = _task_counts(session, identities), alarms(session, identities)
    return [_status(row, silent_s, counts, drifted) for row, silent_s in found]


def get_device(session: Session, device_id: str) -> DeviceStatus:
    row = session.execute(
        select(DeviceRow, (now_s() - DeviceRow.last_seen_at).label("silent_s")).where(DeviceRow.id == device_id)
    ).one_or_none()
    if row is None:
        raise NotFound(f"there is no device {device_id!r}: GET /v1/devices lists them")
    return _status(row[0], float(row[1]), _task_counts(session, [device_id]), alarms(session, [device_id]))


def _status(
    row: DeviceRow,
    silent_s: float,
    counts: dict[tuple[str, TaskState], int],
    drifted: dict[str, tuple[str, ...]],
) -> DeviceStatus:
    return DeviceStatus(
        row=row,
        silent_s=max(0.0, silent_s),
        num_pending=counts.get((row.id, TaskState.PENDING), 0),
        num_leased=counts.get((row.id, TaskState.LEASED), 0),
        drifted_series=drifted.get(row.id, ()),
    )


def _task_counts(session: Session, device_ids: Sequence[str]) -> dict[tuple[str, TaskState], int]:
    counts: dict[tuple[str, TaskState], int] = {}
    # One query a state, so that each can use its partial index.
    for state in (TaskState.PENDING, TaskState.LEASED):
        query = (
            select(TaskRow.device_id, func.count())
            .where(TaskRow.device_id.in_(device_ids), TaskRow.state == state)
            .group_by(TaskRow.device_id)
        )
        counts |= {(device_id, state): count for device_id, count in session.execute(query)}
    return counts
