"""/v1/devices and /v1/enrolment-codes: the fleet as users see it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from device_agent.contracts import Conditions, ContractError, DeviceProfile, RuntimeInfo, decode
from server.accounts.service import DEFAULT_CODE_LIFETIME_S, mint_enrolment_code
from server.context import Admin, ContextDep, Reader
from server.fleet import repository
from server.fleet.repository import DeviceStatus
from server.wire import (
    DEFAULT_PAGE,
    MAX_PAGE,
    PROBLEMS,
    ContractResponse,
    Page,
    answer,
    body_of,
    body_schema,
    decode_cursor,
    iso,
    page,
    page_answer,
)

router = APIRouter(prefix="/v1", tags=["devices"], responses=PROBLEMS)

#: Heartbeats that may be missed before a device counts as offline: one is often just late.
MISSED_HEARTBEATS = 3


class DeviceState(StrEnum):
    """How a device is: derived, not stored."""

    ONLINE = "online"
    OFFLINE = "offline"
    #: Gets no new work.
    DISABLED = "disabled"
    #: Has no agent: its figures came from a file. It gets no work.
    IMPORTED = "imported"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """`last_seen_at` is None for an imported device, which has no agent. `drifted_series` are those whose sentinel
    kernels no longer take what they took: GET /v1/latency-series/{series_id}/card tells how.
    """

    id: str
    name: str
    state: DeviceState
    profile_id: str
    profile: DeviceProfile
    runtimes: tuple[RuntimeInfo, ...]
    conditions: Conditions | None
    agent_version: str
    pending_tasks: int
    leased_tasks: int
    spooled_reports: int
    created_at: str | None
    last_seen_at: str | None
    drifted_series: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentCodeRequest:
    max_uses: int = 1
    lifetime_s: float = DEFAULT_CODE_LIFETIME_S

    def __post_init__(self) -> None:
        if not 1 <= self.max_uses <= 10_000:
            raise ContractError(f"max_uses {self.max_uses!r} is not in 1..10000")
        if not 0 < self.lifetime_s <= 366 * 24 * 3600:
            raise ContractError(f"lifetime_s {self.lifetime_s!r} is not between 0 and one year")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentCode:
    """`code` is shown once."""

    code: str
    max_uses: int
    expires_at: str | None


@router.get("/devices", responses=page_answer(DeviceView))
def list_devices(
    context: ContextDep,
    principal: Reader,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
) -> Response:
    """All devices, in the order of their enrolment."""
    with context.database.read() as session:
        found = repository.list_devices(session, after=decode_cursor(cursor), limit=limit + 1)
    rows = page(found, limit, key=lambda status: status.row.id)
    views = tuple(device_view(s, context.settings.heartbeat_interval_s) for s in rows.items)
    return ContractResponse(Page(items=views, next=rows.next))


@router.get("/devices/{device_id}", responses=answer(DeviceView))
def get_device(device_id: str, context: ContextDep, principal: Reader) -> Response:
    with context.database.read() as session:
        status = repository.get_device(session, device_id)
    return ContractResponse(device_view(status, context.settings.heartbeat_interval_s))


@router.post("/devices/{device_id}:enable", responses=answer(DeviceView))
def enable_device(device_id: str, context: ContextDep, principal: Admin) -> Response:
    """Give the device work again."""
    return _set_enabled(context, device_id, enabled=True)


@router.post("/devices/{device_id}:disable", responses=answer(DeviceView))
def disable_device(device_id: str, context: ContextDep, principal: Admin) -> Response:
    """Give the device no new work; it finishes what it holds."""
    return _set_enabled(context, device_id, enabled=False)


def _set_enabled(context: ContextDep, device_id: str, *, enabled: bool) -> Response:
    with context.database.write() as session:
        repository.set_enabled(session, device_id, enabled)
        status = repository.get_device(session, device_id)
    if enabled:
        context.waiters.notify_threadsafe(device_id, max(1, status.num_pending))
    return ContractResponse(device_view(status, context.settings.heartbeat_interval_s))


@router.post(
    "/enrolment-codes",
    status_code=201,
    openapi_extra=body_schema("EnrolmentCodeRequest"),
    responses=answer(EnrolmentCode, status=201),
)
def create_enrolment_code(
    context: ContextDep,
    principal: Admin,
    body: Annotated[EnrolmentCodeRequest, Depends(body_of(EnrolmentCodeRequest))],
) -> Response:
    """Make a code with which `max_uses` agents can enrol."""
    with context.database.write() as session:
        code, expires_at = mint_enrolment_code(
            session, context.hasher, max_uses=body.max_uses, lifetime_s=body.lifetime_s
        )
    return ContractResponse(
        EnrolmentCode(code=code, max_uses=body.max_uses, expires_at=iso(expires_at)), status_code=201
    )


def device_view(status: DeviceStatus, heartbeat_interval_s: float) -> DeviceView:
    row = status.row
    is_imported = row.agent_key_hash is None
    return DeviceView(
        id=row.id,
        name=row.name,
        state=device_state(status, heartbeat_interval_s),
        profile_id=row.profile_id,
        profile=decode(DeviceProfile, row.profile),
        runtimes=tuple(decode(RuntimeInfo, r) for r in row.runtimes),
        conditions=None if row.conditions is None else decode(Conditions, row.conditions),
        agent_version=row.agent_version,
        pending_tasks=status.num_pending,
        leased_tasks=status.num_leased,
        spooled_reports=row.spooled_reports,
        created_at=iso(row.created_at),
        last_seen_at=None if is_imported else iso(row.last_seen_at),
        drifted_series=status.drifted_series,
    )


def device_state(status: DeviceStatus, heartbeat_interval_s: float) -> DeviceState:
    if status.row.agent_key_hash is None:
        return DeviceState.IMPORTED
    if not status.row.enabled:
        return DeviceState.DISABLED
    if status.silent_s > MISSED_HEARTBEATS * heartbeat_interval_s:
        return DeviceState.OFFLINE
    return DeviceState.ONLINE
