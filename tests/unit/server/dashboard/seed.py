"""A database with what a small lab has after a morning: devices, measurements and searches in several states."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from device_agent.contracts import (
    Activation,
    Block,
    Conditions,
    CpuCluster,
    DeviceProfile,
    EnrolmentRequest,
    HeartbeatRequest,
    KernelSpec,
    KernelTask,
    Measurement,
    MeasuringSetup,
    Op,
    Provenance,
    PruningScheme,
    ReportBatch,
    RuntimeInfo,
    Source,
    TaskReport,
    Verdict,
    VerdictReason,
    WeightPruning,
    encode,
)
from device_agent.contracts.statistics import summarize
from search.domain.config import DatasetConfig, ModelConfig, SearchConfig, SpaceConfig, WeightsConfig
from search.standing import accuracy_ci95
from server.accounts.service import mint_enrolment_code
from server.context import Context
from server.fleet import service as fleet
from server.ids import uuid7
from server.latency.source import SqlLatencySource
from server.models import TaskRow
from server.searches import queries, repository
from server.searches.repository import CandidateRecord, JobClaim, SearchEvent
from server.states import JobStage, TaskState

SETUP = MeasuringSetup(runtime="native")
HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"

Judge = Callable[[int], tuple[Verdict, tuple[VerdictReason, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """Identities of what was put in."""

    device_id: str
    simulated_id: str
    running: JobClaim
    completed_id: str
    failed_id: str


def runtimes(isa: str) -> tuple[RuntimeInfo, ...]:
    return (
        RuntimeInfo(name="native", version="0.1.0", binary_sha256="5f" * 32, isa=isa),
        RuntimeInfo(name="tflite", version="2.3.0", binary_sha256="a7" * 32),
        RuntimeInfo(name="ncnn", unavailable="the module ncnn is not installed"),
    )


def profile(cpu: str, cores: int, *, simulated: bool = False) -> DeviceProfile:
    return DeviceProfile(
        machine="aarch64",
        system="Linux 6.6.20",
        os_build="Debian 12",
        cpu_model=cpu,
        clusters=(CpuCluster(model=cpu, core_ids=tuple(range(cores)), max_frequency_hz=2_400_000_000),),
        isa_features=("asimd", "fp16", "dotprod"),
        memory_bytes=8 << 30,
        governors=("performance", "schedutil"),
        simulated=simulated,
    )


def enrol(context: Context, name: str, hardware: DeviceProfile) -> str:
    """A device that has sent one heartbeat."""
    with context.database.write() as session:
        code, _ = mint_enrolment_code(session, context.hasher)
    answer = fleet.enrol(
        context,
        EnrolmentRequest(
            code=code,
            agent_key=f"agent-key-of-{name}",
            device_name=name,
            profile=hardware,
            runtimes=runtimes("neon"),
            agent_version="0.1.0",
        ),
    )
    beat = HeartbeatRequest(
        conditions=Conditions(
            frequency_hz=2_400_000_000, governor="performance", temperature_celsius=51.2, load_1min=0.31
        ),
        runtimes=runtimes("neon"),
        profile=hardware,
        agent_version="0.1.0",
    )
    fleet.heartbeat(context, answer.device_id, beat)
    return answer.device_id


def kernels() -> tuple[KernelSpec, ...]:
    group = WeightPruning(scheme=PruningScheme.GROUP, density=0.2, block_filters=4)
    pattern = WeightPruning(scheme=PruningScheme.PATTERN, density=4 / 9, block_filters=4, pattern_entries=4)

    def conv(inputs: int, outputs: int, side: int, **more: object) -> KernelSpec:
        values = {"kernel_h": 3, "kernel_w": 3, "padding": 1, "activation": Activation.RELU, **more}
        return KernelSpec(op=Op.CONV2D, in_channels=inputs, out_channels=outputs, input_h=side, input_w=side, **values)  # type: ignore[arg-type]

    return (
        conv(3, 16, 32),
        conv(16, 16, 32, pruning=group, residual=True),
        conv(16, 32, 32, pruning=group, stride=2),
        conv(32, 32, 16, pruning=pattern),
        conv(64, 64, 8, pruning=group, residual=True),
        KernelSpec(
            op=Op.DEPTHWISE_CONV2D, in_channels=96, out_channels=96, input_h=56, input_w=56, kernel_h=3, kernel_w=3,
            padding=1, activation=Activation.RELU6,
        ),
        KernelSpec(
            op=Op.GLOBAL_AVG_POOL, in_channels=64, out_channels=64, input_h=8, input_w=8, kernel_h=8, kernel_w=8
        ),
        KernelSpec(op=Op.FULLY_CONNECTED, in_channels=64, out_channels=10),
    )  # fmt: skip


def measurement(median_ns: float, source: Source, verdict: Verdict, reasons: tuple[VerdictReason, ...]) -> Measurement:
    factors = (0.993, 0.998, 1.0, 1.0, 1.002, 1.006)
    blocks = tuple(Block(thread_cpu_ns=(f * median_ns,) * 10, wall_ns=(f * median_ns,) * 10) for f in factors)
    return Measurement(
        provenance=Provenance(
            source=source,
            runtime="native",
            runtime_version="0.1.0",
            runtime_sha256="5f" * 32,
            isa="neon",
            threads=1,
            agent_version="0.1.0",
        ),
        blocks=blocks,
        iterations_per_sample=10,
        warmup_runs=10,
        statistics=summarize(blocks, SETUP.clock),
        verdict=verdict,
        reasons=reasons,
        before=Conditions(),
        after=Conditions(),
        output_sha256="00" * 32,
    )


def measure(context: Context, claim: JobClaim, tasks: tuple[KernelTask, ...], *, source: Source, judge: Judge) -> None:
    """Have the tasks of a search measured, as an agent would."""
    SqlLatencySource(context.database).request(claim.device_id, tasks, claim.search_id)
    for position in range(len(tasks)):
        for lease in fleet.lend(context, claim.device_id, 1):
            verdict, reasons = judge(position)
            assert isinstance(lease.task, KernelTask)
            median_ns = 2_000.0 + 0.12 * lease.task.kernel.macs
            result = measurement(median_ns, source, verdict, reasons)
            report = TaskReport(
                result_key=str(uuid7()),
                lease_id=lease.lease_id,
                task_id=lease.task_id,
                attempt=lease.attempt,
                result=result,
            )
            fleet.report(context, claim.device_id, ReportBatch(reports=(report,)))


def several_devices(context: Context) -> tuple[str, list[str], tuple[str, str]]:
    """A search over a phone and a Pi 4 in verification; its id, its selected candidates and its devices."""
    devices = tuple(enrol(context, name, profile("Cortex-A76", 4)) for name in ("fleet-phone", "fleet-pi4"))
    claim = submit(context, "both", *devices)
    with context.database.write() as session:
        data = json.dumps({"tflite_dense_ns": 18e6, "others": {devices[1]: {"tflite_dense_ns": 40e6}}})
        repository.save_checkpoint(session, claim, stage=JobStage.PROFILING, step=1, data=data)
    chosen = select(context, claim, search(context, claim, generations=1), 2)
    for name in chosen:
        own = {
            device: {
                "measured_latency_ms": ms,
                "verdict": "trusted",
                "verdict_reasons": [],
                "output_max_abs_error": 1e-6,
            }
            for device, ms in zip(devices, (5.0, 20.0), strict=True)
        }
        with context.database.write() as session:
            predicted = {"latencies_ms": dict(zip(devices, (6.0, 21.0), strict=True))}
            repository.set_candidate_result(session, claim, name, "searching", predicted)
            repository.set_candidate_result(session, claim, name, "verifying", {**own[devices[1]], "devices": own})
    return claim.search_id, chosen, (devices[0], devices[1])


def submit(context: Context, name: str, device_id: str, *others: str, architecture: str = "resnet20") -> JobClaim:
    """A search that a worker has just taken."""
    config = SearchConfig(
        name=name,
        model=ModelConfig(architecture=architecture),
        dataset=DatasetConfig(name="digits"),
        space=SpaceConfig(weights=WeightsConfig()),
        device=None if others else device_id,
        devices=(device_id, *others) if others else (),
    )
    with context.database.write() as session:
        row = queries.insert_search(
            session, name=name, device_id=device_id, config=encode(config), created_by="token_test"
        )
    with context.database.write() as session:
        claim = repository.claim_runnable_job(session, worker=f"worker-of-{row.id}", stale_s=3600)
    assert claim is not None
    assert claim.search_id == row.id
    return claim


def prepare(context: Context, claim: JobClaim) -> None:
    """The two stages before the search: the unpruned network's accuracy and latencies are known then."""
    with context.database.write() as session:
        repository.set_stage(session, claim, JobStage.PREPARING)
        data = json.dumps({"model_sha256": "00" * 32, "baseline_accuracy": 0.9172})
        repository.save_checkpoint(session, claim, stage=JobStage.PREPARING, step=0, data=data)
        repository.set_stage(session, claim, JobStage.PROFILING)
        data = json.dumps({"tflite_dense_ns": 17.9e6, "native_dense_ns": 13.4e6, "ncnn_dense_ns": 15.1e6})
        repository.save_checkpoint(session, claim, stage=JobStage.PROFILING, step=1, data=data)


