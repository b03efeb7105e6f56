"""Simulated fleets: what a device measures under noise, heat and faults, links that go away, and scenario files."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import threading
from pathlib import Path

import pytest

from device_agent.contracts import (
    ContractError,
    FailureReason,
    KernelTask,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    Source,
    ThermalMode,
    Verdict,
    VerdictReason,
)
from device_agent.errors import TryAgainLater
from device_agent.runtimes import RuntimeUnavailable
from device_agent.runtimes.simulated import kernel_latency_ns
from device_agent.settings import AgentSettings
from device_agent.simulation.device import SimulatedDevice
from device_agent.simulation.fleet import Fleet, devices_of
from device_agent.simulation.link import FlakyClient, Outages
from device_agent.simulation.scenario import (
    Curve,
    CurvePoint,
    DeviceGroup,
    Faults,
    Heat,
    Link,
    Noise,
    Scenario,
    read_scenario,
)
from device_agent.stopping import StopRequest
from server.fleet.checking import judged, why_inconsistent
from tests.unit.device_agent.agent.agent_samples import kernel
from tests.unit.device_agent.agent.running_agent import ManualClock

SETUP = MeasuringSetup(runtime="simulated")


def task(seed: int = 0, **setup: object) -> KernelTask:
    return KernelTask(kernel=kernel(seed), setup=MeasuringSetup(**{"runtime": "simulated", **setup}))  # type: ignore[arg-type]


def device(seed: int = 0, curve: Curve | None = None, **group: object) -> SimulatedDevice:
    return SimulatedDevice(DeviceGroup(**{"name": "d", **group}), 1, seed, curve)  # type: ignore[arg-type]


def measured(on: SimulatedDevice, what: KernelTask) -> Measurement:
    result = on.run_task(what)
    assert isinstance(result, Measurement), result
    return result


def test_a_device_without_noise_takes_what_the_formula_says() -> None:
    result = measured(device(), task())
    assert result.statistics.median_ns == pytest.approx(kernel_latency_ns(kernel()))
    assert (result.verdict, result.provenance.source) == (Verdict.TRUSTED, Source.SIMULATED)


def test_the_seed_decides_everything() -> None:
    noisy = {"noise": Noise(sample=0.05, process=0.02)}
    assert measured(device(**noisy), task()) == measured(device(**noisy), task())
    assert measured(device(**noisy), task()) != measured(device(seed=1, **noisy), task())
    first, second = device(**noisy).run_task(task(), attempt=1), device(**noisy).run_task(task(), attempt=2)
    assert first != second


def test_what_noise_does_to_the_verdict_follows_from_the_samples() -> None:
    wild = measured(device(noise=Noise(sample=0.9)), task(ci_half_width=0.001))
    assert VerdictReason.CI_TOO_WIDE in wild.reasons
    assert why_inconsistent(wild, task(ci_half_width=0.001).setup) is None
    assert judged(wild, task(ci_half_width=0.001).setup) is wild


def test_a_slow_moment_is_in_the_reference_kernel_as_well() -> None:
    group = {"noise": Noise(slow_share=0.5, slow_factor=2.0)}
    on = device(**group)
    taken = [measured(on, task(i)).statistics for i in range(20)]
    medians = [s.median_ns for s in taken]
    assert max(medians) == pytest.approx(2 * min(medians))
    ratios = [s.reference_ratio for s in taken]
    assert max(ratios) == pytest.approx(min(ratios))  # type: ignore[type-var, arg-type]


def test_a_device_heats_up_under_load_and_throttles() -> None:
    heat = Heat(ambient_celsius=30, load_celsius=60, time_constant_s=0.04, throttle_celsius=55, throttled_speed=0.5)
    hot = measured(device(heat=heat), task())
    assert hot.after.temperature_celsius is not None
    assert hot.after.temperature_celsius > 55
    assert hot.verdict is Verdict.REJECTED
    assert {VerdictReason.THROTTLED, VerdictReason.FREQUENCY_MOVED} <= set(hot.reasons)
    sustained = measured(device(heat=heat), task(thermal_mode=ThermalMode.SUSTAINED))
    assert sustained.verdict is Verdict.TRUSTED
    assert sustained.statistics.median_ns == pytest.approx(2 * kernel_latency_ns(kernel()))
    warm = dataclasses.replace(heat, ambient_celsius=54.0, load_celsius=0.0)
    assert measured(device(heat=warm), task(thermal_mode=ThermalMode.COLD)).reasons == (VerdictReason.NOT_COLD,)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [(Faults(crash=1.0), FailureReason.CRASHED), (Faults(time_out=1.0), FailureReason.TIMED_OUT)],
)
def test_devices_fail(faults: Faults, reason: FailureReason) -> None:
    result = device(faults=faults).run_task(task())
    assert isinstance(result, MeasurementFailure)
    assert result.reason is reason


def test_devices_are_contended_and_compute_wrongly() -> None:
    contended = measured(device(faults=Faults(contention=1.0)), task(clock="wall"))
    assert VerdictReason.CONTENTION in contended.reasons
    assert measured(device(faults=Faults(wrong_output=1.0)), task()).reasons == (VerdictReason.WRONG_OUTPUT,)


def test_faults_come_as_often_as_asked() -> None:
    on = device(faults=Faults(crash=0.3))
    failures = [isinstance(on.run_task(task(i)), MeasurementFailure) for i in range(200)]
    assert statistics.fmean(failures) == pytest.approx(0.3, abs=0.1)


def test_a_measured_curve_replaces_the_formula() -> None:
    factor = 3.0
    points = tuple(CurvePoint(kernel=kernel(i), median_ns=factor * kernel_latency_ns(kernel(i))) for i in range(2))
    on = device(curve=Curve(points=points))
    for seed in (0, 7):  # one of the curve's kernels, and one that is not in it
        expected = factor * kernel_latency_ns(kernel(seed))
        assert measured(on, task(seed)).statistics.median_ns == pytest.approx(expected)
    assert on.runtime.version != device().runtime.version


def test_a_link_goes_and_comes() -> None:
    clock = ManualClock()
    outages = Outages(Link(online_s=30, offline_s=10), random.Random(3), clock)
    assert not outages.offline
    seen = []
    for _ in range(20_000):
        clock.now += 0.5
        seen.append(outages.offline)
    assert statistics.fmean(seen) == pytest.approx(0.25, abs=0.05)
    always = Outages(Link(), random.Random(3), clock)
    clock.now += 1e6
    assert not always.offline


def test_requests_fail_while_the_link_is_down() -> None:
    clock = ManualClock()
    outages = Outages(Link(online_s=1e-6, offline_s=1e9), random.Random(3), clock)
    clock.now += 1.0
    with FlakyClient("http://127.0.0.1:9", "token", outages, random.Random(1)) as client:
        with pytest.raises(TryAgainLater, match="connection is down"):
            client.release("l", 1)
        with pytest.raises(TryAgainLater, match="connection is down"), client.artifact("00"):
            pytest.fail("an artifact came through")


def test_the_example_is_a_scenario() -> None:
    scenario, curves = read_scenario(Path(__file__).parents[3] / "examples" / "fleet.json")
    devices = list(devices_of(scenario, curves))
    assert [d.name for d in devices] == ["phone-1", "phone-2", "phone-3", "board-1", "board-2"]
    assert len({d.runtime.version for d in devices}) == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"groups": []}, "at least one group"),
        ({"groups": [{"name": "a"}, {"name": "a"}]}, "names of their own"),
        ({"groups": [{"name": "a", "count": 0}]}, "a count of 1"),
        ({"groups": [{"name": "a", "faults": {"crash": 0.7, "contention": 0.7}}]}, "more than 1"),
        ({"groups": [{"name": "a", "noise": {"sample": -1}}]}, "sample and process"),
        ({"groups": [{"name": "a", "heat": {"time_constant_s": 0}}]}, "time_constant_s"),
        ({"groups": [{"name": "a", "link": {"online_s": 0}}]}, "online_s"),
        ({"groups": [{"name": "a", "speed": 1}]}, "unknown field 'speed'"),
    ],
)
def test_impossible_scenarios_are_refused(data: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ContractError, match=words):
        read_scenario(path)


def test_an_unknown_core_is_refused() -> None:
    scenario = Scenario(groups=(DeviceGroup(name="a", core="abacus"),))
    with pytest.raises(RuntimeUnavailable, match="abacus"):
        list(devices_of(scenario, {}))


@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_fleet_that_is_stopped_while_it_enrols_has_not_failed(
    is_stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrolling = threading.Semaphore(0)

    def enrol(settings: object, announcement: object, stop: StopRequest, **_: object) -> None:
        enrolling.release()
        if is_stopped:
            stop.drain.wait()
        raise TryAgainLater("the server cannot be reached")

    monkeypatch.setattr("device_agent.simulation.fleet.enrol", enrol)
    scenario = Scenario(groups=(DeviceGroup(name="board", count=2),))
    settings = AgentSettings(server_url="http://127.0.0.1:9", state_dir=tmp_path, code="kerf_e_x", device_name="fleet")
    fleet = Fleet(scenario, {}, settings)
    fleet.start()
    for _ in range(2):
        enrolling.acquire()
    fleet.stop()
    assert len(fleet.errors) == (0 if is_stopped else 2)
