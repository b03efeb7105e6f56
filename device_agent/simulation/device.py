"""One simulated device: what it takes for a kernel, made into samples with noise, heat and faults.

The verdict is not simulated: it follows from the samples and conditions, by the rules for real ones.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from device_agent.contracts import (
    Block,
    Conditions,
    DeviceProfile,
    FailureReason,
    KernelTask,
    Measurement,
    MeasurementFailure,
    NetworkTask,
    RuntimeInfo,
    ThermalMode,
    VerdictReason,
    content_id,
    kernel_id,
)
from device_agent.contracts.statistics import summarize
from device_agent.contracts.verdict import judge
from device_agent.held import HeldLease
from device_agent.measuring.preflight import COLD_BOARD_CELSIUS
from device_agent.simulation.scenario import Curve, DeviceGroup, Heat, group_version

#: What the simulated reference kernel takes, and what the clock shows at full speed.
REFERENCE_NS = 10_000.0
FREQUENCY_HZ = 2_000_000_000
REFERENCE_NAME = "simulated reference"
#: A device rests for this long between two tasks, while a process is started.
_REST_S = 0.5
#: Others have as much of a contended core as the candidate.
_CONTENDED_WALL = 2.0


class Body:
    """The temperature of a device over its own time, which passes as it works and rests."""

    def __init__(self, heat: Heat) -> None:
        self._heat = heat
        self.celsius = heat.ambient_celsius

    @property
    def throttled(self) -> bool:
        """Whether the clock is lowered now."""
        return self.celsius >= self._heat.throttle_celsius

    def pass_time(self, seconds: float, *, loaded: bool) -> None:
        """Approach the temperature of load or rest: dT/dt = (T_end - T) / time constant."""
        end = self._heat.ambient_celsius + (self._heat.load_celsius if loaded else 0.0)
        self.celsius = end + (self.celsius - end) * math.exp(-seconds / self._heat.time_constant_s)

    def cool_to(self, celsius: float) -> None:
        """Rest until the device has this temperature, or the one that it has at rest."""
        self.celsius = max(min(self.celsius, celsius), self._heat.ambient_celsius)


class SimulatedDevice:
    """Runs the tasks of one device of a group; see `TaskRunner`."""

    def __init__(self, group: DeviceGroup, number: int, seed: int, curve: Curve | None = None) -> None:
        # Imported late: the simulated runtime brings numpy, which the ordinary agent does without.
        from device_agent.runtimes.simulated import SimulatedRuntime

        self.name = f"{group.name}-{number}"
        self._group = group
        self._seed = seed
        self._runtime = SimulatedRuntime(group.core)
        self._version = group_version(group, curve, seed)
        self._measured = {} if curve is None else {kernel_id(p.kernel): p.median_ns for p in curve.points}
        self._factors = _factors(curve, group.core)
        self._body = Body(group.heat)

    @property
    def runtime(self) -> RuntimeInfo:
        """What the device announces."""
        info = self._runtime.info()
        return dataclasses.replace(info, version=f"{info.version}+{self._version}")

    def profile(self, host: DeviceProfile) -> DeviceProfile:
        """The device's description: its own name for the processor, else that of the machine it is simulated on."""
        return dataclasses.replace(host, cpu_model=f"simulated {self._group.core} ({self._group.name})", simulated=True)

    def conditions(self) -> Conditions:
        """The state of the device now."""
        throttled = self._body.throttled
        speed = self._group.heat.throttled_speed if throttled else 1.0
        return Conditions(
            frequency_hz=int(FREQUENCY_HZ * speed),
            governor="simulated",
            temperature_celsius=round(self._body.celsius, 2),
            throttled=throttled,
        )

    def run(self, held: HeldLease, artifact: Path | None) -> Measurement | MeasurementFailure:
        """Measure a lease's task."""
        return self.run_task(held.lease.task, artifact, attempt=held.lease.attempt)

    def run_task(
        self, task: KernelTask | NetworkTask, artifact: Path | None = None, *, attempt: int = 1
    ) -> Measurement | MeasurementFailure:
        """Measure `task`: chance depends on the scenario's seed, the device, the task and the attempt alone."""
        from device_agent.measuring.task import Surroundings, measure_task

        chance = random.Random(content_id("r", [self._seed, self.name, task, attempt]))
        fate = chance.random()
        faults = self._group.faults
        if fate < faults.crash:
            return MeasurementFailure(reason=FailureReason.CRASHED, detail="simulated: died by SIGSEGV")
        if fate < faults.crash + faults.time_out:
            return MeasurementFailure(reason=FailureReason.TIMED_OUT, detail="simulated: killed after its deadline")
        exact = measure_task(task, artifact, Surroundings(make_runtime=lambda _name: self._runtime))
        if isinstance(exact, MeasurementFailure):
            return exact
        rest = fate - faults.crash - faults.time_out
        is_contended = rest < faults.contention
        is_wrong = faults.contention <= rest < faults.contention + faults.wrong_output
        return self._taken(task, exact, chance, is_contended=is_contended, is_wrong=is_wrong)

    def _taken(
        self,
        task: KernelTask | NetworkTask,
        exact: Measurement,
        chance: random.Random,
        *,
        is_contended: bool,
        is_wrong: bool,
    ) -> Measurement:
        """The measurement as this device would take it, of one without noise."""
        setup, noise, body = task.setup, self._group.noise, self._body
        body.pass_time(_REST_S, loaded=False)
        if setup.thermal_mode is ThermalMode.COLD:
            body.cool_to(COLD_BOARD_CELSIUS)
        elif setup.thermal_mode is ThermalMode.SUSTAINED:
            body.pass_time(setup.load_s, loaded=True)
        elif body.throttled:
            # The agent waits while the device says that it lowers its clock.
            body.cool_to(self._group.heat.throttle_celsius - 5.0)
        findings = set(exact.reasons) | ({VerdictReason.WRONG_OUTPUT} if is_wrong else set())
        if setup.thermal_mode is ThermalMode.COLD and body.celsius > COLD_BOARD_CELSIUS:
            findings.add(VerdictReason.NOT_COLD)
        before = self.conditions()
        latency_ns = self._latency_ns(task, exact.statistics.median_ns) * (1 + noise.process * chance.gauss(0, 1))
        slowness = noise.slow_factor if chance.random() < noise.slow_share else 1.0
        blocks = []
        for place in exact.blocks:
            start = self.conditions()
            slow = slowness / (self._group.heat.throttled_speed if body.throttled else 1.0)
            count = len(place.wall_ns)
            cpu = _times(latency_ns * slow, noise.sample, count, chance)
            # A share of the core that changes from sample to sample.
            wall = [t * (chance.uniform(1, 2 * _CONTENDED_WALL - 1) if is_contended else 1.0) for t in cpu]
            body.pass_time(sum(max(w, setup.min_sample_s * 1e9) for w in wall) / 1e9, loaded=True)
            blocks.append(
                Block(
                    thread_cpu_ns=tuple(cpu),
                    wall_ns=tuple(wall),
                    reference_ns=tuple(_times(REFERENCE_NS * slow, noise.sample, 3, chance)),
                    frequency_before_hz=start.frequency_hz,
                    frequency_after_hz=self.conditions().frequency_hz,
                    process=place.process,
                )
            )
        after = self.conditions()
        name = REFERENCE_NAME
        if setup.thermal_mode is not ThermalMode.ANY:
            name = f"{name}, {setup.thermal_mode.value}"
        statistics = summarize(blocks, setup.clock, name)
        verdict, reasons = judge(blocks, statistics, setup, before, after, findings)
        provenance = dataclasses.replace(
            exact.provenance, runtime_version=self.runtime.version, governor=before.governor
        )
        factor = latency_ns / exact.statistics.median_ns
        return dataclasses.replace(
            exact,
            provenance=provenance,
            op_ns=tuple(factor * ns for ns in exact.op_ns),
            blocks=tuple(blocks),
            statistics=statistics,
            verdict=verdict,
            reasons=reasons,
            before=before,
            after=after,
        )

    def _latency_ns(self, task: KernelTask | NetworkTask, formula_ns: float) -> float:
        if not isinstance(task, KernelTask):
            return formula_ns * self._factors.get("", 1.0)
        known = self._measured.get(kernel_id(task.kernel))
        if known is not None:
            return known
        return formula_ns * self._factors.get(task.kernel.op.value, self._factors.get("", 1.0))


def _factors(curve: Curve | None, core: str) -> dict[str, float]:
    """How many times the formula's latency the curve's kernels take: medians by operator, and of all under ""."""
    from device_agent.runtimes.simulated import CORES, kernel_latency_ns

    ratios: dict[str, list[float]] = {}
    for point in () if curve is None else curve.points:
        ratio = point.median_ns / kernel_latency_ns(point.kernel, core=CORES[core])
        for family in (point.kernel.op.value, ""):
            ratios.setdefault(family, []).append(ratio)
    return {family: median(values) for family, values in ratios.items()}


def _times(centre_ns: float, deviation: float, count: int, chance: random.Random) -> Sequence[float]:
    # Times are skewed: what disturbs a sample makes it longer. A lognormal is never negative.
    return [centre_ns * math.exp(deviation * chance.gauss(0, 1)) for _ in range(count)]