def advance(context: Context, claim: JobClaim, done: int, total: int, note: str, stage: JobStage) -> None:
    """What a worker does after each unit of work."""
    data = {"stage": stage.value, "done": done, "total": total, "note": note}
    with context.database.write() as session:
        repository.set_progress(session, claim, data)
        repository.add_events(session, claim, [SearchEvent(kind="progress", data=data)])


def search(context: Context, claim: JobClaim, *, generations: int = 10, population: int = 24) -> list[str]:
    """Generations of candidates with a front like that of a real network; returns the front's identities."""
    generator = np.random.default_rng(7)
    with context.database.write() as session:
        repository.set_stage(session, claim, JobStage.SEARCHING)
    points: list[tuple[float, float, str]] = []
    for generation in range(generations):
        reach = 0.5 + 0.5 * (generation + 1) / generations
        records = []
        for member in range(population):
            latency_ms = float(generator.uniform(14.0 - 11.4 * reach, 13.6))
            best = 0.40 + 0.47 * (1.0 - math.exp(-0.33 * (latency_ms - 2.0)))
            accuracy = float(max(0.1, best - abs(generator.normal(0.0, 0.09))))
            name = f"c_{generation:04x}{member:04x}{generator.integers(1 << 32):08x}".ljust(34, "0")
            points.append((latency_ms, accuracy, name))
            metrics = {
                "error": 1.0 - accuracy,
                "loss": 2.3 * (1.0 - accuracy),
                "latency_ms": latency_ms,
                "macs": 41e6 * latency_ms / 13.6,
                "parameters": 270e3 * latency_ms / 13.6,
            }
            records.append(CandidateRecord(candidate_id=name, genome=(member,), metrics=metrics, generation=generation))
        front = [p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)]
        figures = {"generation": generation + 1, "generations": generations}
        with context.database.write() as session:
            repository.save_candidates(session, claim, records)
            repository.mark_front(session, claim, [name for *_, name in front])
            event = SearchEvent(kind="generation", data={**figures, "evaluations": len(points), "front": len(front)})
            repository.add_events(session, claim, [event])
        note = f"{len(points)} candidates, {len(front)} on the front"
        advance(context, claim, generation + 1, generations, note, JobStage.SEARCHING)
    return [name for *_, name in sorted(front)]


