"""Watching devices for drift: now and then an idle one measures the sentinel kernels of a series again.

All that is known is in the database: a restart loses nothing, and of several servers one makes and judges a check.
"""

from __future__ import annotations

import structlog
from sqlalchemy import select

from server.context import Context
from server.fleet.devices import DeviceState, device_state
from server.fleet.repository import get_device, list_devices
from server.latency import drift
from server.models import DeviceRow
from server.states import DriftOutcome

log = structlog.get_logger(__name__)

#: A device that does not come back in this time leaves its check without an answer.
MAX_CHECK_AGE_S = 24 * 3600.0

_PAGE = 500


def watch(context: Context) -> None:
    """Judge the checks that are over, and make those that are due where `drift_interval_s` asks for any."""
    _judge(context)
    interval_s = context.settings.drift_interval_s
    if interval_s:
        for device_id in _idle_devices(context):
            _check_if_due(context, device_id, interval_s)


def _judge(context: Context) -> None:
    with context.database.read() as session:
        # Statistics of up to thousands of measurements are read outside of the write transaction.
        over = [
            (check, drift.judged(session, check)) for check in drift.finished_checks(session, max_age_s=MAX_CHECK_AGE_S)
        ]
    for check, findings in over:
        with context.database.write() as session:
            outcome = drift.close_check(session, check, findings)
        told = log.warning if outcome is DriftOutcome.DRIFTED else log.info
        told("drift_check", series_id=check.series_id, device_id=check.device_id, outcome=outcome and outcome.value)


def _idle_devices(context: Context) -> list[str]:
    """Devices that are there and have nothing to do."""
    found: list[str] = []
    after: str | None = None
    while True:
        with context.database.read() as session:
            page = list_devices(session, after=after, limit=_PAGE)
        found += [
            status.row.id
            for status in page
            if device_state(status, context.settings.heartbeat_interval_s) is DeviceState.ONLINE
            and status.num_pending + status.num_leased == 0
        ]
        if len(page) < _PAGE:
            return found
        after = page[-1].row.id


def _check_if_due(context: Context, device_id: str, interval_s: float) -> None:
    with context.database.read() as session:
        if drift.due_series(session, get_device(session, device_id).row, interval_s) is None:
            return
    with context.database.write() as session:
        # Under the lock of its row, so that two servers do not check a device at once; then looked at again.
        device = session.scalars(select(DeviceRow).where(DeviceRow.id == device_id).with_for_update()).one()
        series = drift.due_series(session, device, interval_s)
        if series is not None:
            drift.make_check(session, series)
            log.info("drift_check_begins", series_id=series.id, device_id=device_id)
