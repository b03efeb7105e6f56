"""How something is measured, what came out of it, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from device_agent.contracts.codec import ContractError, content_id

#: The runtime that stands for a whole device in tests: it takes every task, and its rows say SIMULATED.
SIMULATED_RUNTIME = "simulated"


class Clock(StrEnum):
    """Which clock the headline figure is read from. Both are sampled; thread-CPU time is valid for one thread only."""

    THREAD_CPU = "thread_cpu"
    WALL = "wall"


class ThermalMode(StrEnum):
    """In which thermal state a device is measured. Numbers of different modes are different series."""

    #: As it comes: below the temperature at which no measurement starts, and otherwise neither cooled nor heated.
    ANY = "any"
    #: Each process starts at or below the device's gate temperature, and takes samples for at most `COLD_MAX_S`.
    COLD = "cold"
    #: After running under load until temperature and latency are steady.
    SUSTAINED = "sustained"


class Source(StrEnum):
    """Where a number comes from. Numbers of different sources are never mixed."""

    MEASURED = "measured"
    EMULATED = "emulated"
    SIMULATED = "simulated"
    IMPORTED = "imported"


class Verdict(StrEnum):
    """TRUSTED: use it. NOISY: sound, but wider than asked. REJECTED: do not use it; the reasons say why."""

    TRUSTED = "trusted"
    NOISY = "noisy"
    REJECTED = "rejected"


class VerdictReason(StrEnum):
    """Why a measurement is not TRUSTED. Values are added, never removed."""

    CI_TOO_WIDE = "ci_too_wide"
    TOO_FEW_SAMPLES = "too_few_samples"
    THROTTLED = "throttled"
    FREQUENCY_MOVED = "frequency_moved"
    TOO_HOT = "too_hot"
    CONTENTION = "contention"
    REFERENCE_DRIFTED = "reference_drifted"
    WRONG_DELEGATE = "wrong_delegate"
    SPARSE_PATH_NOT_TAKEN = "sparse_path_not_taken"
    WRONG_OUTPUT = "wrong_output"
    CPU_QUOTA = "cpu_quota"
    NOT_PINNED = "not_pinned"
    RUN_MODE_CHANGED = "run_mode_changed"
    NOT_COLD = "not_cold"
    NOT_STEADY = "not_steady"
    #: An imported figure that came without samples or a verdict: nothing about it could be checked here.
    NOT_VERIFIED = "not_verified"


class FailureReason(StrEnum):
    """Why there is no measurement, and by that whose fault it was."""

    #: The kernel or network: this runtime cannot run it. Asking again will not help.
    UNSUPPORTED = "unsupported"
    #: The task itself is malformed.
    INVALID_TASK = "invalid_task"
    #: The kernel or network: it crashed the child process, or the agent or the device with it.
    CRASHED = "crashed"
    #: The kernel or network ran past its deadline.
    TIMED_OUT = "timed_out"
    #: The device has not enough memory or disk for it.
    RESOURCE_EXHAUSTED = "resource_exhausted"
    #: The device: too hot, battery too low.
    DEVICE_NOT_READY = "device_not_ready"
    #: The agent is going away and gave the task back.
    AGENT_SHUTDOWN = "agent_shutdown"
    #: The artifact did not arrive or did not match its hash.
    ARTIFACT_UNAVAILABLE = "artifact_unavailable"
    #: The server gave up on the lease: it was not renewed.
    LEASE_EXPIRED = "lease_expired"
    #: An error in the agent itself.
    AGENT_ERROR = "agent_error"
    #: The agent: older than the task, which it cannot read. Asking again will help once it is upgraded.
    AGENT_OUTDATED = "agent_outdated"
    #: The kernel or network: it was not tried, as it took this device or several others down before.
    QUARANTINED = "quarantined"

    @property
    def is_transient(self) -> bool:
        """Whether another attempt, perhaps elsewhere, may succeed."""
        return not self.is_lasting and self not in (FailureReason.AGENT_OUTDATED, FailureReason.QUARANTINED)

    @property
    def is_lasting(self) -> bool:
        """Whether the same runtime will always fail in the same way."""
        return self in (FailureReason.UNSUPPORTED, FailureReason.INVALID_TASK)

    @property
    def fault(self) -> str:
        """Whose fault it was: "task", "device", "agent" or "server"."""
        if self in (
            FailureReason.UNSUPPORTED,
            FailureReason.INVALID_TASK,
            FailureReason.CRASHED,
            FailureReason.TIMED_OUT,
            FailureReason.QUARANTINED,
        ):
            return "task"
        if self in (FailureReason.RESOURCE_EXHAUSTED, FailureReason.DEVICE_NOT_READY):
            return "device"
        if self in (FailureReason.ARTIFACT_UNAVAILABLE, FailureReason.LEASE_EXPIRED):
            return "server"
        return "agent"


#: A cold run is over before a phone warms up: the first half minute is what an app that infers now and then sees.
COLD_MAX_S = 30.0
DEFAULT_LOAD_S = 300.0

#: The interval of the median is undefined for fewer independent values than this (at 95 %).
MIN_PROCESSES = 6
MAX_PROCESSES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringSetup:
    """How to measure: part of every measurement's key.

    A sample is the mean time of one run over an inner loop that lasts at least `min_sample_s`. A block is
    `samples_per_block` samples of the candidate between samples of the reference kernel. Blocks are added until the
    95 % confidence interval of the median over blocks is within `ci_half_width` of the median, at least
    `min_blocks` and within `budget_s`.

    With several `processes` the blocks are spread over that many fresh ones, at least, and twice as many at most; the
    budget is for all of them together, and the interval counts processes. `load_s` is the longest load before the
    samples of the mode SUSTAINED.
    """

    runtime: str
    threads: int = 1
    clock: Clock = Clock.THREAD_CPU
    min_warmup_s: float = 0.02
    min_sample_s: float = 0.0005
    samples_per_block: int = 10
    min_blocks: int = 6
    max_blocks: int = 40
    ci_half_width: float = 0.02
    budget_s: float = 2.0
    processes: int = 1
    thermal_mode: ThermalMode = ThermalMode.ANY
    load_s: float = DEFAULT_LOAD_S

    def __post_init__(self) -> None:
        if not self.runtime:
            raise ContractError("runtime is empty: name one that the device has, such as 'native' or 'tflite'")
        if self.threads < 1:
            raise ContractError(f"threads {self.threads!r} must be at least 1")
        if self.threads > 1 and self.clock is Clock.THREAD_CPU:
            raise ContractError(f"thread-CPU time does not cover {self.threads} threads: set clock to 'wall'")
        if self.min_blocks < 2 or self.max_blocks < self.min_blocks:
            raise ContractError(f"blocks {self.min_blocks}..{self.max_blocks}: need 2 <= min_blocks <= max_blocks")
        if self.samples_per_block < 1:
            raise ContractError(f"samples_per_block {self.samples_per_block!r} must be at least 1")
        if self.processes != 1 and not MIN_PROCESSES <= self.processes <= MAX_PROCESSES:
            raise ContractError(
                f"processes {self.processes!r} must be 1, or {MIN_PROCESSES} to {MAX_PROCESSES}: fewer give no interval"
            )
        if self.thermal_mode is ThermalMode.COLD and self.budget_s > COLD_MAX_S * self.processes:
            raise ContractError(
                f"budget_s {self.budget_s!r} is too long for the thermal mode 'cold': at most {COLD_MAX_S:g} s in each "
                "process"
            )
        if self.thermal_mode is not ThermalMode.SUSTAINED and self.load_s != DEFAULT_LOAD_S:
            raise ContractError(f"load_s {self.load_s!r} is for the thermal mode 'sustained' only: leave it out")
        for name in ("min_sample_s", "ci_half_width", "budget_s", "load_s"):
            if not getattr(self, name) > 0:
                raise ContractError(f"{name} {getattr(self, name)!r} must be positive")
        if self.min_warmup_s < 0:
            raise ContractError(f"min_warmup_s {self.min_warmup_s!r} must not be negative")


def setup_id(setup: MeasuringSetup) -> str:
    """The identity of a measuring setup."""
    return content_id("m", setup)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The state of a device at one moment. None where it cannot be read."""

    frequency_hz: int | None = None
    governor: str | None = None
    temperature_celsius: float | None = None
    load_1min: float | None = None
    battery_percent: float | None = None
    #: Involuntary context switches of the measuring process so far.
    involuntary_switches: int | None = None
    #: The highest frequency that the core may run at now.
    frequency_limit_hz: int | None = None
    #: Whether the device says that it lowers its clock now, and how often it did since it started.
    throttled: bool | None = None
    throttle_count: int | None = None
    #: Since the device started: time, time in which the measuring core was busy with anything, and CPU time of the
    #: measuring process. Only where the process is pinned to one core.
    uptime_s: float | None = None
    core_busy_s: float | None = None
    process_cpu_s: float | None = None
    #: CPUs that the control group grants, and the time for which it held the process back so far.
    cpu_quota: float | None = None
    quota_throttled_s: float | None = None
    #: What a phone's speed depends on: its screen, its charger, and the group that Android put the process in.
    screen_on: bool | None = None
    charging: bool | None = None
    cpuset: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive samples, with the reference kernel interleaved. All times are ns for one run.

    A sample of a kernel that is timed as the difference of two networks may be negative, by noise.
    """

    thread_cpu_ns: tuple[float, ...]
    wall_ns: tuple[float, ...]
    reference_ns: tuple[float, ...] = ()
    #: The frequency of the measuring core just before and after the block.
    frequency_before_hz: int | None = None
    frequency_after_hz: int | None = None
    #: Which of the fresh processes of a measurement took it.
    process: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What produced a measurement: with device, kernel and setup, its key."""

    source: Source
    runtime: str
    runtime_version: str
    runtime_sha256: str
    isa: str
    threads: int
    agent_version: str
    affinity: tuple[int, ...] = ()
    governor: str | None = None
    mode: str = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Derived from the raw samples of the clock that the setup names. Undefined is None, never 0.

    `ci95_low_ns` and `ci95_high_ns` bound the median. Their unit is the block, or the process where there are several.
    `unit_cv` is the coefficient of variation between units. `trimmed_mean_ns` is the mean of the middle 80 %.
    `reference_ratio` is the median over units of candidate / reference: it cancels the drift of the machine. Ratios to
    references of different `reference_name` do not compare.
    """

    median_ns: float
    mean_ns: float
    min_ns: float
    p5_ns: float
    p10_ns: float
    p90_ns: float
    p95_ns: float
    mad_ns: float
    num_samples: int
    num_blocks: int
    ci95_low_ns: float | None = None
    ci95_high_ns: float | None = None
    reference_ns: float | None = None
    reference_ratio: float | None = None
    reference_name: str | None = None
    stdev_ns: float | None = None
    trimmed_mean_ns: float | None = None
    unit_cv: float | None = None
    num_processes: int = 1


def drift_corrected_ns(statistics: Statistics, usual_reference_ns: float | None) -> float:
    """The median as it would be at the device's usual speed, in ns.

    A shared or unpinned device runs faster and slower for seconds at a time: medians of the same kernel from different
    processes then differ by more than their intervals say, and the interleaved reference kernel moves along.
    `usual_reference_ns` is the median of `reference_ns` over the device's measurements with the same `reference_name`.
    Without a reference, the median itself.
    """
    if usual_reference_ns is None or statistics.reference_ratio is None:
        return statistics.median_ns
    return statistics.reference_ratio * usual_reference_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A finished measurement. Raw samples are kept; a suspicious one is marked, never dropped."""

    provenance: Provenance
    blocks: tuple[Block, ...]
    iterations_per_sample: int
    warmup_runs: int
    statistics: Statistics
    verdict: Verdict
    reasons: tuple[VerdictReason, ...]
    before: Conditions
    after: Conditions
    #: SHA-256 over the output bytes (float32, little endian) for the task's seeded input.
    output_sha256: str
    #: The outputs themselves, for a network task that asked for them: one tuple an input.
    outputs: tuple[tuple[float, ...], ...] = ()
    #: Median time of each operator in plan order, for a network task.
    op_ns: tuple[float, ...] = ()
    #: Memory that the runtime holds for this kernel or network; None where it cannot be told.
    memory_bytes: int | None = None
    #: What a process grew by, at most, while it loaded and ran this once: of a process that timed nothing.
    peak_memory_bytes: int | None = None
    #: What the reference kernel usually takes on this device, as far as its agent knew then.
    usual_reference_ns: float | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementFailure:
    """A measurement that did not come about, as data."""

    reason: FailureReason
    detail: str
