"""What agents do: enrol, report in, get work, hand results over. Each function is one transaction or a few."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import IntegrityError

from device_agent.contracts import (
    WIRE_VERSION,
    EnrolmentAnswer,
    EnrolmentRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    KernelTask,
    Lease,
    LeaseRequest,
    MeasuringSetup,
    NetworkTask,
    RenewAnswer,
    ReportAnswer,
    ReportBatch,
    ThermalMode,
    decode,
)
from server.accounts import repository as accounts
from server.accounts.service import mint_agent_token
from server.context import Context
from server.errors import Conflict, Forbidden, Unprocessable
from server.fleet import leases, repository
from server.fleet.reports import take_reports
from server.searches.tasks import is_wanted

#: Starting the child process, unpacking and building, on a slow and busy board.
DEADLINE_BASE_S = 60.0
#: The budget counts sampling only; warm-up, calibration and a machine that is shared come on top.
DEADLINE_FACTOR = 10.0
MAX_NAME_CHARS = 150
MAX_KEY_CHARS = 200


def enrol(context: Context, request: EnrolmentRequest) -> EnrolmentAnswer:
    """Let an agent in. The same `agent_key` gets the same device, and a new token in place of the old one.

    Each time takes a use of a code, or else an agent whose token was revoked would get another for its old code.
    """
    if request.wire_version != WIRE_VERSION:
        raise Unprocessable(
            f"the agent speaks wire {request.wire_version}, the server {WIRE_VERSION}: install one release on both",
            code="wire_version",
        )
    if not 16 <= len(request.agent_key) <= MAX_KEY_CHARS:
        raise Unprocessable(f"agent_key must have 16 to {MAX_KEY_CHARS} characters, not {len(request.agent_key)}")
    if len(request.device_name) > MAX_NAME_CHARS:
        raise Unprocessable(f"device_name has {len(request.device_name)} characters, more than {MAX_NAME_CHARS}")
    _require_agent_profile(request)
    try:
        return _enrol(context, request)
    except IntegrityError:
        # Two enrolments at once took the same name or key: the second finds the first one's row.
        return _enrol(context, request)


def _enrol(context: Context, request: EnrolmentRequest) -> EnrolmentAnswer:
    code_hash, key_hash = context.hasher.hash(request.code), context.hasher.hash(request.agent_key)
    with context.database.write() as session:
        known = repository.find_by_agent_key(session, key_hash)
        code_id = accounts.use_code(session, code_hash)
        if code_id is None and known is not None and accounts.may_repeat(session, code_hash, known.id):
            # An agent whose first answer was lost repeats itself with a code that is used up by now.
            code_id = known.enrolment_code_id
        if code_id is None:
            raise Forbidden(
                "the enrolment code is unknown, used up or expired: make one with `kerf enrol-code`",
                code="enrolment_code",
            )
        if known is None:
            device_id = repository.insert_device(session, request, key_hash)
        else:
            device_id = known.id
            repository.save_facts(session, device_id, request)
        repository.set_enrolment_code(session, device_id, code_id)
        token = mint_agent_token(session, context.hasher, device_id=device_id, name=f"agent of {device_id}")
    return EnrolmentAnswer(
        device_id=device_id,
        token=token,
        heartbeat_interval_s=context.settings.heartbeat_interval_s,
        lease_wait_s=context.settings.lease_wait_s,
    )


def _require_agent_profile(request: EnrolmentRequest | HeartbeatRequest) -> None:
    if request.profile.imported:
        raise Unprocessable("profile.imported: a device with an agent is not imported: leave the field out")


def heartbeat(context: Context, device_id: str, request: HeartbeatRequest) -> HeartbeatAnswer:
    _require_agent_profile(request)
    with context.database.write_one() as session:
        enabled = repository.save_heartbeat(session, device_id, request)
    if enabled is None:
        with context.database.write() as session:
            enabled = repository.save_facts(session, device_id, request)
    return HeartbeatAnswer(interval_s=context.settings.heartbeat_interval_s, drain=not enabled)


def lend(context: Context, device_id: str, max_leases: int) -> tuple[Lease, ...]:
    """The leases that the device holds, or else new ones; none without work."""
    with context.database.read() as session:
        # An idle agent's poll must not take the write lock.
        if not leases.has_work(session, device_id):
            return ()
    duration_s = context.settings.lease_duration_s
    with context.database.write() as session:
        leases.expire(session, device_id=device_id)
        lent = leases.redeliver(session, device_id, max_leases, duration_s)
        if not lent:
            lent = leases.claim(session, device_id, max_leases, duration_s)
    return tuple(_lease(item) for item in lent)


async def lend_waiting(
    context: Context, device_id: str, request: LeaseRequest, is_gone: Callable[[], Awaitable[bool]]
) -> tuple[Lease, ...]:
    """`lend`, waiting up to `request.wait_s`. No session and no thread is held while waiting.

    An agent that `is_gone` is lent nothing: its tasks would wait for its next request, or for their leases to expire.
    """
    deadline = time.monotonic() + request.wait_s
    while True:
        lent = await run_in_threadpool(lend, context, device_id, request.max_leases)
        if lent or not await context.waiters.wait(device_id, deadline - time.monotonic()) or await is_gone():
            return lent


def _lease(item: leases.LeasedTask) -> Lease:
    task: KernelTask | NetworkTask = decode(KernelTask, item.task) if item.is_kernel else decode(NetworkTask, item.task)
    return Lease(
        lease_id=item.lease_id,
        task_id=item.task_id,
        attempt=item.attempt,
        duration_s=max(0.0, item.remaining_s),
        deadline_s=deadline_s(task.setup),
        task=task,
    )


def deadline_s(setup: MeasuringSetup) -> float:
    """When a child process of a task is killed: its only one, or each of several."""
    load_s = setup.load_s if setup.thermal_mode is ThermalMode.SUSTAINED else 0.0
    return DEADLINE_BASE_S + load_s + DEADLINE_FACTOR * (setup.budget_s + setup.min_warmup_s)


def renew(context: Context, device_id: str, lease_id: str, attempt: int) -> RenewAnswer:
    """Raises `Conflict` where the lease is over."""
    duration_s = context.settings.lease_duration_s
    with context.database.write() as session:
        task_id = leases.renew(session, device_id, lease_id, attempt, duration_s)
        if task_id is None:
            raise _lost(lease_id, attempt)
        return RenewAnswer(duration_s=duration_s, cancel=not is_wanted(session, task_id))


def release(context: Context, device_id: str, lease_id: str, attempt: int) -> None:
    """Raises `Conflict` where the lease is over."""
    with context.database.write() as session:
        if leases.release(session, device_id, lease_id, attempt) is None:
            raise _lost(lease_id, attempt)
    context.waiters.notify_threadsafe(device_id)


def _lost(lease_id: str, attempt: int) -> Conflict:
    return Conflict(
        f"lease {lease_id} of attempt {attempt} is over: it expired or its task is finished. Drop the task",
        code="lease_lost",
    )


def report(context: Context, device_id: str, batch: ReportBatch) -> ReportAnswer:
    with context.database.write() as session:
        taken = take_reports(session, device_id, batch.reports, max_attempts=context.settings.max_attempts)
    context.counters.took_reports(batch, taken.receipts)
    if unknown := taken.unknown_task_ids:
        context.counters.unknown_reports.inc(len(unknown))
        context.unknown_reports.took(device_id, len(unknown), unknown[0])
    if taken.num_ready:
        context.waiters.notify_threadsafe(device_id, taken.num_ready)
    return ReportAnswer(receipts=taken.receipts)


def reap(context: Context) -> None:
    """Collect expired leases of all devices."""
    with context.database.write() as session:
        ready = leases.expire(session)
    for device_id, count in ready.items():
        context.waiters.notify_threadsafe(device_id, count)
