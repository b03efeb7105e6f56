"""An agent put together from its settings: enrolment, then the loops, on the real clock and the real device."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from device_agent import __version__
from device_agent.agent import Agent, TaskRunner
from device_agent.artifacts import ArtifactCache
from device_agent.begun import BegunTask
from device_agent.child import probe_in_child
from device_agent.client import ServerClient
from device_agent.clock import Clock, SystemClock
from device_agent.contracts import Conditions, EnrolmentRequest, RuntimeInfo
from device_agent.errors import CredentialsRefused, EnrolmentNeeded, ProbeFailed, TryAgainLater
from device_agent.heartbeat import Announcement, Heartbeat
from device_agent.held import HeldLeases
from device_agent.identity import Credentials, agent_key, load_credentials, store_credentials
from device_agent.log import bind_fields, log_event
from device_agent.measuring.conditions import ConditionsReader
from device_agent.measuring.preflight import limits_of, why_not_ready
from device_agent.outbox import Outbox
from device_agent.probe import probe_device
from device_agent.retry import LOOPBACK_POLICY, Backoff, BackoffPolicy
from device_agent.runner import ChildRunner
from device_agent.settings import AgentSettings, is_loopback
from device_agent.stopping import PollInterrupted, StopRequest

logger = logging.getLogger(__name__)

#: Tries of an enrolment by hand: with pauses of at most 0.5, 1, 2, 4 and 8 s, an answer within a quarter of a minute.
ENROL_ATTEMPTS = 6


def announcement_of(settings: AgentSettings) -> Announcement:
    """Probe the device, and its runtimes in a child. Raises `ProbeFailed` where that child fails."""
    try:
        runtimes = probe_in_child(simulated=settings.simulated)
    except RuntimeError as error:
        raise ProbeFailed(str(error)) from error
    profile = probe_device(simulated=settings.simulated, emulated=settings.emulated, parent=os.getppid())
    log_unavailable(runtimes)
    return Announcement(profile=profile, runtimes=runtimes)


def log_unavailable(runtimes: Iterable[RuntimeInfo]) -> None:
    """Say of each runtime that cannot be used why."""
    for info in runtimes:
        if info.unavailable is not None:
            log_event(logger, logging.INFO, "runtime_unavailable", runtime=info.name, reason=info.unavailable)


def enrol(
    settings: AgentSettings, announcement: Announcement, stop: StopRequest, *, attempts: int | None, clock: Clock
) -> Credentials:
    """Get a token for `settings.code`, and keep it. Tries `attempts` times, or without end (None).

    The agent's key is on the disk before the request is sent, so that an enrolment whose answer got lost finds the same
    device again. Raises `EnrolmentNeeded` without a code or an address, `CredentialsRefused` for a wrong code, and
    `TryAgainLater` when the attempts are used up or a stop was asked for.
    """
    if settings.server_url is None:
        raise EnrolmentNeeded("no server is known: give its address with --server URL or KERF_AGENT_SERVER")
    if settings.code is None:
        raise EnrolmentNeeded(
            f"this agent has no token for {settings.server_url}: give an enrolment code with --code or KERF_AGENT_CODE "
            "(make one with `kerf enrol-code`, or in the dashboard)"
        )
    _warn_of_plain_http(settings.server_url)
    request = EnrolmentRequest(
        code=settings.code,
        agent_key=agent_key(settings.state_dir),
        device_name=settings.device_name,
        profile=announcement.profile,
        runtimes=announcement.runtimes,
        agent_version=__version__,
    )
    backoff = Backoff(random.Random(), _backoff_policy(settings.server_url))
    with ServerClient(settings.server_url) as client:
        while True:
            try:
                with stop.interruptible():
                    answer = client.enrol(request)
                break
            except PollInterrupted:
                stop.drain.wait()  # It is set by another thread, a moment after the signal.
                raise TryAgainLater("stopped while enrolling: start again with the same code") from None
            except TryAgainLater as error:
                pause_s = backoff.next_pause_s(error)
                log_event(logger, logging.WARNING, "not_enrolled_yet", pause_s=pause_s, error=error)
                if backoff.failures == attempts or clock.wait(stop.drain, pause_s):
                    raise
    credentials = Credentials(
        server_url=settings.server_url,
        device_id=answer.device_id,
        token=answer.token,
        heartbeat_interval_s=answer.heartbeat_interval_s,
        lease_wait_s=answer.lease_wait_s,
    )
    store_credentials(settings.state_dir, credentials)
    log_event(logger, logging.INFO, "enrolled", device_id=credentials.device_id, server=credentials.server_url)
    return credentials


def usable_credentials(settings: AgentSettings) -> Credentials | None:
    """The stored credentials, if they are for the server that the settings name (or name none)."""
    credentials = load_credentials(settings.state_dir)
    if credentials is None or settings.server_url not in (None, credentials.server_url):
        return None
    return credentials


def run_service(settings: AgentSettings, stop: StopRequest) -> None:
    """Enrol if need be, and work until `stop`. The caller holds the lock on the state directory.

    A stored token that the server refuses is replaced once, if there is a code to enrol with.
    """
    clock = SystemClock()
    announcement = announcement_of(settings)
    credentials = usable_credentials(settings)
    fresh = credentials is None
    if credentials is None:
        credentials = enrol(settings, announcement, stop, attempts=None, clock=clock)
    runner = ChildRunner(announcement.runtimes, emulated=announcement.profile.emulated)
    try:
        _work(settings, credentials, announcement, runner, stop, clock)
    except CredentialsRefused as refusal:
        if fresh or settings.code is None:
            raise
        log_event(logger, logging.WARNING, "token_refused", device_id=credentials.device_id, error=refusal)
        settings = dataclasses.replace(settings, server_url=credentials.server_url)
        credentials = enrol(settings, announcement, stop, attempts=None, clock=clock)
        _work(settings, credentials, announcement, runner, stop, clock)


def build_agent(
    settings: AgentSettings,
    credentials: Credentials,
    client: ServerClient,
    announcement: Announcement,
    runner: TaskRunner,
    stop: StopRequest,
    *,
    clock: Clock,
    rng: random.Random,
    read_conditions: Callable[[], Conditions],
    why_not_ready: Callable[[], str | None],
) -> Agent:
    """Wire the loops of one device together."""
    held = HeldLeases(clock)
    policy = _backoff_policy(credentials.server_url)
    # Reports belong to the device they were leased to: a new enrolment must not send another one's.
    outbox = Outbox(settings.state_dir / "spool" / credentials.device_id)
    heartbeat = Heartbeat(
        client=client,
        held=held,
        announcement=announcement,
        read_conditions=read_conditions,
        spooled_reports=outbox.__len__,
        interval_s=credentials.heartbeat_interval_s,
        clock=clock,
        rng=random.Random(rng.random()),
        backoff_policy=policy,
    )
    return Agent(
        client=client,
        outbox=outbox,
        held=held,
        heartbeat=heartbeat,
        artifacts=ArtifactCache(settings.state_dir / "artifacts", settings.artifact_cache_bytes),
        runner=runner,
        begun=BegunTask(settings.state_dir / "task.begun"),
        stop=stop,
        why_not_ready=why_not_ready,
        max_leases=settings.max_leases,
        lease_wait_s=credentials.lease_wait_s,
        clock=clock,
        rng=rng,
        backoff_policy=policy,
    )


def _work(
    settings: AgentSettings,
    credentials: Credentials,
    announcement: Announcement,
    runner: ChildRunner,
    stop: StopRequest,
    clock: Clock,
) -> None:
    _warn_of_plain_http(credentials.server_url)
    bind_fields(device_id=credentials.device_id)
    reader = ConditionsReader(core=runner.measuring_core)
    limits = limits_of(reader.read())
    log_event(
        logger,
        logging.INFO,
        "started",
        server=credentials.server_url,
        agent_version=__version__,
        runtimes=",".join(info.name for info in announcement.runtimes if info.unavailable is None) or "none",
        simulated=settings.simulated or None,
    )
    with runner.kept_off_measuring_core(), ServerClient(credentials.server_url, credentials.token) as client:
        build_agent(
            settings,
            credentials,
            client,
            announcement,
            runner,
            stop,
            clock=clock,
            rng=random.Random(),
            # The count of switches is about a measuring thread, not about this process.
            read_conditions=lambda: dataclasses.replace(reader.read(), involuntary_switches=None),
            # A simulated device has neither heat nor battery.
            why_not_ready=(lambda: None) if settings.simulated else (lambda: why_not_ready(reader.read(), limits)),
        ).run()


def _backoff_policy(server_url: str) -> BackoffPolicy:
    return LOOPBACK_POLICY if is_loopback(server_url) else BackoffPolicy()


def _warn_of_plain_http(server_url: str) -> None:
    if urlsplit(server_url).scheme == "http" and not is_loopback(server_url):
        log_event(
            logger,
            logging.WARNING,
            "unencrypted_connection",
            server=server_url,
            remedy="use https: anyone on the way can read this device's token",
        )
