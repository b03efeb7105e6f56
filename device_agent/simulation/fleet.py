"""Many simulated agents in one process: each has its own state directory, token, loops and connection."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from device_agent.clock import Clock, SystemClock
from device_agent.contracts import DeviceProfile
from device_agent.errors import TryAgainLater
from device_agent.heartbeat import Announcement
from device_agent.log import log_event
from device_agent.probe import probe_device
from device_agent.service import build_agent, enrol, usable_credentials
from device_agent.settings import AgentSettings
from device_agent.simulation.device import SimulatedDevice
from device_agent.simulation.link import FlakyClient, Outages
from device_agent.simulation.scenario import Curve, Scenario
from device_agent.stopping import StopRequest

logger = logging.getLogger(__name__)

#: How long an agent may take to hand back what it holds; a long poll in flight is waited for.
STOP_LIMIT_S = 40.0


def devices_of(scenario: Scenario, curves: Mapping[str, Curve]) -> Iterator[SimulatedDevice]:
    """All devices of a scenario. Raises `RuntimeUnavailable` for a core that does not exist."""
    for group in scenario.groups:
        for number in range(1, group.count + 1):
            curve = None if group.curve is None else curves[group.curve]
            yield SimulatedDevice(group, number, scenario.seed, curve)


class Fleet:
    """Agents of a scenario as threads. `settings` are those of the fleet: each device's state is in a folder below."""

    def __init__(
        self,
        scenario: Scenario,
        curves: Mapping[str, Curve],
        settings: AgentSettings,
        *,
        clock: Clock | None = None,
        host: Callable[[], DeviceProfile] = lambda: probe_device(simulated=True),
    ) -> None:
        self._scenario = scenario
        self._settings = settings
        self._clock = clock or SystemClock()
        self._host = host()
        links = [group.link for group in scenario.groups for _ in range(group.count)]
        self._members = list(zip(devices_of(scenario, curves), links, strict=True))
        self._stops = [StopRequest() for _ in self._members]
        self._threads: list[threading.Thread] = []
        self.errors: list[Exception] = []

    def __len__(self) -> int:
        return len(self._members)

    def start(self) -> None:
        """Enrol all devices that are new, and start them."""
        for place, (device, _) in enumerate(self._members):
            thread = threading.Thread(target=self._run, args=(place,), name=device.name, daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def is_alive(self) -> bool:
        """Whether any device still works."""
        return any(thread.is_alive() for thread in self._threads)

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Let all agents finish what they have in hand, give back the rest, and end; at most for `limit_s` together."""
        for stop in self._stops:
            stop.ask_drain()
        ends_at = self._clock.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(0.0, ends_at - self._clock.monotonic()))
        for stop in self._stops:
            stop.ask_abort()

    def _run(self, place: int) -> None:
        device = self._members[place][0]
        try:
            self._work(place)
        except TryAgainLater as error:
            # Stopped while it enrolled is a stop, not a failure.
            if not self._stops[place].drain.is_set():
                self._failed(device.name, error)
        except Exception as error:
            # One device that the server refuses must not end the others; the fleet says so at its end.
            self._failed(device.name, error)

    def _failed(self, device_name: str, error: Exception) -> None:
        self.errors.append(error)
        log_event(logger, logging.ERROR, "device_ended", device=device_name, error=error)

    def _work(self, place: int) -> None:
        device, link = self._members[place]
        stop = self._stops[place]
        settings = replace(self._settings, state_dir=self._settings.state_dir / device.name, device_name=device.name)
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        announcement = Announcement(profile=device.profile(self._host), runtimes=(device.runtime,))
        credentials = usable_credentials(settings)
        if credentials is None:
            credentials = enrol(settings, announcement, stop, attempts=None, clock=self._clock)
        chance = random.Random(f"{self._scenario.seed} {device.name}")
        outages = Outages(link, random.Random(chance.random()), self._clock)
        with FlakyClient(credentials.server_url, credentials.token, outages, random.Random(chance.random())) as client:
            build_agent(
                settings,
                credentials,
                client,
                announcement,
                device,
                stop,
                clock=self._clock,
                rng=random.Random(chance.random()),
                read_conditions=device.conditions,
                why_not_ready=lambda: None,
            ).run()
