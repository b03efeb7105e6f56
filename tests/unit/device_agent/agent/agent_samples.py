"""Contract values that agent tests use."""

from __future__ import annotations

from device_agent.contracts import (
    Activation,
    Block,
    Conditions,
    CpuCluster,
    DeviceProfile,
    FailureReason,
    KernelSpec,
    KernelTask,
    Lease,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    NetworkFormat,
    NetworkTask,
    Op,
    Provenance,
    RuntimeInfo,
    Source,
    TaskReport,
    Verdict,
)
from tests.samples import flat_statistics

PROFILE = DeviceProfile(
    machine="aarch64",
    system="Linux",
    os_build="test (6.1)",
    cpu_model="Board",
    clusters=(CpuCluster(model="Cortex-A72", core_ids=(0, 1), max_frequency_hz=1_500_000_000),),
    isa_features=("asimd",),
    memory_bytes=1 << 30,
)
RUNTIMES = (RuntimeInfo(name="native", version="1", binary_sha256="0" * 64, isa="neon"),)


def kernel(seed: int = 0) -> KernelSpec:
    return KernelSpec(
        op=Op.CONV2D,
        in_channels=4,
        out_channels=4,
        input_h=6,
        input_w=6,
        kernel_h=3,
        kernel_w=3,
        padding=1,
        activation=Activation.RELU,
        seed=seed,
    )


def kernel_task(seed: int = 0, runtime: str = "native") -> KernelTask:
    return KernelTask(kernel=kernel(seed), setup=MeasuringSetup(runtime=runtime, budget_s=0.05))


def network_task(sha256: str, size_bytes: int) -> NetworkTask:
    return NetworkTask(
        artifact_sha256=sha256,
        artifact_bytes=size_bytes,
        format=NetworkFormat.PACKED,
        input_shape=(3, 8, 8),
        setup=MeasuringSetup(runtime="native"),
    )


def lease(lease_id: str = "l1", *, task_id: str = "t1", attempt: int = 1, duration_s: float = 120.0) -> Lease:
    return Lease(
        lease_id=lease_id, task_id=task_id, attempt=attempt, duration_s=duration_s, deadline_s=60.0, task=kernel_task()
    )


def measurement(median_ns: float = 1000.0) -> Measurement:
    return Measurement(
        provenance=Provenance(
            source=Source.MEASURED,
            runtime="native",
            runtime_version="1",
            runtime_sha256="0" * 64,
            isa="neon",
            threads=1,
            agent_version="0.1.0",
        ),
        blocks=(Block(thread_cpu_ns=(median_ns,), wall_ns=(median_ns,), reference_ns=(500.0,)),),
        iterations_per_sample=10,
        warmup_runs=20,
        statistics=flat_statistics(median_ns),
        verdict=Verdict.NOISY,
        reasons=(),
        before=Conditions(),
        after=Conditions(),
        output_sha256="0" * 64,
    )


def report(result_key: str = "r1", *, lease_id: str = "l1", attempt: int = 1) -> TaskReport:
    return TaskReport(result_key=result_key, lease_id=lease_id, task_id="t1", attempt=attempt, result=measurement())


def failure(detail: str = "it broke") -> MeasurementFailure:
    return MeasurementFailure(reason=FailureReason.CRASHED, detail=detail)
