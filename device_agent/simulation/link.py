"""A connection to the server that goes away now and then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from device_agent.client import ServerClient
from device_agent.clock import Clock
from device_agent.errors import TryAgainLater
from device_agent.simulation.scenario import Link


class Outages:
    """Alternating times online and offline, exponentially distributed, from the moment of construction on."""

    def __init__(self, link: Link, chance: random.Random, clock: Clock) -> None:
        self._link = link
        self._chance = chance
        self._clock = clock
        self._online = True
        self._changes_at = clock.monotonic() + self._duration_s()

    @property
    def offline(self) -> bool:
        """Whether the connection is down now."""
        while self._link.offline_s > 0 and self._clock.monotonic() >= self._changes_at:
            self._online = not self._online
            self._changes_at += self._duration_s()
        return not self._online

    def _duration_s(self) -> float:
        mean_s = self._link.online_s if self._online else self._link.offline_s
        return self._chance.expovariate(1 / mean_s) if mean_s > 0 else 0.0


class FlakyClient(ServerClient):
    """A client whose requests fail while its link is down, before they are sent or, as likely, after they arrived."""

    def __init__(self, server_url: str, token: str, outages: Outages, chance: random.Random) -> None:
        super().__init__(server_url, token)
        self._outages = outages
        self._chance = chance

    @contextmanager
    def artifact(self, sha256: str, offset: int = 0) -> Iterator[tuple[int, Iterator[bytes]]]:
        self._fail_if_offline()
        with super().artifact(sha256, offset) as content:
            yield content

    def _post(self, path: str, body: object, timeout: httpx.Timeout | None = None) -> httpx.Response:
        # An answer that gets lost is what the server's idempotency is for. A lost lease would only run out: not those.
        if self._outages.offline and (path == "/v1/leases" or self._chance.random() < 0.5):
            self._fail_if_offline()
        response = super()._post(path, body, timeout)
        if path != "/v1/leases":
            self._fail_if_offline()
        return response

    def _fail_if_offline(self) -> None:
        if self._outages.offline:
            raise TryAgainLater("simulated: the connection is down")
