"""Measuring between generations: kernels where uncertainty meets the front, and the model refitted with them.

A round depends on the stored table and the archive alone. It is stored as a whole (table, archive and checkpoint in one
transaction, by the stage), so one that was interrupted chooses the same kernels again and finds their tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from device_agent.contracts import KernelSpec, KernelTask, kernel_id
from search.domain.candidate import EvaluatedCandidate
from search.domain.config import MeasuringStrategy
from search.domain.objective import Metric
from search.latency.active import kernels_of_round, round_ends
from search.latency.drift import at_usual_speed
from search.latency.families import distinct_kernels, without_seed
from search.latency.model.front import MIN_PROBABILITY, FrontBelief, belief_over, device_belief, kernels_for
from search.latency.model.kernel_model import KernelLatencyModel
from search.latency.table import KernelLatency, kernel_latency
from search.loop import comparable
from search.lowering import lower
from search.pareto import FloatArray
from search.selection import best_fronts
from server.states import JobStage
from server.worker.latencies import DeviceLatencies, Profile, refitted
from server.worker.measuring import Order, Outcome, measure, usable, version_of, warn_mixed
from server.worker.run import SearchFailed, SearchRun
from server.worker.stages.preparing import Prepared

#: Candidates that a round looks at: the best fronts.
_MOST_CANDIDATES = 128

#: A candidate that exceeds its bounds by no more than this (relative, in sum) may turn out to keep them.
_NEAR_BOUND = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How far measuring is: `ends` are the generations after which there is a round, `done` counts those stored.

    `left_out` are, for each device, the ids of kernels that were chosen and could not be measured there: they are not
    chosen again.
    """

    ends: tuple[int, ...]
    done: int = 0
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: SearchRun, stored: Mapping[str, Any] | None) -> Rounds:
        """Those of the search, as far as its checkpoint tells; none where a grid was measured."""
        if run.config.measuring.strategy is MeasuringStrategy.GRID:
            return cls(ends=())
        ends = round_ends(run.config.method.generations, run.config.measuring.round_generations)
        found = {} if stored is None else stored["rounds"]
        left_out = {device: tuple(ids) for device, ids in found.get("left_out", {}).items()}
        return cls(ends=ends, done=int(found.get("done", 0)), left_out=left_out)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint has of them beside the state of the search."""
        left_out = {device: list(ids) for device, ids in self.left_out.items()}
        return {"rounds": {"done": self.done, "left_out": left_out}} if self.ends else {}

    def left_out_on(self, device_id: str) -> tuple[str, ...]:
        return self.left_out.get(device_id, ())

    @property
    def are_over(self) -> bool:
        return self.done == len(self.ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class _NearFront:
    """The best candidates: their kernels, with seed 0, and their errors."""

    networks: tuple[tuple[KernelSpec, ...], ...]
    errors: tuple[float, ...]


def measured_round(
    run: SearchRun,
    prepared: Prepared,
    profile: Profile,
    archive: Sequence[EvaluatedCandidate],
    rounds: Rounds,
    *,
    is_last: bool,
) -> tuple[Profile, Rounds]:
    """Measure the kernels of the next round, as far as each device's budget goes, and refit the models with them."""
    after = replace(rounds, done=len(rounds.ends) if is_last else rounds.done + 1)
    rounds_left = 1 if is_last else len(rounds.ends) - rounds.done
    what = f"round {after.done} of {len(rounds.ends)}"
    near = _near_front(run, prepared, archive)
    if not near.networks:
        run.message(f"{what}: nothing to measure, as no candidate is near the bounds")
        return profile, after
    before = _belief(profile, near)
    budgets = [_left(run, device, rounds) for device in profile.devices]
    bounded = {bound.device for bound in run.config.constraints}
    chosen = []
    for place, (device, left) in enumerate(zip(profile.devices, budgets, strict=True)):
        importance = before.importance(place, is_bounded=device.device_id in bounded)
        count = kernels_of_round(left, rounds_left)
        chosen.append(_chosen(device, near, importance, count, rounds.left_out_on(device.device_id)))
    if not any(chosen):
        reason = "no kernel left would tell more of the front" if any(budgets) else "measuring.max_kernels is used up"
        run.message(f"{what}: nothing to measure, as {reason}")
        return profile, after
    counts = _kernels(run, profile, [len(kernels) for kernels in chosen])
    found = _measured(run, profile, chosen, f"{what}: {counts} near the front")
    devices = tuple(
        refitted(device, replace(device.table, kernels=(*device.table.kernels, *new)), run.config.method.seed)
        if new
        else device
        for device, new in zip(profile.devices, found, strict=True)
    )
    left_out = {
        device.device_id: (*rounds.left_out_on(device.device_id), *_missing(kernels, new))
        for device, kernels, new in zip(devices, chosen, found, strict=True)
    }
    measured = replace(profile, devices=devices)
    run.message(
        f"{what}: {_kernels(run, profile, [len(new) for new in found])} measured, "
        f"{sum(len(device.table.kernels) for device in devices)} in all; latencies near the front are "
        f"predicted to {100 * _relative_std(_belief(measured, near)):.1f} % after {100 * _relative_std(before):.1f} % "
        "(standard deviation, median)"
    )
    return measured, replace(after, left_out={device: ids for device, ids in left_out.items() if ids})


