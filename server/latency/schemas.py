"""The latency database as the API shows it."""

from __future__ import annotations

from dataclasses import dataclass, fields

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
from server.latency.series import key_of
from server.models import KernelRow, LatencyRow, MeasurementRow, SeriesRow
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
    """A measurement without its samples, which GET /v1/measurements/{result_key}/raw has.

    One that was imported has an `import_id` and no task, and `statistics` only where the file had them.
    """

    result_key: str
    task_id: str | None
    import_id: str | None
    series_id: str
    device_id: str
    profile_id: str
    kernel_id: str | None
    kernel: KernelSpec | None
    artifact_sha256: str | None
    setup_id: str
    status: ReportStatus
    provenance: Provenance
    median_ns: float
    ci95_low_ns: float | None
    ci95_high_ns: float | None
    statistics: Statistics | None
    verdict: Verdict
    reasons: tuple[VerdictReason, ...]
    before: Conditions
    after: Conditions
    output_sha256: str | None
    memory_bytes: int | None
    created_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyQuery:
    """Ask for the latency of kernels on a device, in one series: `series_id`, or the one that was measured in last
    with this setup, in this `runtime_version` if one is named, on the device as it is now.
    """

    device_id: str
    kernels: tuple[KernelSpec, ...]
    setup: MeasuringSetup
    runtime_version: str | None = None
    series_id: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.kernels) <= MAX_QUERY_KERNELS:
            raise ContractError(f"{len(self.kernels)} kernels are not 1 to {MAX_QUERY_KERNELS}: ask in parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesView:
    """Figures of one provenance on one device: only these stand beside each other unasked. All but the counts and
    times is the key.
    """

    id: str
    device_id: str
    profile_id: str
    setup_id: str
    runtime: str
    runtime_version: str
    runtime_sha256: str
    isa: str
    threads: int
    affinity: tuple[int, ...]
    governor: str | None
    agent_version: str
    source: Source
    num_measurements: int
    first_at: str | None
    last_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The latest trusted or noisy median of a kernel in one series."""

    kernel_id: str
    mode: str
    median_ns: float
    ci95_low_ns: float | None
    ci95_high_ns: float | None
    verdict: Verdict
    num_measurements: int
    min_median_ns: float
    max_median_ns: float
    result_key: str
    updated_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyAnswer:
    """`latencies` has one entry for each kernel asked for, in that order; None where it was not measured in `series`,
    which is None where the device has none of this kind.
    """

    series: SeriesView | None
    latencies: tuple[Latency | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyView:
    """One row of the latency database: a kernel's figure and the series that it is of."""

    kernel: KernelSpec
    latency: Latency
    series: SeriesView
    device_name: str


def kernel_view(row: KernelRow) -> KernelView:
    kernel = decode(KernelSpec, row.spec)
    return KernelView(id=row.id, kernel=kernel, macs=kernel.macs, parameters=kernel.parameters)


def measurement_view(row: MeasurementRow, kernel: KernelRow | None) -> MeasurementView:
    return MeasurementView(
        result_key=row.result_key,
        task_id=row.task_id,
        import_id=row.import_id,
        series_id=row.series_id,
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
        median_ns=row.median_ns,
        ci95_low_ns=row.ci95_low_ns,
        ci95_high_ns=row.ci95_high_ns,
        statistics=None if row.statistics is None else decode(Statistics, row.statistics),
        verdict=row.verdict,
        reasons=tuple(VerdictReason(r) for r in row.reasons),
        before=decode(Conditions, row.before),
        after=decode(Conditions, row.after),
        output_sha256=row.output_sha256,
        memory_bytes=row.memory_bytes,
        created_at=iso(row.created_at),
    )


def series_view(row: SeriesRow) -> SeriesView:
    key = key_of(row)
    return SeriesView(
        id=row.id,
        **{field.name: getattr(key, field.name) for field in fields(key)},
        num_measurements=row.num_measurements,
        first_at=iso(row.first_at),
        last_at=iso(row.last_at),
    )


def latency(row: LatencyRow) -> Latency:
    return Latency(
        kernel_id=row.kernel_id,
        mode=row.mode,
        median_ns=row.median_ns,
        ci95_low_ns=row.ci95_low_ns,
        ci95_high_ns=row.ci95_high_ns,
        verdict=row.verdict,
        num_measurements=row.num_measurements,
        min_median_ns=row.min_median_ns,
        max_median_ns=row.max_median_ns,
        result_key=row.result_key,
        updated_at=iso(row.updated_at),
    )
