"""One measurement out of several fresh processes. Standard library only: this runs in the agent's own process.

Where a process's memory lies, which tiles its tuning took, which state the processor was in: all this stays the same
within a process and differs between two. Blocks of one process therefore agree with each other better than with the
next run. A figure that is to be found again is made of several processes, and its interval counts them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import median

from device_agent.contracts.lease import KernelTask, NetworkTask
from device_agent.contracts.measurement import (
    Block,
    Conditions,
    FailureReason,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    ThermalMode,
    VerdictReason,
)
from device_agent.contracts.statistics import is_narrow, median_interval, summarize, unit_medians
from device_agent.contracts.verdict import FINDINGS, judge

#: A process takes this many blocks, or more where fewer processes than blocks are asked for: a median of its own.
BLOCKS_PER_PROCESS = 3
#: Where processes disagree, up to this many times as many of them as asked for are started.
MOST_PROCESSES_FACTOR = 2
#: Later processes of a sustained run find a hot device: they are loaded for this part of the time of the first.
LATER_LOAD_SHARE = 0.2

Outcome = Measurement | MeasurementFailure
Task = KernelTask | NetworkTask


def part_of(setup: MeasuringSetup, index: int) -> MeasuringSetup:
    """What the process with this number does of a setup with several."""
    blocks = max(BLOCKS_PER_PROCESS, math.ceil(setup.min_blocks / setup.processes))
    is_later_load = setup.thermal_mode is ThermalMode.SUSTAINED and index > 0
    return dataclasses.replace(
        setup,
        processes=1,
        min_blocks=blocks,
        max_blocks=blocks,
        budget_s=setup.budget_s / setup.processes,
        load_s=LATER_LOAD_SHARE * setup.load_s if is_later_load else setup.load_s,
    )


def measure_in_processes(task: Task, run: Callable[[Task], Outcome]) -> Outcome:
    """Have `run` measure `task` in as many fresh processes as its setup asks for, and put their parts together.

    Processes are added until the interval over them is narrow enough, up to twice as many. The first failure is the
    failure of the whole.
    """
    setup = task.setup
    if setup.processes == 1:
        return run(task)
    parts: list[Measurement] = []
    while len(parts) < MOST_PROCESSES_FACTOR * setup.processes:
        outcome = run(dataclasses.replace(task, setup=part_of(setup, len(parts))))
        if isinstance(outcome, MeasurementFailure):
            return outcome
        parts.append(outcome)
        if len(parts) >= setup.processes:
            medians = unit_medians(_blocks(parts), setup.clock)
            if is_narrow(median_interval(medians), median(medians), setup.ci_half_width):
                break
    return merge(parts, setup)


def merge(parts: Sequence[Measurement], setup: MeasuringSetup) -> Outcome:
    """The measurement that consists of what several processes took, in their order.

    A failure where the processes did not run the same binary: the runtime was changed meanwhile.
    """
    first = parts[0]
    binaries = {(p.provenance.runtime_version, p.provenance.runtime_sha256, p.provenance.isa) for p in parts}
    if len(binaries) > 1:
        return MeasurementFailure(
            reason=FailureReason.AGENT_ERROR, detail="the runtime changed between the processes of one measurement"
        )
    blocks = _blocks(parts)
    statistics = summarize(blocks, setup.clock, first.statistics.reference_name)
    findings = {reason for part in parts for reason in part.reasons if reason in FINDINGS}
    if len({part.output_sha256 for part in parts}) > 1:
        findings.add(VerdictReason.WRONG_OUTPUT)
    before, after = first.before, _after(parts)
    verdict, reasons = judge(blocks, statistics, setup, before, after, findings, first.usual_reference_ns)
    return dataclasses.replace(
        first,
        blocks=blocks,
        warmup_runs=sum(part.warmup_runs for part in parts),
        statistics=statistics,
        verdict=verdict,
        reasons=reasons,
        after=after,
        duration_s=math.fsum(part.duration_s for part in parts),
    )


def _blocks(parts: Sequence[Measurement]) -> tuple[Block, ...]:
    return tuple(dataclasses.replace(block, process=i) for i, part in enumerate(parts) for block in part.blocks)


def _after(parts: Sequence[Measurement]) -> Conditions:
    """The conditions at the end, worst of all processes. Counters that belong to one process are those of the first at
    the beginning plus what every process added: so their differences are sums over the processes.
    """
    degrees = [p.after.temperature_celsius for p in parts if p.after.temperature_celsius is not None]
    throttled = [c.throttled for p in parts for c in (p.before, p.after) if c.throttled is not None]
    return dataclasses.replace(
        parts[-1].after,
        temperature_celsius=max(degrees, default=None),
        throttled=any(throttled) if throttled else None,
        uptime_s=_summed(parts, lambda c: c.uptime_s),
        core_busy_s=_summed(parts, lambda c: c.core_busy_s),
        process_cpu_s=_summed(parts, lambda c: c.process_cpu_s),
    )


def _summed(parts: Sequence[Measurement], read: Callable[[Conditions], float | None]) -> float | None:
    total = read(parts[0].before)
    for part in parts:
        start, end = read(part.before), read(part.after)
        if total is None or start is None or end is None:
            return None
        total += end - start
    return total
