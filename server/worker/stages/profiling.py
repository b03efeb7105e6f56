"""PROFILING: the latency table of each device of the search, measured there, and the model fitted on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from device_agent.contracts import (
    SIMULATED_RUNTIME,
    KernelSpec,
    KernelTask,
    MeasuringSetup,
    NetworkFormat,
    NetworkTask,
    Verdict,
    setup_id,
)
from search.algorithms.repair import least_violating
from search.domain.config import MeasuringStrategy, parse_config
from search.domain.objective import Constraint, Metric
from search.domain.space import Decisions, Genome
from search.errors import KernelNotMeasured
from search.known_figures import NetworkFigures, bounds_problem
from search.latency.active import first_kernels
from search.latency.drift import at_usual_speed, usual_references
from search.latency.knots import knots_for
from search.latency.table import LatencyTable, dump_table, kernel_latency, load_table, network_latency
from search.lowering import lower
from search.space_builder import check_budget
from server.errors import ApiError
from server.latency.repository import device_source, runtime_key
from server.latency.source import MeasurementSummary, SqlLatencySource
from server.searches.queries import device_ids as device_ids_of
from server.searches.queries import get_search
from server.searches.repository import LATENCY_CARD, LATENCY_TABLE, device_document, get_document, load_checkpoint
from server.states import JobStage
from server.worker.latencies import (
    DeviceLatencies,
    Profile,
    ProfileSummary,
    card_of,
    fitted,
    fitted_by_model,
    summaries_from_json,
    summaries_to_json,
)
from server.worker.measuring import Order, Outcome, describe, measure, require_success, usable, version_of, warn_mixed
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

#: Checkpoints of this stage: the tasks are asked for; the profile is complete.
_ASKED = 0
_FINISHED = 1

#: Of the seeds of a search, the one that draws the first kernels of active measuring.
_FIRST_KERNELS = 20_110_803

#: How many kernels without a figure an error names; all of them are among the search's messages.
_SHOWN_LEFT_OUT = 3


def profile(run: SearchRun, prepared: Prepared) -> Profile:
    """Measure what the tables need, or read the finished ones back. Raises `SearchFailed` where a device cannot."""
    device_ids = run.claim.device_ids
    found = run.load(STAGE)
    if found is None or found[0] < _FINISHED:
        run.enter(STAGE)
        if run.config.latency_from is not None:
            devices = tuple(fitted(d, *_taken_over(run, run.config.latency_from, d)) for d in device_ids)
            result = _checked(run, prepared, devices)
        else:
            result = _measured(run, prepared)
        devices = result.devices
        for device in devices:
            run.put_document(device_document(LATENCY_TABLE, device.device_id, device_ids), dump_table(device.table))
            run.put_document(device_document(LATENCY_CARD, device.device_id, device_ids), card_of(device))
        run.save(STAGE, _FINISHED, summaries_to_json([(device.device_id, device.summary) for device in devices]))
        return result
    summaries = summaries_from_json(found[1], device_ids)
    tables = []
    with run.database.read() as session:
        for device_id in device_ids:
            text = get_document(session, run.search_id, device_document(LATENCY_TABLE, device_id, device_ids))
            if text is None:
                raise SearchFailed(
                    f"the latency table of {device_id} is gone from the database: submit the search again"
                )
            tables.append(load_table(text))
    return Profile(
        devices=tuple(_fitted(run, d, table, summaries[d]) for d, table in zip(device_ids, tables, strict=True)),
        over=run.config.latency_over_devices,
    )


def _checked(run: SearchRun, prepared: Prepared, devices: tuple[DeviceLatencies, ...]) -> Profile:
    _check_same_source(run, devices)
    result = Profile(devices=devices, over=run.config.latency_over_devices)
    _check_coverage(run, prepared, result)
    return result


def _check_same_source(run: SearchRun, devices: Sequence[DeviceLatencies]) -> None:
    """Refuse to make one figure of measured and of simulated latencies: devices may have changed since submission."""
    if len({device.table.source for device in devices}) > 1:
        told = ", ".join(f"{run.device_names[d.device_id]!r} is {d.table.source.value}" for d in devices)
        raise SearchFailed(f"{told}: one search never joins them in one figure; name devices of one kind")


def _taken_over(run: SearchRun, search_id: str, device_id: str) -> tuple[LatencyTable, ProfileSummary]:
    with run.database.read() as session:
        search = get_search(session, search_id)
        devices = device_ids_of(search)
        if device_id not in devices:
            raise SearchFailed(
                f"search {search_id!r} measured on {', '.join(devices)}, not on {device_id}: name a search on all "
                "devices of this one, or leave latency_from out"
            )
        taken = parse_config(search.config).measuring
        text = get_document(session, search_id, device_document(LATENCY_TABLE, device_id, devices))
        saved = load_checkpoint(session, search_id, STAGE)
        source = device_source(session, device_id)
    if text is None or saved is None or saved.step < _FINISHED:
        raise SearchFailed(
            f"search {search_id!r} has no latency table: name one that has finished profiling (see `kerf search ls`)"
        )
    if taken.strategy is not MeasuringStrategy.GRID:
        raise SearchFailed(
            f"search {search_id!r} chose its kernels as it went (measuring.strategy {taken.strategy.value!r}), so its "
            "table is no grid to interpolate in: leave latency_from out; what it measured is shared all the same"
        )
    table = load_table(text)
    setup = setup_id(run.config.measuring.kernels)
    if (table.device_id, table.setup_id) != (device_id, setup):
        raise SearchFailed(
            f"the latency table of {search_id} was measured on device {table.device_id} with setup {table.setup_id}, "
            f"but this search is for {device_id} with {setup}: use the same device and measuring.kernels"
        )
    if table.source is not source:
        raise SearchFailed(
            f"the latency table of {search_id} is {table.source.value}, but what its device gives now is "
            f"{source.value}: leave latency_from out to have it profiled as it is"
        )
    return table, summaries_from_json(json.loads(saved.data), devices)[device_id]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Networks:
    """The whole networks that every device measures, packed once: the dense one, and pruned ones with their tasks."""

    dense: FoldedNetwork
    pruned: tuple[FoldedNetwork, ...]
    pruned_tasks: tuple[NetworkTask, ...]


def _measured(run: SearchRun, prepared: Prepared) -> Profile:
    """Kernels and whole networks measured on all devices at the same time."""
    left_out: list[str] = []
    kernel_tasks = [KernelTask(kernel=kernel, setup=run.config.measuring.kernels) for kernel in _kernels(run, prepared)]
    pruned = tuple(untrained(prepared, prepared.space.decode(g)) for g in calibration_genomes(run, prepared))
    networks = _Networks(
        dense=untrained(prepared, Decisions()),
        pruned=pruned,
        pruned_tasks=tuple(search_task(run, network) for network in pruned),
    )
    device_ids = run.claim.device_ids
    baselines = [_baseline_tasks(run, networks.dense, device_id) for device_id in device_ids]
    reused = _num_reused(run, kernel_tasks)
    orders = [
        Order(device_id=device_id, tasks=[*own.values(), *networks.pruned_tasks, *kernel_tasks])
        for device_id, own in zip(device_ids, baselines, strict=True)
    ]
    num_networks = len(baselines[0]) + len(networks.pruned_tasks)
    on = f" on {len(device_ids)} devices" if len(device_ids) > 1 else ""
    outcomes = measure(run, STAGE, orders, f"{len(kernel_tasks)} kernels, {num_networks} networks{on}")
    try:
        devices = tuple(
            _device_latencies(run, device_id, networks, own, kernel_tasks, found, num_reused, left_out)
            for device_id, own, found, num_reused in zip(device_ids, baselines, outcomes, reused, strict=True)
        )
        return _checked(run, prepared, devices)
    except KernelNotMeasured as error:
        if not left_out:
            raise
        more = f"; and {len(left_out) - _SHOWN_LEFT_OUT} more" if len(left_out) > _SHOWN_LEFT_OUT else ""
        raise SearchFailed(
            f"the latency table lacks kernels that this search needs, as they could not be measured: "
            f"{'; '.join(left_out[:_SHOWN_LEFT_OUT])}{more}. What cannot be predicted for it: {error}"
        ) from None


def _device_latencies(
    run: SearchRun,
    device_id: str,
    networks: _Networks,
    baseline_tasks: Mapping[str, NetworkTask],
    kernel_tasks: Sequence[KernelTask],
    outcomes: Sequence[tuple[str, Outcome]],
    kernels_reused: int,
    all_left_out: list[str],
) -> DeviceLatencies:
    """The table of one device of what came back from it. What cannot be in it is added to `all_left_out`."""
    config = run.config.measuring
    where = run.where(device_id)
    network_tasks = [*baseline_tasks.values(), *networks.pruned_tasks]
    require_success(f"whole networks{where}", network_tasks, outcomes[: len(network_tasks)])
    measured = [_success(outcome) for _, outcome in outcomes[: len(network_tasks)]]
    _warn_rejected(run, network_tasks, measured, where)
    kernels, left_out = usable(run, kernel_tasks, outcomes[len(network_tasks) :], where)
    all_left_out += [f"{text}{where}" for text in left_out]
    if not kernels:
        raise SearchFailed(f"no kernel could be measured{where}; the first: {left_out[0]}")
    warn_mixed(run, [outcome for _, outcome in kernels], where)
    usual = usual_references(o.statistics for o in [*measured, *(o for _, o in kernels)])
    baselines = dict(zip(baseline_tasks, measured, strict=False))
    own = baselines[_own_baseline(config.networks)]
    table = LatencyTable(
        device_id=device_id,
        setup_id=setup_id(config.kernels),
        runtime=own.runtime,
        runtime_version=version_of(own),
        source=own.source,
        kernels=tuple(kernel_latency(t.kernel, at_usual_speed(o.statistics, usual)) for t, o in kernels),
        networks=tuple(
            network_latency(network.plan, at_usual_speed(result.statistics, usual))
            for network, result in zip(
                [networks.dense, *networks.pruned], [own, *measured[len(baselines) :]], strict=True
            )
            if result.verdict is not Verdict.REJECTED
        ),
    )
    summary = ProfileSummary(
        isa=_isa(run, own),
        threads=config.networks.threads,
        kernels_reused=kernels_reused,
        tflite_dense_ns=_usable_median_ns(baselines.get(TFLITE_RUNTIME), usual),
        native_dense_ns=_usable_median_ns(baselines.get(NATIVE_RUNTIME), usual),
        usual_references=usual,
        ncnn_dense_ns=_usable_median_ns(baselines.get(NCNN_RUNTIME), usual),
    )
    return _fitted(run, device_id, table, summary)


def _fitted(run: SearchRun, device_id: str, table: LatencyTable, summary: ProfileSummary) -> DeviceLatencies:
    if run.config.measuring.strategy is MeasuringStrategy.ACTIVE:
        return fitted_by_model(device_id, table, summary, run.config.method.seed)
    return fitted(device_id, table, summary)


def _kernels(run: SearchRun, prepared: Prepared) -> Sequence[KernelSpec]:
    """The kernels to measure before the search."""
    measuring = run.config.measuring
    if measuring.strategy is MeasuringStrategy.GRID:
        return knots_for(prepared.spec, prepared.space, measuring.max_kernels)
    rng = np.random.default_rng([run.config.method.seed, _FIRST_KERNELS])
    return first_kernels(prepared.spec, prepared.space, measuring.kernels.runtime, measuring.max_kernels, rng)


def _baseline_tasks(run: SearchRun, dense: FoldedNetwork, device_id: str) -> dict[str, NetworkTask]:
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
                    runtime_key(session, device_id, in_runtime.runtime)
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


def _num_reused(run: SearchRun, tasks: Sequence[KernelTask]) -> list[int]:
    """How many kernels the database knew of each device before this search asked; kept, as a restart could not tell
    any more.
    """
    found = run.load(STAGE)
    if found is not None:
        counts = found[1]["kernels_reused"]
        return [counts] if isinstance(counts, int) else [int(count) for count in counts]
    source = SqlLatencySource(run.database)
    reused = [
        source.progress(source.request(device_id, tasks, run.search_id)).succeeded for device_id in run.claim.device_ids
    ]
    run.save(STAGE, _ASKED, {"kernels_reused": reused})
    return reused


def _warn_rejected(
    run: SearchRun, tasks: Sequence[KernelTask | NetworkTask], measured: Sequence[MeasurementSummary], where: str
) -> None:
    for task, result in zip(tasks, measured, strict=True):
        if result.verdict is Verdict.REJECTED:
            reasons = ", ".join(r.value for r in result.reasons)
            run.message(f"{describe(task)} was rejected twice{where} ({reasons}) and is not used")


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
    """Every corner of the space must be predictable on every device, and latency bounds within reach, before the
    search begins.
    """
    fleet = result.fleet
    for genome in (prepared.space.smallest, prepared.space.unpruned):
        fleet.latencies_ms(lower(prepared.spec, prepared.space.decode(genome)))

    def latency_ms(genome: Genome, bound: Constraint) -> float:
        plan = lower(prepared.spec, prepared.space.decode(genome))
        model = fleet if bound.device is None else fleet.models[bound.device]
        return model.latency_ms(plan)

    latencies = [bound for bound in run.config.constraints if bound.metric is Metric.LATENCY_MS]
    check_budget(prepared.space, latencies, latency_ms)
    # Everything between the corners, too: a knot that is missing shows here, and not in the middle of the search. What
    # is predicted for it is kept, so the search does not pay for it again.
    figures = NetworkFigures(prepared.spec, prepared.space, fleet)
    figures.layer_latencies()
    if len(run.config.constraints) > 1:
        least_violating(bounds_problem(prepared.spec, prepared.space, run.config.constraints, figures))
