"""Renewals and heartbeats by an injected clock, over real HTTP."""

from __future__ import annotations

import random

import pytest

from device_agent.client import ServerClient
from device_agent.contracts import Conditions, LeaseRequest
from device_agent.heartbeat import Announcement, Heartbeat
from device_agent.held import HeldLeases, LeaseEnd
from tests.unit.device_agent.agent.agent_samples import PROFILE, RUNTIMES, kernel_task, lease
from tests.unit.device_agent.agent.fake_kerf_server import FakeServer
from tests.unit.device_agent.agent.running_agent import ManualClock


@pytest.fixture
def held(clock: ManualClock) -> HeldLeases:
    return HeldLeases(clock)


@pytest.fixture
def heartbeat(client: ServerClient, held: HeldLeases, clock: ManualClock) -> Heartbeat:
    return Heartbeat(
        client=client,
        held=held,
        announcement=Announcement(profile=PROFILE, runtimes=RUNTIMES),
        read_conditions=lambda: Conditions(load_1min=0.5),
        spooled_reports=lambda: 3,
        interval_s=20.0,
        clock=clock,
        rng=random.Random(5),
    )


def test_the_first_heartbeat_comes_at_once_and_says_everything(server: FakeServer, heartbeat: Heartbeat) -> None:
    heartbeat.step()
    (beat,) = server.heartbeats
    assert beat.profile == PROFILE
    assert beat.runtimes == RUNTIMES
    assert beat.conditions.load_1min == 0.5
    assert beat.spooled_reports == 3
    assert beat.held_lease_ids == ()


def test_the_server_sets_the_interval_and_jitter_spreads_it(
    server: FakeServer, heartbeat: Heartbeat, clock: ManualClock
) -> None:
    server.heartbeat_interval_s = 50.0
    pauses = []
    for _ in range(20):
        pauses.append(heartbeat.step())
        clock.now += pauses[-1]
    assert len(server.heartbeats) == 20
    assert all(40.0 <= pause <= 50.0 for pause in pauses)
    assert len(set(pauses)) == 20


def test_nothing_is_sent_before_it_is_due(server: FakeServer, heartbeat: Heartbeat, clock: ManualClock) -> None:
    pause = heartbeat.step()
    clock.now += pause / 2
    heartbeat.step()
    assert len(server.heartbeats) == 1


def test_a_lease_is_renewed_at_a_quarter_of_its_life(
    server: FakeServer, client: ServerClient, heartbeat: Heartbeat, held: HeldLeases, clock: ManualClock
) -> None:
    server.heartbeat_interval_s = 1000.0
    server.add_task(kernel_task())
    (granted,) = client.lease(LeaseRequest()).leases
    held.add(granted)
    assert heartbeat.step() == 30.0
    assert not [path for path in server.requests if path.endswith(":renew")]
    clock.now += 30.0
    assert heartbeat.step() == 30.0
    assert len([path for path in server.requests if path.endswith(":renew")]) == 1


def test_held_leases_are_named_in_the_heartbeat(server: FakeServer, heartbeat: Heartbeat, held: HeldLeases) -> None:
    held.add(lease("l7"))
    heartbeat.step()
    assert server.heartbeats[-1].held_lease_ids == ("l7",)


def test_a_lease_that_went_elsewhere_is_ended(heartbeat: Heartbeat, held: HeldLeases, clock: ManualClock) -> None:
    entry = held.add(lease())
    clock.now += 31.0
    heartbeat.step()
    assert entry.end is LeaseEnd.LOST
    assert entry.interrupt.is_set()


def test_a_cancelled_task_is_ended(
    server: FakeServer, client: ServerClient, heartbeat: Heartbeat, held: HeldLeases, clock: ManualClock
) -> None:
    server.cancel_tasks.add(server.add_task(kernel_task()))
    (granted,) = client.lease(LeaseRequest()).leases
    entry = held.add(granted)
    clock.now += 31.0
    heartbeat.step()
    assert entry.end is LeaseEnd.CANCELLED
    assert entry.interrupt.is_set()


def test_a_failed_renewal_is_repeated_well_within_the_lease(
    server: FakeServer, client: ServerClient, heartbeat: Heartbeat, held: HeldLeases, clock: ManualClock
) -> None:
    server.add_task(kernel_task())
    (granted,) = client.lease(LeaseRequest()).leases
    entry = held.add(granted)
    for _ in range(6):
        server.fault(":renew", status=503)
    for _ in range(200):
        clock.now += max(0.01, heartbeat.step())
        if not server.faults:
            break
    heartbeat.step()
    assert not server.faults
    assert clock.now < 1000.0 + 120.0
    assert entry.end is None


def test_without_a_server_a_lease_expires_by_our_own_count_but_its_child_goes_on(
    server: FakeServer, heartbeat: Heartbeat, held: HeldLeases, clock: ManualClock
) -> None:
    entry = held.add(lease())
    clock.now += 120.0
    heartbeat.step()
    assert entry.end is LeaseEnd.EXPIRED
    assert not entry.interrupt.is_set()


def test_a_lease_that_the_server_repeats_lives_again(held: HeldLeases, clock: ManualClock) -> None:
    held.add(lease())
    clock.now += 120.0
    held.due()
    entry = held.add(lease())
    assert entry.end is None
    assert held.next_renewal_in_s() == 30.0


def test_repeating_a_live_lease_keeps_its_interrupt(held: HeldLeases) -> None:
    assert held.add(lease()) is held.add(lease())


def test_abort_ends_what_is_held_and_what_comes_later(held: HeldLeases) -> None:
    first = held.add(lease("l1"))
    held.abort()
    second = held.add(lease("l2"))
    assert first.interrupt.is_set()
    assert second.interrupt.is_set()
    assert first.end is second.end is LeaseEnd.ABORTED


def test_the_server_pauses_and_resumes_a_device(server: FakeServer, heartbeat: Heartbeat, clock: ManualClock) -> None:
    server.drain = True
    clock.now += heartbeat.step()
    assert heartbeat.paused.is_set()
    server.drain = False
    heartbeat.step()
    assert not heartbeat.paused.is_set()


@pytest.mark.parametrize("status", [503, 422, 401])
def test_a_failed_heartbeat_is_survived(
    server: FakeServer, heartbeat: Heartbeat, clock: ManualClock, status: int
) -> None:
    server.fault(":heartbeat", status=status)
    clock.now += heartbeat.step()
    heartbeat.step()
    assert len(server.heartbeats) == 1


def test_a_silly_interval_is_bounded(server: FakeServer, heartbeat: Heartbeat) -> None:
    server.heartbeat_interval_s = 0.001
    assert heartbeat.step() >= 0.8
