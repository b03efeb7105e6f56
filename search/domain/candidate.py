"""One design and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from device_agent.contracts import content_id
from search.domain.objective import Metric
from search.domain.space import Genome


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A point of a search space."""

    space_id: str
    genome: Genome


def candidate_id(candidate: Candidate) -> str:
    """The identity of a candidate: equal designs of one space are one candidate."""
    return content_id("c", candidate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The figures of one candidate. `violation` sums the relative excess over all constraints; 0 is feasible.

    `latencies_ms` has the latency on each device where there are several: `latency_ms` is then made of them.

    `failure` says why the candidate could not be evaluated: then figures may be NaN or missing, and it is on no front.
    `generation` is that in which it was scored last, where scores of different generations do not compare.
    """

    metrics: Mapping[Metric, float]
    violation: float = 0.0
    failure: str | None = None
    generation: int | None = None
    latencies_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedCandidate:
    candidate: Candidate
    evaluation: Evaluation
