"""PROFILING: the latency table of the search, measured on its device, and the model fitted on it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_agent.contracts import (
    SIMULATED_RUNTIME,
    KernelTask,
    MeasurementFailure,
    MeasuringSetup,
    NetworkFormat,
    NetworkPlan,
    NetworkTask,
    Verdict,
    decode,
    encode,
    setup_id,
)
from search.domain.objective import Constraint, Metric
from search.domain.space import Decisions, Genome
from search.latency.card import model_card
from search.latency.drift import at_usual_speed, usual_references
from search.latency.knots import knots_for
from search.latency.network import NetworkLatencyModel, fit_network_model
from search.latency.table import LatencyTable, dump_table, kernel_latency, load_table, network_latency
from search.lowering import lower
from search.space_builder import check_budget
from server.errors import ApiError
from server.latency.repository import device_source, runtime_key
from server.latency.source import MeasurementSummary, SqlLatencySource
from server.searches.repository import LATENCY_TABLE, get_document, load_checkpoint
from server.states import JobStage
from server.worker.measuring import Outcome, describe, measure, require_success
from server.worker.networks import (
    NATIVE_RUNTIME,
    NCNN_RUNTIME,
    TFLITE_RUNTIME,
    FoldedNetwork,
    network_task,
    search_format,
    search_task,
    setup_in,
    untrained,
)
from server.worker.run import SearchFailed, SearchRun
from server.worker.stages.preparing import Prepared

STAGE = JobStage.PROFILING

#: The document with the latency model's held-out errors.
LATENCY_CARD = "latency-card"

#: Checkpoints of this stage: the tasks are asked for; the profile is complete.
_ASKED = 0
_FINISHED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSummary:
    """What a finished profile says about the device and the dense networks. Latencies in ns.

    `usual_references` holds the time of each reference kernel, by name, at the speed to which all latencies of the
    search are brought (`search.latency.drift`).
    """

    isa: str
    threads: int
    kernels_reused: int
    tflite_dense_ns: float | None
    native_dense_ns: float | None
    usual_references: Mapping[str, float]
    ncnn_dense_ns: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile:
    """Latencies of the search's device."""

    table: LatencyTable
    model: NetworkLatencyModel
    summary: ProfileSummary

    def predict_ms(self, plan: NetworkPlan) -> float:
        """The whole network's latency in ms. Raises `KernelNotMeasured` outside of the table."""
        return self.model.predict(plan).latency_ns / 1e6


def profile(run: SearchRun, prepared: Prepared) -> Profile:
    """Measure what the table needs, or read the finished one back. Raises `SearchFailed` where the device cannot."""
    found = run.load(STAGE)
    if found is None or found[0] < _FINISHED:
        run.enter(STAGE)
        if run.config.latency_from is not None:
            table, summary = _taken_over(run, run.config.latency_from)
        else:
            table, summary = _measured(run, prepared)
        result = _fitted(table, summary)
        _check_coverage(run, prepared, result)
        run.put_document(LATENCY_TABLE, dump_table(table))
        run.put_document(LATENCY_CARD, _card(result))
        run.save(STAGE, _FINISHED, encode(summary))
        return result
    with run.database.read() as session:
        text = get_document(session, run.search_id, LATENCY_TABLE)
    if text is None:
        raise SearchFailed("the latency table of this search is gone from the database: submit the search again")
    return _fitted(load_table(text), decode(ProfileSummary, found[1]))


def _fitted(table: LatencyTable, summary: ProfileSummary) -> Profile:
    return Profile(table=table, model=fit_network_model(table), summary=summary)


def _taken_over(run: SearchRun, search_id: str) -> tuple[LatencyTable, ProfileSummary]:
    with run.database.read() as session:
        text = get_document(session, search_id, LATENCY_TABLE)
        saved = load_checkpoint(session, search_id, STAGE)
        source = device_source(session, run.claim.device_id)
    if text is None or saved is None:
        raise SearchFailed(
            f"search {search_id!r} has no latency table: name one that has finished profiling (see `kerf search ls`)"
        )
    table = load_table(text)
    setup = setup_id(run.config.measuring.kernels)
    if (table.device_id, table.setup_id) != (run.claim.device_id, setup):
        raise SearchFailed(
            f"the latency table of {search_id} was measured on device {table.device_id} with setup {table.setup_id}, "
            f"but this search is for {run.claim.device_id} with {setup}: use the same device and measuring.kernels"
        )
    if table.source is not source:
        raise SearchFailed(
            f"the latency table of {search_id} is {table.source.value}, but what its device gives now is "
            f"{source.value}: leave latency_from out to have it profiled as it is"
        )
    return table, decode(ProfileSummary, json.loads(saved.data))


