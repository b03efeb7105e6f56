"""What the page of the queue shows, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from server.dashboard.pages import DeviceView, Progress
from server.dashboard.wording import StateLabel


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedSearch:
    """A search that is not over. `position` is that among those that wait for a worker; `remaining_s` is how long the
    present stage still takes at its latest pace. None where it has none, or cannot be told.
    """

    search_id: str
    name: str
    state: StateLabel
    position: int | None
    progress: Progress
    remaining_s: float | None
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingTasks:
    """Tasks of one search that wait for a device: how many, how many others come before the last of them, and when that
    is done.
    """

    search_id: str
    name: str
    count: int
    ahead: int
    remaining_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceQueue:
    """What a device has to do. `task_s` is the mean of its latest measurements; times are None without any, or where
    the device gets no work now.
    """

    device: DeviceView
    leased: int
    pending: int
    task_s: float | None
    remaining_s: float | None
    searches: tuple[WaitingTasks, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePage:
    searches: tuple[QueuedSearch, ...]
    more_searches: bool
    devices: tuple[DeviceQueue, ...]
