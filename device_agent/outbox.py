"""The spool: every report is on the disk before it is sent, and leaves it only after the server's receipt.

    <directory>/<result_key>.json            one report each, written atomically
    <directory>/refused/<result_key>.json    what the server refused for good, or what became unreadable: for a person

kill -9 between the end of a measurement and its receipt therefore loses nothing, and sending it again after the
restart counts nothing twice: the server knows its result_key.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from device_agent.contracts import ContractError, TaskReport, dumps, loads
from device_agent.files import private_directory, remove_temporary_files, sync_directory, write_atomically
from device_agent.log import log_event

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledReport:
    """What is kept in memory of a report on the disk."""

    result_key: str
    lease_id: str
    attempt: int
    size_bytes: int


class Outbox:
    """The reports of one device that no receipt came for yet. Used by the lease loop only; `len` by any thread.

    Raises `OSError` where the disk fails.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = private_directory(directory)
        self._refused = private_directory(directory / "refused")
        remove_temporary_files(self._directory)
        self._spooled: dict[str, SpooledReport] = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                content = path.read_bytes()
                self._remember(loads(TaskReport, content), len(content))
            except ContractError as error:
                self._set_aside(path.stem)
                log_event(
                    logger,
                    logging.ERROR,
                    "spooled_report_unreadable",
                    result_key=path.stem,
                    error=error,
                    kept_in=self._refused,
                )

    def __len__(self) -> int:
        return len(self._spooled)

    def holds(self, lease_id: str, attempt: int) -> bool:
        """Whether the result of this lending is spooled already: then it must not be measured again."""
        return any(s.lease_id == lease_id and s.attempt == attempt for s in tuple(self._spooled.values()))

    def add(self, report: TaskReport) -> None:
        """Put `report` on the disk. When this returns, no crash can lose it."""
        content = dumps(report).encode()
        write_atomically(self._path(report.result_key), content)
        self._remember(report, len(content))

    def next_batch(self, *, max_reports: int, max_bytes: int) -> tuple[TaskReport, ...]:
        """The oldest reports, at most `max_reports` of together `max_bytes`, but at least one if there is one."""
        reports: list[TaskReport] = []
        total_bytes = 0
        for spooled in sorted(self._spooled.values(), key=lambda s: s.result_key):
            total_bytes += spooled.size_bytes
            if reports and (len(reports) >= max_reports or total_bytes > max_bytes):
                break
            reports.append(loads(TaskReport, self._path(spooled.result_key).read_bytes()))
        return tuple(reports)

    def remove(self, result_key: str) -> None:
        """The server has it."""
        self._path(result_key).unlink(missing_ok=True)
        self._spooled.pop(result_key, None)

    def set_aside(self, result_key: str) -> Path:
        """The server will never take it: keep it apart, and never send it again. Returns where."""
        self._spooled.pop(result_key, None)
        return self._set_aside(result_key)

    def _set_aside(self, result_key: str) -> Path:
        target = self._refused / f"{result_key}.json"
        os.replace(self._path(result_key), target)
        sync_directory(self._directory)
        return target

    def _path(self, result_key: str) -> Path:
        return self._directory / f"{result_key}.json"

    def _remember(self, report: TaskReport, size_bytes: int) -> None:
        self._spooled[report.result_key] = SpooledReport(
            result_key=report.result_key, lease_id=report.lease_id, attempt=report.attempt, size_bytes=size_bytes
        )