def select(context: Context, claim: JobClaim, front: list[str], count: int) -> list[str]:
    """Mark `count` candidates spread over the front."""
    chosen = [front[i] for i in np.unique(np.linspace(0, len(front) - 1, count).round().astype(int))]
    with context.database.write() as session:
        repository.mark_selected(session, claim, chosen)
    return chosen


def train(context: Context, claim: JobClaim, candidate_id: str, accuracy: float) -> None:
    with context.database.write() as session:
        result = {"weights_sha256": "00" * 32, "accuracy": accuracy, "loss": 0.3}
        result["accuracy_ci95"] = list(accuracy_ci95(accuracy, 1_000))
        repository.set_candidate_result(session, claim, candidate_id, "training", result)
        text = f"candidate {candidate_id[:10]}: {100 * accuracy:.2f} % on the test set"
        repository.add_events(session, claim, [SearchEvent(kind="message", data={"text": text})])


def export(context: Context, claim: JobClaim, candidate_id: str) -> str:
    """Store one file; returns its SHA-256."""
    digest = context.store.put_bytes(context.database, f"packed {candidate_id}".encode(), created_by="test")
    files = dict.fromkeys(("network.kerfnet", "network.tflite", "plan.json", "weights.safetensors"), digest)
    with context.database.write() as session:
        repository.set_candidate_result(session, claim, candidate_id, "exporting", {"files": files})
    return digest


