"""What the server makes of a reported measurement by itself, from its raw samples.

Statistics and verdict follow from samples and conditions. An agent may be old, broken or tampered with: a report whose
statistics are not those of its samples is refused, and a verdict that is milder than the samples allow is put right.
"""

from __future__ import annotations

import dataclasses
import math

import structlog

from device_agent.contracts import Measurement, MeasuringSetup, Verdict, VerdictReason
from device_agent.contracts.statistics import summarize
from device_agent.contracts.verdict import FINDINGS, judge

log = structlog.get_logger(__name__)

#: Two ways to add up the same samples differ by less than this.
_RELATIVE_TOLERANCE = 1e-6
#: Added after the first agents: a report without them is an older one's.
_LATER_STATISTICS = frozenset({"stdev_ns", "trimmed_mean_ns", "unit_cv"})

_SEVERITY = (Verdict.TRUSTED, Verdict.NOISY, Verdict.REJECTED)


def why_inconsistent(measurement: Measurement, setup: MeasuringSetup) -> str | None:
    """How the measurement contradicts its own samples; None where it does not."""
    if not measurement.blocks:
        return "the report has no samples"
    for i, block in enumerate(measurement.blocks):
        if not block.wall_ns or len(block.wall_ns) != len(block.thread_cpu_ns):
            counts = f"{len(block.wall_ns)} of wall time and {len(block.thread_cpu_ns)} of CPU time"
            return f"block {i} of the report lacks samples: it has {counts}"
    reported = measurement.statistics
    derived = summarize(measurement.blocks, setup.clock, reported.reference_name)
    # Counts first: where samples are missing, everything else differs as well.
    for name in sorted((field.name for field in dataclasses.fields(derived)), key=lambda n: not n.startswith("num_")):
        told, found = getattr(reported, name), getattr(derived, name)
        if told is None and name in _LATER_STATISTICS:
            continue
        if not _agree(told, found):
            return f"the report's statistics do not follow from its samples: {name} is {told!r}, not {found!r}"
    return None


def judged(measurement: Measurement, setup: MeasuringSetup) -> Measurement:
    """The measurement with the verdict that its samples and conditions lead to, if that is worse than the reported one.

    What only the device can see is taken from its report, and no reported reason is dropped.
    """
    verdict, reasons = judge(
        measurement.blocks,
        measurement.statistics,
        setup,
        measurement.before,
        measurement.after,
        FINDINGS.intersection(measurement.reasons),
        measurement.usual_reference_ns,
    )
    every = {*reasons, *measurement.reasons}
    worst = max(verdict, measurement.verdict, key=_SEVERITY.index)
    if (worst, every) == (measurement.verdict, set(measurement.reasons)):
        return measurement
    log.warning(
        "verdict_corrected",
        agent_version=measurement.provenance.agent_version,
        reported=measurement.verdict.value,
        verdict=worst.value,
        reasons=[reason.value for reason in VerdictReason if reason in every],
    )
    return dataclasses.replace(
        measurement, verdict=worst, reasons=tuple(reason for reason in VerdictReason if reason in every)
    )


def _agree(told: object, found: object) -> bool:
    if isinstance(told, float) and isinstance(found, float):
        return math.isclose(told, found, rel_tol=_RELATIVE_TOLERANCE, abs_tol=1e-6)
    return told == found
