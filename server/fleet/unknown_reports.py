"""Reports of tasks that the database does not have: told of in one line a minute for each device, however many come."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)

_PERIOD_S = 60.0


@dataclass(slots=True)
class _Told:
    at_s: float
    since: int


class UnknownReports:
    """Counts them, and logs the first at once and the others with the first that comes a minute later or more.

    Remembers the `max_devices` devices that were heard of last. Safe to use from several threads.
    """

    def __init__(self, *, max_devices: int = 20_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_devices = max_devices
        self._clock = clock
        self._lock = threading.Lock()
        self._told: OrderedDict[str, _Told] = OrderedDict()

    def took(self, device_id: str, count: int, task_id: str) -> None:
        """Note `count` reports of a device, `task_id` being among their tasks."""
        now_s = self._clock()
        with self._lock:
            told = self._told.get(device_id)
            if told is not None and now_s - told.at_s < _PERIOD_S:
                told.since += count
                self._told.move_to_end(device_id)
                return
            reports = count + (0 if told is None else told.since)
            self._told[device_id] = _Told(now_s, 0)
            self._told.move_to_end(device_id)
            if len(self._told) > self._max_devices:
                self._told.popitem(last=False)
        log.warning("reports_of_unknown_tasks", device_id=device_id, reports=reports, task_id=task_id)
