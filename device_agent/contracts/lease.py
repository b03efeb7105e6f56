"""Messages between an agent and the server. The same classes are the HTTP bodies.

Version history of the wire: 1 (0.1.0) first version.

Within a version fields are only added, with defaults. Servers are upgraded first: what they answer may have fields
that an agent passes over. A lease is read whole or not at all (`UnreadableLease`), and a server refuses a message with
fields that it does not know.

    POST /v1/agents:enrol           EnrolmentRequest  -> EnrolmentAnswer
    POST /v1/agents:heartbeat       HeartbeatRequest  -> HeartbeatAnswer
    POST /v1/leases                 LeaseRequest      -> LeaseAnswer (long poll; may be empty)
    POST /v1/leases/{id}:renew      RenewRequest      -> RenewAnswer        409: the lease is no longer yours
    POST /v1/leases/{id}:release    RenewRequest      -> 204                409: likewise
    POST /v1/reports                ReportBatch       -> ReportAnswer
    GET  /v1/artifacts/sha256/{hex}                   -> bytes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from device_agent.contracts.codec import ContractError, decode, loads_answer
from device_agent.contracts.device import DeviceProfile, RuntimeInfo
from device_agent.contracts.kernel import KernelSpec
from device_agent.contracts.measurement import Conditions, Measurement, MeasurementFailure, MeasuringSetup

WIRE_VERSION = 1


class NetworkFormat(StrEnum):
    """The form in which a whole network reaches a device."""

    #: Kerf's packed network, for the native runtime.
    PACKED = "packed"
    TFLITE = "tflite"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTask:
    """Time one kernel; weights and input come from its seed."""

    kernel: KernelSpec
    setup: MeasuringSetup


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTask:
    """Time a whole network, and return its outputs for `num_outputs` inputs generated from `input_seed`.

    Input i is `numpy.random.default_rng(input_seed + i).standard_normal(input_shape)` as float32, in
    (channels, h, w).
    """

    artifact_sha256: str
    artifact_bytes: int
    format: NetworkFormat
    input_shape: tuple[int, int, int]
    setup: MeasuringSetup
    num_outputs: int = 1
    input_seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentRequest:
    """An agent introduces itself. Repeating it with the same `agent_key` returns the same device."""

    code: str
    #: Made by the agent on first start and kept in its state directory.
    agent_key: str
    device_name: str
    profile: DeviceProfile
    runtimes: tuple[RuntimeInfo, ...]
    agent_version: str
    wire_version: int = WIRE_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentAnswer:
    """`token` is shown once; the agent keeps it in a file that only its user can read."""

    device_id: str
    token: str
    heartbeat_interval_s: float
    lease_wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatRequest:
    """Sent at every interval, also while idle. Profile and runtimes go along so that an upgrade is noticed."""

    conditions: Conditions
    runtimes: tuple[RuntimeInfo, ...]
    profile: DeviceProfile
    agent_version: str
    held_lease_ids: tuple[str, ...] = ()
    spooled_reports: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAnswer:
    """`drain` asks the agent to finish what it holds and take nothing new (a disabled device)."""

    interval_s: float
    drain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """Ask for up to `max_leases` tasks, waiting up to `wait_s` for the first. Asking again returns what is held."""

    max_leases: int = 1
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_leases <= 64:
            raise ContractError(f"max_leases {self.max_leases!r} is not in 1..64")
        if not 0 <= self.wait_s <= 60:
            raise ContractError(f"wait_s {self.wait_s!r} is not in 0..60")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A task, lent for `duration_s` from the answer on. `attempt` fences off the reports of older lendings."""

    lease_id: str
    task_id: str
    attempt: int
    duration_s: float
    #: The child process is killed after this time.
    deadline_s: float
    task: KernelTask | NetworkTask


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAnswer:
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableLease:
    """A lease whose task this agent does not know, as a newer server may lend it. `problem` names the value."""

    lease_id: str
    task_id: str
    attempt: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedLeases:
    """A `LeaseAnswer` as far as this agent can read it."""

    leases: tuple[Lease, ...]
    unreadable: tuple[UnreadableLease, ...] = ()


def read_leases(text: str | bytes) -> ReceivedLeases:
    """Read a `LeaseAnswer`, each lease by itself: one that cannot be read must not keep the others from their work.

    Raises `ContractError` where the text is no such answer, or does not even say whose lease it is.
    """
    leases, unreadable = [], []
    for item in loads_answer(_LeaseItems, text).leases:
        try:
            leases.append(decode(Lease, item))
        except ContractError as error:
            unreadable.append(_unreadable(item, error))
    return ReceivedLeases(leases=tuple(leases), unreadable=tuple(unreadable))


@dataclass(frozen=True, slots=True, kw_only=True)
class _LeaseItems:
    leases: tuple[Any, ...]


def _unreadable(item: object, error: ContractError) -> UnreadableLease:
    if not isinstance(item, Mapping):
        raise error
    names = {f.name for f in fields(UnreadableLease)}
    known = {name: value for name, value in item.items() if name in names}
    return decode(UnreadableLease, {**known, "problem": str(error)}, "Lease")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewRequest:
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewAnswer:
    """`cancel` says that nobody wants the result any more."""

    duration_s: float
    cancel: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """The result of one lease. `result_key` (UUIDv7, made when the run ends) makes repeating it harmless."""

    result_key: str
    lease_id: str
    task_id: str
    attempt: int
    result: Measurement | MeasurementFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportBatch:
    reports: tuple[TaskReport, ...]


class ReportStatus(StrEnum):
    """What became of a report. All of them let the agent forget it."""

    ACCEPTED = "accepted"
    #: This result_key is already stored.
    DUPLICATE = "duplicate"
    #: The lease had gone to another attempt: kept beside the data, but it completes nothing.
    LATE = "late"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportReceipt:
    result_key: str
    status: ReportStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportAnswer:
    receipts: tuple[ReportReceipt, ...]
