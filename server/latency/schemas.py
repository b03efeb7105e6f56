"""The latency database as the API shows it."""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.contracts import (
    Conditions,
    ContractError,
    KernelSpec,
    MeasuringSetup,
    Provenance,
    ReportStatus,
    Source,
    Statistics,
    Verdict,
    VerdictReason,
    decode,
)
from server.models import KernelRow, LatencyRow, MeasurementRow
from server.wire import iso

MAX_QUERY_KERNELS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelView:
    id: str
    kernel: KernelSpec
    macs: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementView:
    """A measurement without its samples, which GET /v1/measurements/{result_key}/raw has."""

    result_key: str
    task_id: str
    device_id: str
    profile_id: str
    kernel_id: str | None
    kernel: KernelSpec | None
    artifact_sha256: str | None
    setup_id: str
    status: ReportStatus
    provenance: Provenance
    statistics: Statistics
    verdict: Verdict
    reasons: tuple[VerdictReason, ...]
    before: Conditions
    after: Conditions
    output_sha256: str
    memory_bytes: int | None
    created_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyQuery:
    """Ask for the latency of kernels on a device. None as `runtime_version` takes the latest measured one."""

    device_id: str
    kernels: tuple[KernelSpec, ...]
    setup: MeasuringSetup
    runtime_version: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.kernels) <= MAX_QUERY_KERNELS:
            raise ContractError(f"{len(self.kernels)} kernels are not 1 to {MAX_QUERY_KERNELS}: ask in parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The latest trusted or noisy median under one key."""

    kernel_id: str
    median_ns: float
    ci95_low_ns: float | None
    ci95_high_ns: float | None
    verdict: Verdict
    source: Source
    runtime: str
    runtime_version: str
    runtime_sha256: str
    profile_id: str
    num_measurements: int
    result_key: str
    updated_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyAnswer:
    """`latencies` has one entry for each kernel asked for, in that order; None where it was not measured."""

    latencies: tuple[Latency | None, ...]


def kernel_view(row: KernelRow) -> KernelView:
    kernel = decode(KernelSpec, row.spec)
    return KernelView(id=row.id, kernel=kernel, macs=kernel.macs, parameters=kernel.parameters)


def measurement_view(row: MeasurementRow, kernel: KernelRow | None) -> MeasurementView:
    return MeasurementView(
        result_key=row.result_key,
        task_id=row.task_id,
        device_id=row.device_id,
        profile_id=row.profile_id,
        kernel_id=row.kernel_id,
        kernel=None if kernel is None else decode(KernelSpec, kernel.spec),
        artifact_sha256=row.artifact_sha256,
        setup_id=row.setup_id,
        status=row.status,
        provenance=Provenance(
            source=row.source,
            runtime=row.runtime,
            runtime_version=row.runtime_version,
            runtime_sha256=row.runtime_sha256,
            isa=row.isa,
            threads=row.threads,
            agent_version=row.agent_version,
            affinity=tuple(row.affinity),
            governor=row.governor,
            mode=row.mode,
        ),
        statistics=decode(Statistics, row.statistics),
        verdict=row.verdict,
        reasons=tuple(VerdictReason(r) for r in row.reasons),
        before=decode(Conditions, row.before),
        after=decode(Conditions, row.after),
        output_sha256=row.output_sha256,
        memory_bytes=row.memory_bytes,
        created_at=iso(row.created_at),
    )


def latency(row: LatencyRow) -> Latency:
    return Latency(
        kernel_id=row.kernel_id,
        median_ns=row.median_ns,
        ci95_low_ns=row.ci95_low_ns,
        ci95_high_ns=row.ci95_high_ns,
        verdict=row.verdict,
        source=row.source,
        runtime=row.runtime,
        runtime_version=row.runtime_version,
        runtime_sha256=row.runtime_sha256,
        profile_id=row.profile_id,
        num_measurements=row.num_measurements,
        result_key=row.result_key,
        updated_at=iso(row.updated_at),
    )