def _measured(run: SearchRun, prepared: Prepared) -> tuple[LatencyTable, ProfileSummary]:
    config = run.config.measuring
    kernel_tasks = [
        KernelTask(kernel=kernel, setup=config.kernels)
        for kernel in knots_for(prepared.spec, prepared.space, config.max_kernels)
    ]
    dense = untrained(prepared, Decisions())
    pruned = [untrained(prepared, prepared.space.decode(g)) for g in calibration_genomes(run, prepared)]
    baseline_tasks = _baseline_tasks(run, dense)
    pruned_tasks = [search_task(run, network) for network in pruned]
    network_tasks = [*baseline_tasks.values(), *pruned_tasks]
    reused = _num_reused(run, kernel_tasks)
    outcomes = measure(
        run,
        STAGE,
        [*network_tasks, *kernel_tasks],
        f"{len(kernel_tasks)} kernels, {len(network_tasks)} networks",
    )
    require_success("whole networks", network_tasks, outcomes[: len(network_tasks)])
    networks = [_success(outcome) for _, outcome in outcomes[: len(network_tasks)]]
    _warn_rejected(run, network_tasks, networks)
    kernels = _usable(run, kernel_tasks, outcomes[len(network_tasks) :])
    usual = usual_references(o.statistics for o in [*networks, *(o for _, o in kernels)])
    baselines = dict(zip(baseline_tasks, networks, strict=False))
    own = baselines[_own_baseline(config.networks)]
    table = LatencyTable(
        device_id=run.claim.device_id,
        setup_id=setup_id(config.kernels),
        runtime=own.runtime,
        runtime_version=f"{own.runtime_version}+{own.runtime_sha256[:16]}",
        source=own.source,
        kernels=tuple(kernel_latency(t.kernel, at_usual_speed(o.statistics, usual)) for t, o in kernels),
        networks=tuple(
            network_latency(network.plan, at_usual_speed(result.statistics, usual))
            for network, result in zip([dense, *pruned], [own, *networks[len(baselines) :]], strict=True)
            if result.verdict is not Verdict.REJECTED
        ),
    )
    summary = ProfileSummary(
        isa=_isa(run, own),
        threads=config.networks.threads,
        kernels_reused=reused,
        tflite_dense_ns=_usable_median_ns(baselines.get(TFLITE_RUNTIME), usual),
        native_dense_ns=_usable_median_ns(baselines.get(NATIVE_RUNTIME), usual),
        usual_references=usual,
        ncnn_dense_ns=_usable_median_ns(baselines.get(NCNN_RUNTIME), usual),
    )
    return table, summary


def _baseline_tasks(run: SearchRun, dense: FoldedNetwork) -> dict[str, NetworkTask]:
    """The unpruned network in each runtime that the device has; the search's own is always among them."""
    setup = run.config.measuring.networks
    tasks = {}
    forms = {TFLITE_RUNTIME: NetworkFormat.TFLITE, NATIVE_RUNTIME: NetworkFormat.PACKED}
    if setup.runtime != SIMULATED_RUNTIME:
        forms[NCNN_RUNTIME] = NetworkFormat.PACKED
    for runtime, form in forms.items():
        in_runtime = setup_in(setup, runtime)
        if runtime != _own_baseline(setup):
            try:
                with run.database.read() as session:
                    runtime_key(session, run.claim.device_id, in_runtime.runtime)
            except ApiError as error:
                # Few devices have the optional ncnn: no need to tell each time.
                if runtime != NCNN_RUNTIME:
                    run.message(f"no dense {runtime} baseline: {error.detail}")
                continue
        tasks[runtime] = network_task(run, dense, form, in_runtime)
    return tasks