def verify(
    context: Context, claim: JobClaim, candidate_id: str, latency_ms: float, verdict: str = "trusted", *reasons: str
) -> None:
    result = {
        "task_id": "task_x",
        "measured_latency_ms": latency_ms,
        "latency_ci95_ms": [0.6 * latency_ms, 1.6 * latency_ms]
        if "ci_too_wide" in reasons
        else [0.988 * latency_ms, 1.011 * latency_ms],
        "verdict": verdict,
        "verdict_reasons": list(reasons),
        "output_max_abs_error": 3.1e-6,
        "memory_bytes": 1 << 20,
    }
    with context.database.write() as session:
        repository.set_candidate_result(session, claim, candidate_id, "verifying", result)


def finish(context: Context, claim: JobClaim, chosen: list[str]) -> None:
    """All stages behind the search, for the chosen candidates."""
    with context.database.read() as session:
        predicted = {
            c.candidate_id: c.metrics["latency_ms"] for c in repository.load_candidates(session, claim.search_id)
        }
    for stage in (JobStage.TRAINING, JobStage.EXPORTING, JobStage.VERIFYING):
        with context.database.write() as session:
            repository.set_stage(session, claim, stage)
    for i, name in enumerate(chosen):
        train(context, claim, name, 0.9185 - 0.03 * math.exp(-0.6 * i))
        export(context, claim, name)
        reasons = ("noisy", "ci_too_wide", "contention") if i == 1 else ("trusted",)
        verify(context, claim, name, predicted[name] * (0.97 + 0.02 * (i % 4)), *reasons)
    with context.database.write() as session:
        repository.complete_job(session, claim)


def seed(context: Context) -> Seeded:
    """Fill an empty database."""
    device_id = enrol(context, "pi5-lab", profile("Cortex-A76", 4))
    simulated_id = enrol(context, "simulated-board", profile("analytic model", 2, simulated=True))
    tasks = tuple(KernelTask(kernel=kernel, setup=SETUP) for kernel in kernels())

    def judge(position: int) -> tuple[Verdict, tuple[VerdictReason, ...]]:
        if position == 3:
            return Verdict.NOISY, (VerdictReason.CI_TOO_WIDE,)
        if position == 5:
            return Verdict.REJECTED, (VerdictReason.THROTTLED, VerdictReason.FREQUENCY_MOVED)
        return Verdict.TRUSTED, ()

    completed = submit(context, "digits on the simulated board", simulated_id, architecture="small_cnn")
    measure(context, completed, tasks[:3], source=Source.SIMULATED, judge=lambda _: (Verdict.TRUSTED, ()))
    prepare(context, completed)
    finish(context, completed, select(context, completed, search(context, completed), 8))
    failed = submit(context, HOSTILE, device_id, architecture="vgg16")
    with context.database.write() as session:
        reason = "no candidate can meet latency_ms <= 0.1: the smallest reachable value is 0.42. Raise the bound"
        repository.fail_job(session, failed, reason)
    running = submit(context, "cifar10-resnet20", device_id)
    measure(context, running, tasks, source=Source.MEASURED, judge=judge)
    prepare(context, running)
    chosen = select(context, running, search(context, running), 8)
    with context.database.write() as session:
        repository.set_stage(session, running, JobStage.TRAINING)
    for i, name in enumerate(chosen[:5]):
        train(context, running, name, 0.915 - 0.03 * math.exp(-0.6 * i))
    advance(context, running, 5, 8, f"candidate {chosen[5][:10]}, epoch 1", JobStage.TRAINING)
    return Seeded(
        device_id=device_id,
        simulated_id=simulated_id,
        running=running,
        completed_id=completed.search_id,
        failed_id=failed.search_id,
    )


def quarantine(context: Context) -> None:
    """Let one of the kernels have crashed in every attempt, with the long text that an agent sends then."""
    with context.database.write() as session:
        kernels = sa.select(TaskRow.id).where(TaskRow.kernel_id.is_not(None)).order_by(TaskRow.id)
        first = session.scalars(kernels).first()
        values = {"state": TaskState.FAILED, "failures": 3, "failure_reason": "crashed", "finished_at": 1.0}
        detail = "the child process was killed by SIGSEGV in kerf_conv_group_4x1_neon_dotprod_16x16_s2_relu"
        session.execute(sa.update(TaskRow).where(TaskRow.id == first).values(**values, failure_detail=detail))
