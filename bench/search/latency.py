"""Latencies of this machine for the comparison: a table of kernels, and whole networks beside dense TFLite."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.search.networks import NetworkCase
from bench.timing import Times, Variant, time_interleaved
from device_agent.contracts import (
    KernelTask,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    NetworkFormat,
    NetworkPlan,
    NetworkTask,
    setup_id,
)
from device_agent.measuring.pinning import choose_cores, pinned
from device_agent.measuring.task import measure_task
from device_agent.native.executor import NativeNetwork
from device_agent.runtimes import make_runtime
from search.algorithms.sampling import draw_at_level
from search.domain.objective import Metric
from search.domain.space import Decisions
from search.export import write_network
from search.latency.drift import at_usual_speed, usual_references
from search.latency.knots import knots_for
from search.latency.table import LatencyTable, dump_table, kernel_latency, load_table, network_latency
from search.problem import SearchProblem
from search.pruning.apply import PrunedModel, apply_decisions
from search.pruning.fold import to_plan_tensors

NATIVE_DENSE, TFLITE_DENSE = "native dense", "tflite dense"

_DEVICE = "bench"
_SEED = 20211015
_CALIBRATION_NETWORKS = 8
#: How often each network of the table is measured; the median counts.
_TURNS = 3
#: Runs of one network in a row, before another one has its turn in the caches.
_SAMPLE_NS = 20_000_000


def measured_table(case: NetworkCase, path: Path) -> LatencyTable:
    """The latency table of the case's space on this machine, measured as an agent does, kept at `path`."""
    if path.exists():
        return load_table(path.read_text())
    setups = case.config.measuring
    kernels = knots_for(case.spec, case.space, setups.max_kernels)
    print(f"measuring {len(kernels)} kernels of {case.name}", file=sys.stderr, flush=True)
    rng = np.random.default_rng(_SEED)
    levels = np.linspace(0.0, 1.0, _CALIBRATION_NETWORKS)
    decided = [Decisions(), *(case.space.decode(draw_at_level(rng, case.space, float(level))) for level in levels)]
    networks = []
    for decisions in decided:
        pruned = apply_decisions(case.model, case.spec, decisions)
        networks.append(to_plan_tensors(pruned, case.spec, decisions))
    # Networks in between kernels, and several times: what the machine does in some minutes falls on all of them.
    turns: list[list[Measurement]] = [[] for _ in networks]
    measured_kernels: list[Measurement] = []
    apart = -(-len(kernels) // (_TURNS * len(networks)))
    for index, kernel in enumerate(kernels):
        if index % apart == 0:
            which = index // apart % len(networks)
            turns[which].append(_succeeded(_measure_network(*networks[which], setups.networks)))
        measured_kernels.append(_succeeded(measure_task(KernelTask(kernel=kernel, setup=setups.kernels))))
    measured_networks = [
        sorted(found, key=lambda m: m.statistics.reference_ratio or 0.0)[len(found) // 2] for found in turns
    ]
    own = measured_networks[0]
    usual = usual_references(m.statistics for m in (*measured_networks, *measured_kernels))
    table = LatencyTable(
        device_id=_DEVICE,
        setup_id=setup_id(setups.kernels),
        runtime=own.provenance.runtime,
        runtime_version=own.provenance.runtime_version,
        source=own.provenance.source,
        kernels=tuple(
            kernel_latency(k, at_usual_speed(m.statistics, usual))
            for k, m in zip(kernels, measured_kernels, strict=True)
        ),
        networks=tuple(
            network_latency(plan, at_usual_speed(m.statistics, usual))
            for (plan, _), m in zip(networks, measured_networks, strict=True)
        ),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_table(table))
    return table


def time_networks(case: NetworkCase, networks: Mapping[str, tuple[PrunedModel, Decisions]], *, rounds: int) -> Times:
    """Thread-CPU times of the networks on the native runtime, interleaved with the unpruned one, all on one core.

    The unpruned network is there as `NATIVE_DENSE`, and in TFLite as `TFLITE_DENSE`.
    """
    with pinned(choose_cores(1)):
        return time_interleaved(_variants(case, networks), rounds, min_sample_ns=_SAMPLE_NS)


def _variants(case: NetworkCase, networks: Mapping[str, tuple[PrunedModel, Decisions]]) -> list[Variant]:
    variants = []
    unpruned = (apply_decisions(case.model, case.spec, Decisions()), Decisions())
    for name, (pruned, decisions) in {**networks, NATIVE_DENSE: unpruned}.items():
        plan, tensors = to_plan_tensors(pruned, case.spec, decisions)
        variants.append(Variant(name, NativeNetwork(plan, tensors).repeat))
    plan, tensors = to_plan_tensors(*unpruned[:1], case.spec, Decisions())
    data = write_network(plan, tensors, NetworkFormat.TFLITE)
    dense = make_runtime("tflite").load_network(data, NetworkFormat.TFLITE, plan.input_shape, 1)
    variants.append(Variant(TFLITE_DENSE, dense.repeat))
    return variants


def tflite_dense_ms(case: NetworkCase, problem: SearchProblem, path: Path, *, rounds: int) -> float:
    """What dense TFLite takes on the scale of the latency table: the table's latency of the unpruned network times the
    ratio of the two in one run, which is kept at `path`, so that a run that is taken up again chooses the same.
    """
    if not path.exists():
        ratio = time_networks(case, {}, rounds=rounds).ratio_of(TFLITE_DENSE, NATIVE_DENSE)
        path.write_text(json.dumps({"tflite_over_native_dense": ratio}) + "\n")
    known = problem.require_known((Metric.LATENCY_MS,), "the comparison")([case.space.unpruned])
    return json.loads(path.read_text())["tflite_over_native_dense"] * float(known[Metric.LATENCY_MS][0])


def _measure_network(
    plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float32]], setup: MeasuringSetup
) -> Measurement | MeasurementFailure:
    data = write_network(plan, tensors, NetworkFormat.PACKED)
    task = NetworkTask(
        artifact_sha256=hashlib.sha256(data).hexdigest(),
        artifact_bytes=len(data),
        format=NetworkFormat.PACKED,
        input_shape=plan.input_shape,
        setup=setup,
    )
    with tempfile.TemporaryDirectory(prefix="kerf-bench-") as folder:
        path = Path(folder) / "network.kerf"
        path.write_bytes(data)
        return measure_task(task, path)


def _succeeded(outcome: Measurement | MeasurementFailure) -> Measurement:
    if isinstance(outcome, MeasurementFailure):
        sys.exit(f"a measurement failed: {outcome.reason.value}: {outcome.detail}")
    return outcome
