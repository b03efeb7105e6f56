"""Sending the spool to the server."""

from __future__ import annotations

import logging

from device_agent.client import ServerClient
from device_agent.contracts import FailureReason, Measurement, MeasurementFailure, ReportBatch, ReportStatus, TaskReport
from device_agent.errors import CredentialsRefused, RequestRefused, TryAgainLater
from device_agent.held import HeldLeases
from device_agent.identity import new_result_key
from device_agent.log import log_event
from device_agent.outbox import Outbox

logger = logging.getLogger(__name__)

#: A report is some 20 to 100 KiB of raw samples; 32 of them stay below a megabyte or two.
MAX_BATCH_REPORTS = 32
MAX_BATCH_BYTES = 2 << 20


class Delivery:
    """Empties the outbox. Used by the lease loop only."""

    def __init__(self, client: ServerClient, outbox: Outbox, held: HeldLeases) -> None:
        self._client = client
        self._outbox = outbox
        self._held = held

    def flush(self) -> int:
        """Send everything that is spooled; how many reports the server took.

        Raises `TryAgainLater` (the rest stays spooled) and `CredentialsRefused` (all stays spooled). A single report
        that the server refuses is set aside, and the task is reported as failed in its place.
        """
        delivered = 0
        max_reports = MAX_BATCH_REPORTS
        while batch := self._outbox.next_batch(max_reports=max_reports, max_bytes=MAX_BATCH_BYTES):
            try:
                delivered += self._send(batch)
            except CredentialsRefused:
                raise
            except RequestRefused as refusal:
                if len(batch) > 1:
                    max_reports = 1  # One of them is refused: find out which.
                else:
                    self._replace_refused(batch[0], refusal)
        return delivered

    def _send(self, batch: tuple[TaskReport, ...]) -> int:
        answer = self._client.report(ReportBatch(reports=batch))
        statuses = {receipt.result_key: receipt.status for receipt in answer.receipts}
        missing = [report.result_key for report in batch if report.result_key not in statuses]
        for report in batch:
            status = statuses.get(report.result_key)
            if status is None:
                continue
            self._outbox.remove(report.result_key)
            self._held.discard(report.lease_id)
            log_event(
                logger,
                logging.WARNING if status is ReportStatus.LATE else logging.INFO,
                "report_delivered",
                task_id=report.task_id,
                lease_id=report.lease_id,
                attempt=report.attempt,
                result_key=report.result_key,
                status=status,
            )
        if missing:
            raise TryAgainLater(f"the server gave no receipt for {len(missing)} of {len(batch)} reports")
        return len(batch)

    def _replace_refused(self, report: TaskReport, refusal: RequestRefused) -> None:
        kept_in = self._outbox.set_aside(report.result_key)
        log_event(
            logger,
            logging.ERROR,
            "report_refused",
            task_id=report.task_id,
            lease_id=report.lease_id,
            result_key=report.result_key,
            status=refusal.status,
            error=refusal,
            kept_in=kept_in,
        )
        if isinstance(report.result, Measurement):
            # The server must not wait for the lease to run out, three times over, to learn of it.
            failure = MeasurementFailure(
                reason=FailureReason.AGENT_ERROR, detail=f"the server refused the measurement: {refusal}"[:2000]
            )
            self._outbox.add(
                TaskReport(
                    result_key=new_result_key(),
                    lease_id=report.lease_id,
                    task_id=report.task_id,
                    attempt=report.attempt,
                    result=failure,
                )
            )
        else:
            self._held.discard(report.lease_id)
