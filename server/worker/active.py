"""Measuring between generations: kernels where uncertainty meets the front, and the model refitted with them.

A round depends on the stored table and the archive alone. It is stored as a whole (table, archive and checkpoint in one
transaction, by the stage), so one that was interrupted chooses the same kernels again and finds their tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from device_agent.contracts import KernelSpec, KernelTask, kernel_id
from search.domain.candidate import EvaluatedCandidate
from search.domain.config import MeasuringStrategy
from search.domain.objective import Metric
from search.latency.active import kernels_of_round, round_ends
from search.latency.drift import at_usual_speed
from search.latency.families import distinct_kernels, without_seed
from search.latency.model.front import MIN_PROBABILITY, front_belief, kernels_for_front
from search.latency.model.kernel_model import KernelLatencyModel
from search.latency.table import KernelLatency, kernel_latency
from search.loop import comparable
from search.lowering import lower
from search.selection import best_fronts
from server.states import JobStage
from server.worker.latencies import DeviceLatencies, Profile, refitted
from server.worker.measuring import Order, measure, usable, version_of, warn_mixed
from server.worker.run import SearchFailed, SearchRun
from server.worker.stages.preparing import Prepared

#: Candidates that a round looks at: the best fronts.
_MOST_CANDIDATES = 128

#: A candidate that exceeds its bounds by no more than this (relative, in sum) may turn out to keep them.
_NEAR_BOUND = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How far measuring is: `ends` are the generations after which there is a round, `done` counts those stored.

    `left_out` are the ids of kernels that were chosen and could not be measured: they are not chosen again.
    """

    ends: tuple[int, ...]
    done: int = 0
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: SearchRun, stored: Mapping[str, Any] | None) -> Rounds:
        """Those of the search, as far as its checkpoint tells; none where a grid was measured."""
        if run.config.measuring.strategy is MeasuringStrategy.GRID:
            return cls(ends=())
        ends = round_ends(run.config.method.generations, run.config.measuring.round_generations)
        found = {} if stored is None else stored["rounds"]
        return cls(ends=ends, done=int(found.get("done", 0)), left_out=tuple(found.get("left_out", ())))

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint has of them beside the state of the search."""
        return {"rounds": {"done": self.done, "left_out": list(self.left_out)}} if self.ends else {}

    @property
    def are_over(self) -> bool:
        return self.done == len(self.ends)


def measured_round(
    run: SearchRun,
    prepared: Prepared,
    profile: Profile,
    archive: Sequence[EvaluatedCandidate],
    rounds: Rounds,
    *,
    is_last: bool,
) -> tuple[Profile, Rounds]:
    """Measure the kernels of the next round, as far as the budget goes, and refit the model with them."""
    (device,) = profile.devices
    after = replace(rounds, done=len(rounds.ends) if is_last else rounds.done + 1)
    rounds_left = 1 if is_last else len(rounds.ends) - rounds.done
    left = run.config.measuring.max_kernels - len(device.table.kernels) - len(rounds.left_out)
    networks, errors = _near_front(run, prepared, archive)
    kernels = _chosen(device, networks, errors, kernels_of_round(max(left, 0), rounds_left), rounds.left_out)
    what = f"round {after.done} of {len(rounds.ends)}"
    if not kernels:
        reason = "measuring.max_kernels is used up" if left <= 0 else "every kernel near the front is measured"
        run.message(f"{what}: nothing to measure, as {reason}")
        return profile, after
    new = _measured(run, device, kernels, f"{what}: {len(kernels)} kernels near the front")
    measured = {entry.kernel for entry in new}
    left_out = (*rounds.left_out, *(kernel_id(kernel) for kernel in kernels if kernel not in measured))
    if new:
        table = replace(device.table, kernels=(*device.table.kernels, *new))
        device = refitted(device, table, run.config.method.seed)
    before, now = (_relative_std(d, networks, errors) for d in (profile.devices[0], device))
    run.message(
        f"{what}: {len(new)} kernels measured, {len(device.table.kernels)} in all; latencies near the front are "
        f"predicted to {100 * now:.1f} % after {100 * before:.1f} % (standard deviation, median)"
    )
    return replace(profile, devices=(device,)), replace(after, left_out=left_out)


def _measured(
    run: SearchRun, device: DeviceLatencies, kernels: Sequence[KernelSpec], note: str
) -> tuple[KernelLatency, ...]:
    """Those of `kernels` that could be measured, at the speed that the device's table has."""
    table = device.table
    tasks = [KernelTask(kernel=kernel, setup=run.config.measuring.kernels) for kernel in kernels]
    order = Order(device_id=device.device_id, tasks=tasks, source=table.source)
    (outcomes,) = measure(run, JobStage.SEARCHING, [order], note)
    found, _ = usable(run, tasks, outcomes, "")
    for _, outcome in found:
        if version_of(outcome) != table.runtime_version:
            raise SearchFailed(
                f"the runtime {table.runtime} of {device.device_id} was {table.runtime_version} when the search began "
                f"and is {version_of(outcome)} now, and one table never joins both: submit the search again"
            )
    warn_mixed(run, [outcome for _, outcome in found], "")
    usual = device.summary.usual_references
    return tuple(kernel_latency(task.kernel, at_usual_speed(o.statistics, usual)) for task, o in found)


def _near_front(
    run: SearchRun, prepared: Prepared, archive: Sequence[EvaluatedCandidate]
) -> tuple[list[list[KernelSpec]], list[float]]:
    """The kernels and the errors of the best candidates, those just beyond a bound among them."""
    known = [
        replace(item, evaluation=replace(item.evaluation, violation=0.0))
        if 0.0 < item.evaluation.violation <= _NEAR_BOUND
        else item
        for item in comparable(archive)
    ]
    near = best_fronts(known, run.config.objectives, _MOST_CANDIDATES)
    (metric,) = (o.metric for o in run.config.objectives if o.metric is not Metric.LATENCY_MS)
    plans = [lower(prepared.spec, prepared.space.decode(item.candidate.genome)) for item in near]
    kernels = [[without_seed(kernel) for kernel in plan.kernels] for plan in plans]
    return kernels, [item.evaluation.metrics[metric] for item in near]


def _chosen(
    device: DeviceLatencies,
    networks: Sequence[Sequence[KernelSpec]],
    errors: Sequence[float],
    count: int,
    left_out: Sequence[str],
) -> list[KernelSpec]:
    if not networks or count == 0:
        return []
    pool = [kernel for kernel in distinct_kernels(networks) if kernel_id(kernel) not in left_out]
    return kernels_for_front(_model_of(device), networks, errors, count, pool=pool)


def _relative_std(device: DeviceLatencies, networks: Sequence[Sequence[KernelSpec]], errors: Sequence[float]) -> float:
    """How uncertain the latency of a candidate near the front is, relative: the median."""
    belief = front_belief(_model_of(device), networks, errors)
    return float(np.median(belief.log_std[belief.probability >= MIN_PROBABILITY]))


def _model_of(device: DeviceLatencies) -> KernelLatencyModel:
    model = device.model.predictor
    assert isinstance(model, KernelLatencyModel)
    return model
