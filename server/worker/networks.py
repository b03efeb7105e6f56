"""Whole networks on their way to the device: exported, stored, and described as tasks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import SIMULATED_RUNTIME, MeasuringSetup, NetworkFormat, NetworkPlan, NetworkTask
from search.domain.space import Decisions
from search.export import write_network
from search.pruning.apply import PrunedModel, apply_decisions
from search.pruning.fold import to_plan_tensors
from server.worker.run import SearchRun
from server.worker.stages.preparing import Prepared

NATIVE_RUNTIME = "native"
TFLITE_RUNTIME = "tflite"
NCNN_RUNTIME = "ncnn"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldedNetwork:
    """A network as it will run: its plan and its weights with batch norm folded in."""

    plan: NetworkPlan
    tensors: dict[str, NDArray[np.float32]]


def fold(prepared: Prepared, pruned: PrunedModel, decisions: Decisions) -> FoldedNetwork:
    plan, tensors = to_plan_tensors(pruned, prepared.spec, decisions)
    return FoldedNetwork(plan=plan, tensors=tensors)


def untrained(prepared: Prepared, decisions: Decisions) -> FoldedNetwork:
    """A candidate with inherited weights: good for timing, not for accuracy."""
    return fold(prepared, apply_decisions(prepared.model, prepared.spec, decisions), decisions)


def network_task(
    run: SearchRun, network: FoldedNetwork, form: NetworkFormat, setup: MeasuringSetup, num_outputs: int = 1
) -> NetworkTask:
    """Store the network in `form` and describe the task of running it."""
    data = write_network(network.plan, network.tensors, form)
    return NetworkTask(
        artifact_sha256=run.put_artifact(data),
        artifact_bytes=len(data),
        format=form,
        input_shape=network.plan.input_shape,
        setup=setup,
        num_outputs=num_outputs,
    )


def search_task(run: SearchRun, network: FoldedNetwork, num_outputs: int = 1) -> NetworkTask:
    """The task of running the network as the search's config says."""
    setup = run.config.measuring.networks
    return network_task(run, network, search_format(setup), setup, num_outputs)


def search_format(setup: MeasuringSetup) -> NetworkFormat:
    """The form that a setup's runtime runs."""
    return NetworkFormat.TFLITE if setup.runtime == TFLITE_RUNTIME else NetworkFormat.PACKED


def setup_in(setup: MeasuringSetup, runtime: str) -> MeasuringSetup:
    """The same way of measuring in another runtime; a simulated device simulates that, too."""
    if setup.runtime == SIMULATED_RUNTIME:
        return setup
    return dataclasses.replace(setup, runtime=runtime)
