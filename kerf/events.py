"""Server-sent events of a search, without the connection that they come through."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

import httpx

from kerf.errors import ServerUnavailable, error_of
from kerf.retries import MAX_ATTEMPTS, next_delay_s
from kerf.schemas import EventView


class EventReader:
    """Makes events from the lines of streams, and knows where the next stream has to go on.

    Give it every line with `feed`; after a stream broke off ask `delay_s` how long to wait before the next one.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._last_id: str | None = None
        self._failures = 0
        self._fields: dict[str, str] = {}

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the request for the next stream."""
        self._fields = {}
        headers = {"Accept": "text/event-stream"}
        return headers if self._last_id is None else {**headers, "Last-Event-ID": self._last_id}

    def feed(self, line: str) -> EventView | None:
        """The event that `line` completes, if it does (WHATWG HTML, section 9.2.6); comments are dropped."""
        if line.startswith(":"):
            return None
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            joined = name == "data" and name in self._fields
            self._fields[name] = f"{self._fields[name]}\n{value}" if joined else value
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        self._failures = 0
        self._last_id = fields.get("id", self._last_id)
        if fields.get("event") == "end":
            self.is_over = True
            return None
        return cast(EventView, json.loads(fields["data"]))

    def delay_s(self, outcome: httpx.Response | httpx.TransportError) -> float:
        """Seconds to wait after a stream that failed. Raises `ApiError` or `ServerUnavailable` where it is no use."""
        self._failures += 1
        delay = next_delay_s(outcome, self._failures, is_repeatable=True, max_attempts=MAX_ATTEMPTS)
        if delay is not None:
            return delay
        if isinstance(outcome, httpx.Response):
            raise error_of(outcome)
        raise ServerUnavailable(f"the server went away: {outcome}") from outcome
