"""What follows a failed attempt, or a measurement that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from device_agent.contracts import FailureReason, Measurement, Verdict, VerdictReason

#: A phone cools down, or is charged, within an hour and a half: 20 times 30 to 600 s. Leases that ran out count, too.
MAX_DEFERRALS = 20
FIRST_DEFERRAL_S = 30.0
MAX_DEFERRAL_S = 600.0

#: Time for whatever was wrong to pass, for reasons that tend to pass by themselves.
DELAYS_S: Mapping[FailureReason, float] = {
    FailureReason.ARTIFACT_UNAVAILABLE: 5.0,
    FailureReason.RESOURCE_EXHAUSTED: 5.0,
    FailureReason.AGENT_ERROR: 1.0,
}

#: What the next attempt may find otherwise. A wrong output or a wrong path through the runtime stays wrong.
_PASSING = frozenset(
    {
        VerdictReason.CI_TOO_WIDE,
        VerdictReason.TOO_FEW_SAMPLES,
        VerdictReason.THROTTLED,
        VerdictReason.FREQUENCY_MOVED,
        VerdictReason.TOO_HOT,
        VerdictReason.CONTENTION,
        VerdictReason.REFERENCE_DRIFTED,
        VerdictReason.CPU_QUOTA,
        VerdictReason.RUN_MODE_CHANGED,
        VerdictReason.NOT_COLD,
        VerdictReason.NOT_STEADY,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDecision:
    """Try again after `delay_s`, or not. `counts` uses up one of the attempts, `defers` one of the deferrals."""

    retry: bool
    delay_s: float = 0.0
    counts: bool = True
    defers: bool = False


def after_failure(reason: FailureReason, *, failures: int, deferrals: int, max_attempts: int) -> RetryDecision:
    """What to do after a failure, given how many attempts failed and were deferred before.

    An agent that shuts down is nobody's failure. A device that is not ready is asked again after 30, 60, 120 ... 600 s.
    """
    if not reason.is_transient:
        return RetryDecision(retry=False)
    if reason is FailureReason.AGENT_SHUTDOWN:
        return RetryDecision(retry=True, counts=False)
    if reason is FailureReason.DEVICE_NOT_READY:
        delay_s = min(MAX_DEFERRAL_S, FIRST_DEFERRAL_S * 2.0**deferrals)
        return RetryDecision(retry=deferrals + 1 < MAX_DEFERRALS, delay_s=delay_s, counts=False, defers=True)
    return RetryDecision(retry=failures + 1 < max_attempts, delay_s=DELAYS_S.get(reason, 0.0))


def after_measurement(measurement: Measurement, *, failures: int, max_attempts: int) -> RetryDecision:
    """A rejected measurement is tried again if what was wrong may pass; the last one stands, as rejected."""
    is_passing = bool(measurement.reasons) and set(measurement.reasons) <= _PASSING
    if measurement.verdict is Verdict.REJECTED and is_passing and failures + 1 < max_attempts:
        return RetryDecision(retry=True)
    return RetryDecision(retry=False, counts=False)