def _own_baseline(setup: MeasuringSetup) -> str:
    """The baseline that runs as the search's networks do."""
    if setup.runtime == NCNN_RUNTIME:
        return NCNN_RUNTIME
    return TFLITE_RUNTIME if search_format(setup) is NetworkFormat.TFLITE else NATIVE_RUNTIME


def calibration_genomes(run: SearchRun, prepared: Prepared) -> list[Genome]:
    """Random genomes whose overall pruning is spread from light to heavy, so that scale and constant can be told apart.

    Each genome draws around its own level: uniformly random genes would make all networks about equally fast.
    """
    generator = np.random.default_rng([run.config.method.seed, 20_110_801])
    count = run.config.measuring.calibration_networks
    genomes = []
    for level in np.linspace(0.05, 0.95, count):
        genes = []
        for choices in prepared.space.num_choices:
            position = np.clip(generator.normal(level, 0.2), 0.0, 1.0)
            genes.append(round(float(position) * (choices - 1)))
        genomes.append(tuple(genes))
    return genomes


def _num_reused(run: SearchRun, tasks: Sequence[KernelTask]) -> int:
    """How many kernels the database knew before this search asked; kept, as a restart could not tell any more."""
    found = run.load(STAGE)
    if found is not None:
        return int(found[1]["kernels_reused"])
    source = SqlLatencySource(run.database)
    reused = source.progress(source.request(run.claim.device_id, tasks, run.search_id)).succeeded
    run.save(STAGE, _ASKED, {"kernels_reused": reused})
    return reused


def _usable(
    run: SearchRun, tasks: Sequence[KernelTask], outcomes: Sequence[tuple[str, Outcome]]
) -> list[tuple[KernelTask, MeasurementSummary]]:
    """The kernels that the table may use. Kernels that failed or were rejected are named and left out; whether the
    rest still covers the space is checked afterwards.
    """
    usable, left_out = [], []
    for task, (_, outcome) in zip(tasks, outcomes, strict=True):
        if isinstance(outcome, MeasurementFailure):
            left_out.append(f"{describe(task)}: {outcome.reason.value} ({outcome.detail})")
        elif outcome.verdict is Verdict.REJECTED:
            left_out.append(f"{describe(task)}: rejected ({', '.join(r.value for r in outcome.reasons)})")
        else:
            usable.append((task, outcome))
    for line in left_out:
        run.message(f"left out of the latency table: {line}")
    if not usable:
        raise SearchFailed(f"no kernel could be measured; the first: {left_out[0]}")
    return usable


def _warn_rejected(
    run: SearchRun, tasks: Sequence[KernelTask | NetworkTask], measured: Sequence[MeasurementSummary]
) -> None:
    for task, result in zip(tasks, measured, strict=True):
        if result.verdict is Verdict.REJECTED:
            reasons = ", ".join(r.value for r in result.reasons)
            run.message(f"{describe(task)} was rejected twice ({reasons}) and is not used")


def _success(outcome: Outcome) -> MeasurementSummary:
    assert isinstance(outcome, MeasurementSummary)
    return outcome


def _usable_median_ns(result: MeasurementSummary | None, usual: Mapping[str, float]) -> float | None:
    if result is None or result.verdict is Verdict.REJECTED:
        return None
    return at_usual_speed(result.statistics, usual).median_ns


def _isa(run: SearchRun, result: MeasurementSummary) -> str:
    return SqlLatencySource(run.database).measurement(result.task_id).provenance.isa


def _check_coverage(run: SearchRun, prepared: Prepared, result: Profile) -> None:
    """Every corner of the space must be predictable, and latency bounds within reach, before the search begins."""
    for genome in (prepared.space.smallest, prepared.space.unpruned):
        result.predict_ms(lower(prepared.spec, prepared.space.decode(genome)))

    def latency(genome: Genome) -> dict[Metric, float]:
        return {Metric.LATENCY_MS: result.predict_ms(lower(prepared.spec, prepared.space.decode(genome)))}

    bounds: list[Constraint] = [c for c in run.config.constraints if c.metric is Metric.LATENCY_MS]
    check_budget(prepared.space, bounds, latency)


def _card(result: Profile) -> str:
    card: dict[str, Any] = dataclasses.asdict(
        model_card(result.model.predictor, result.model.correction, len(result.table.kernels))
    )
    return json.dumps(card, sort_keys=True)
