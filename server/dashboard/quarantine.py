"""What is in quarantine as its page shows it: why, where it is not tried, and how it is let out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import FailureReason, KernelSpec, decode
from server.dashboard.wording import kernel_words
from server.fleet.quarantine import Quarantined, list_quarantined
from server.models import KernelRow

#: About what a reader takes in; `kerf latency quarantine` lists all.
SHOWN_SUBJECTS = 30

_DID = {FailureReason.CRASHED: "crashed", FailureReason.TIMED_OUT: "hung"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CasualtyView:
    """A device on which every attempt failed. `did` is "crashed" or "hung"; `detail` is what the last attempt told."""

    device_id: str
    device_name: str
    did: str
    failures: int
    detail: str
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedView:
    """A kernel, or a network, that a version of a runtime does not survive."""

    subject: str
    what: str
    detail: str
    runtime: str
    runtime_version: str
    is_everywhere: bool
    casualties: tuple[CasualtyView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinePage:
    subjects: tuple[QuarantinedView, ...]
    more_subjects: bool


def quarantine_page(session: Session, now: float) -> QuarantinePage:
    """In the order of the subjects."""
    found = list_quarantined(session, after=None, limit=SHOWN_SUBJECTS + 1)
    shown = found[:SHOWN_SUBJECTS]
    specs = _specs(session, shown)
    return QuarantinePage(
        subjects=tuple(_view(item, specs.get(item.kernel_id or ""), now) for item in shown),
        more_subjects=len(found) > SHOWN_SUBJECTS,
    )


def _specs(session: Session, items: Sequence[Quarantined]) -> dict[str, dict[str, Any]]:
    wanted = {item.kernel_id for item in items if item.kernel_id is not None}
    rows = session.execute(select(KernelRow.id, KernelRow.spec).where(KernelRow.id.in_(wanted)))
    return {row.id: row.spec for row in rows}


def _view(item: Quarantined, spec: dict[str, Any] | None, now: float) -> QuarantinedView:
    subject, runtime, version, _ = item.key
    if spec is None:
        what, detail = "whole network", (item.artifact_sha256 or "")[:12]
    else:
        what, detail = kernel_words(decode(KernelSpec, spec))
    return QuarantinedView(
        subject=subject,
        what=what,
        detail=detail,
        runtime=runtime,
        runtime_version=version,
        is_everywhere=item.is_everywhere,
        casualties=tuple(
            CasualtyView(
                device_id=casualty.device_id,
                device_name=casualty.device_name,
                did=_DID[casualty.reason],
                failures=casualty.failures,
                detail=casualty.detail,
                age_s=now - casualty.finished_at,
            )
            for casualty in item.casualties
        ),
    )
