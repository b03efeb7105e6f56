"""What a simulated fleet is: a small JSON file that decides everything, together with its seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from device_agent.contracts import ContractError, KernelSpec, content_id, loads

#: Devices run as threads of one process.
MAX_DEVICES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Relative standard deviations of a simulated clock, and how often the machine runs at another speed.

    `sample` is between samples, `process` between measurements. In the part `slow_share` of all measurements
    everything, the reference kernel too, takes `slow_factor` times as long, as on a shared machine.
    """

    sample: float = 0.0
    process: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 1.5

    def __post_init__(self) -> None:
        _check_parts(self, "slow_share")
        if not (0 <= self.sample < 1 and 0 <= self.process < 1 and self.slow_factor > 0):
            raise ContractError(f"{self!r}: sample and process must be in [0, 1), slow_factor positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """A body with one time constant: under load it approaches `ambient_celsius` + `load_celsius`, at rest the former.

    At `throttle_celsius` and above its clock runs at `throttled_speed`.
    """

    ambient_celsius: float = 30.0
    load_celsius: float = 0.0
    time_constant_s: float = 60.0
    throttle_celsius: float = 80.0
    throttled_speed: float = 0.6

    def __post_init__(self) -> None:
        if not (self.time_constant_s > 0 and 0 < self.throttled_speed <= 1 and self.load_celsius >= 0):
            raise ContractError(
                f"{self!r}: time_constant_s must be positive, throttled_speed in (0, 1], load_celsius not negative"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """In which part of its tasks a device crashes, runs into its deadline, is contended, or computes wrongly."""

    crash: float = 0.0
    time_out: float = 0.0
    contention: float = 0.0
    wrong_output: float = 0.0

    def __post_init__(self) -> None:
        _check_parts(self, "crash", "time_out", "contention", "wrong_output")
        if self.crash + self.time_out + self.contention + self.wrong_output > 1:
            raise ContractError(f"{self!r}: the parts add up to more than 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A connection that is up and down for exponentially distributed times; without `offline_s` it is always up."""

    online_s: float = 60.0
    offline_s: float = 0.0

    def __post_init__(self) -> None:
        if not (self.online_s > 0 and self.offline_s >= 0):
            raise ContractError(f"{self!r}: online_s must be positive, offline_s not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """What a real device was measured to take for a kernel."""

    kernel: KernelSpec
    median_ns: float

    def __post_init__(self) -> None:
        if not self.median_ns > 0:
            raise ContractError(f"median_ns {self.median_ns!r} must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The file that a group's `curve` names: measured latencies."""

    points: tuple[CurvePoint, ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ContractError("a curve needs at least one point")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroup:
    """`count` devices of a kind, called `name`-1, `name`-2 and so on.

    `core` is one of the simulated cores. `curve` is a file of measured latencies, beside the scenario: kernels in it
    take what was measured, others what the core's formula says, times how far the curve is from that for their
    operator.
    """

    name: str
    count: int = 1
    core: str = "phone"
    curve: str | None = None
    noise: Noise = field(default_factory=Noise)
    heat: Heat = field(default_factory=Heat)
    faults: Faults = field(default_factory=Faults)
    link: Link = field(default_factory=Link)

    def __post_init__(self) -> None:
        if not self.name or not 1 <= self.count <= MAX_DEVICES:
            raise ContractError(
                f"the group {self.name!r} of {self.count!r}: give a name, and a count of 1..{MAX_DEVICES}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fleet. A device of the same scenario that gets the same tasks in the same order measures the same."""

    seed: int = 0
    groups: tuple[DeviceGroup, ...]

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if not names or len(set(names)) < len(names):
            raise ContractError(f"the groups {names!r} need names of their own, and at least one group")
        if sum(group.count for group in self.groups) > MAX_DEVICES:
            raise ContractError(f"a scenario has at most {MAX_DEVICES} devices")


def read_scenario(path: Path) -> tuple[Scenario, dict[str, Curve]]:
    """A scenario, and the curves that its groups name. Raises `ContractError` for what does not fit, `OSError`."""
    scenario = loads(Scenario, path.read_bytes())
    names = {group.curve for group in scenario.groups if group.curve is not None}
    return scenario, {name: loads(Curve, (path.parent / name).read_bytes()) for name in sorted(names)}


def group_version(group: DeviceGroup, curve: Curve | None, seed: int) -> str:
    """What in a group decides its figures, in short: a part of every measurement's key."""
    decides = {"core": group.core, "noise": group.noise, "heat": group.heat, "faults": group.faults, "seed": seed}
    return content_id("f", {**decides, "curve": curve})[:10]


def _check_parts(value: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(value, name) <= 1:
            raise ContractError(f"{name} {getattr(value, name)!r} is not in [0, 1]")