def _left(run: SearchRun, device: DeviceLatencies, rounds: Rounds) -> int:
    """How many kernels may still be asked of a device."""
    asked = len(device.table.kernels) + len(rounds.left_out_on(device.device_id))
    return max(0, run.config.measuring.max_kernels - asked)


def _missing(kernels: Sequence[KernelSpec], new: Sequence[KernelLatency]) -> list[str]:
    measured = {entry.kernel for entry in new}
    return [kernel_id(kernel) for kernel in kernels if kernel not in measured]


def _kernels(run: SearchRun, profile: Profile, counts: Sequence[int]) -> str:
    """The number of kernels in words; with several devices that of each as well."""
    each = ", ".join(
        f"{n} on {run.device_names[device.device_id]!r}" for n, device in zip(counts, profile.devices, strict=True)
    )
    return f"{sum(counts)} kernels" + (f" ({each})" if len(counts) > 1 else "")


def _measured(
    run: SearchRun, profile: Profile, chosen: Sequence[Sequence[KernelSpec]], note: str
) -> list[tuple[KernelLatency, ...]]:
    """For each device those of its `chosen` kernels that could be measured, at the speed that its table has. All
    devices measure at the same time.
    """
    orders = [
        Order(
            device_id=device.device_id,
            tasks=[KernelTask(kernel=kernel, setup=run.config.measuring.kernels) for kernel in kernels],
            source=device.table.source,
        )
        for device, kernels in zip(profile.devices, chosen, strict=True)
    ]
    outcomes = measure(run, JobStage.SEARCHING, orders, note)
    return [
        _usable(run, device, order, own) for device, order, own in zip(profile.devices, orders, outcomes, strict=True)
    ]


def _usable(
    run: SearchRun, device: DeviceLatencies, order: Order, outcomes: Sequence[tuple[str, Outcome]]
) -> tuple[KernelLatency, ...]:
    """What came back from one device."""
    table, where = device.table, run.where(device.device_id)
    tasks = [task for task in order.tasks if isinstance(task, KernelTask)]
    found, _ = usable(run, tasks, outcomes, where)
    for _, outcome in found:
        if version_of(outcome) != table.runtime_version:
            raise SearchFailed(
                f"the runtime {table.runtime} of {device.device_id} was {table.runtime_version} when the search began "
                f"and is {version_of(outcome)} now, and one table never joins both: submit the search again"
            )
    warn_mixed(run, [outcome for _, outcome in found], where)
    usual = device.summary.usual_references
    return tuple(kernel_latency(task.kernel, at_usual_speed(o.statistics, usual)) for task, o in found)


def _near_front(run: SearchRun, prepared: Prepared, archive: Sequence[EvaluatedCandidate]) -> _NearFront:
    """The best candidates, those just beyond a bound among them."""
    known = [
        replace(item, evaluation=replace(item.evaluation, violation=0.0))
        if 0.0 < item.evaluation.violation <= _NEAR_BOUND
        else item
        for item in comparable(archive)
    ]
    near = best_fronts(known, run.config.objectives, _MOST_CANDIDATES)
    (metric,) = (o.metric for o in run.config.objectives if o.metric is not Metric.LATENCY_MS)
    plans = [lower(prepared.spec, prepared.space.decode(item.candidate.genome)) for item in near]
    return _NearFront(
        networks=tuple(tuple(without_seed(kernel) for kernel in plan.kernels) for plan in plans),
        errors=tuple(item.evaluation.metrics[metric] for item in near),
    )


def _belief(profile: Profile, near: _NearFront) -> FrontBelief:
    """What the models of all devices know of the candidates near the front."""
    devices = [device_belief(_model_of(d), d.model.correction, near.networks) for d in profile.devices]
    return belief_over(devices, near.errors, profile.over)


def _chosen(
    device: DeviceLatencies, near: _NearFront, importance: FloatArray, count: int, left_out: Sequence[str]
) -> list[KernelSpec]:
    """The kernels that a device is asked for: where its own uncertainty meets the front."""
    if count == 0:
        return []
    pool = [kernel for kernel in distinct_kernels(near.networks) if kernel_id(kernel) not in left_out]
    return kernels_for(_model_of(device), near.networks, importance, count, pool=pool)


def _relative_std(belief: FrontBelief) -> float:
    """How uncertain the latency of a candidate near the front is, relative: the median."""
    return float(np.median(belief.log_std[belief.probability >= MIN_PROBABILITY]))


def _model_of(device: DeviceLatencies) -> KernelLatencyModel:
    model = device.model.predictor
    assert isinstance(model, KernelLatencyModel)
    return model
