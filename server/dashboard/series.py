"""Series of a device as its page shows them: which is the present one, and why it began."""

from __future__ import annotations

from collections.abc import Sequence

from server.dashboard.pages import SeriesView
from server.latency.series import differing_parts, key_of
from server.models import SeriesRow

#: What a change of these parts of the key is called; a change of several parts of one event has one name.
_EVENTS = (
    ({"runtime version", "runtime binary", "instruction set"}, "runtime upgraded"),
    ({"agent version"}, "agent upgraded"),
    ({"device profile"}, "device or system changed"),
    ({"governor"}, "governor changed"),
    ({"affinity"}, "other cores"),
    ({"source"}, "source changed"),
)


def series_views(rows: Sequence[SeriesRow], now: float) -> tuple[SeriesView, ...]:
    """The series, the one that was measured in last first. `rows` are those of one device."""
    ordered = sorted(rows, key=lambda row: (-row.last_at, row.id))
    return tuple(_view(row, _predecessor(row, rows), now) for row in ordered)


def _predecessor(row: SeriesRow, rows: Sequence[SeriesRow]) -> SeriesRow | None:
    """The series that `row` took the place of: the last that began before it, in the same runtime and setup."""
    earlier = [
        other
        for other in rows
        if (other.runtime, other.setup_id) == (row.runtime, row.setup_id)
        and (other.first_at, other.id) < (row.first_at, row.id)
    ]
    return max(earlier, key=lambda other: (other.first_at, other.id), default=None)


def change_words(before: SeriesRow, after: SeriesRow) -> str:
    """Why `after` is another series than `before`, such as "runtime upgraded: 1.0 → 1.1"."""
    parts = set(differing_parts(key_of(before), key_of(after)))
    words = [name for known, name in _EVENTS if parts & known]
    text = " and ".join(words) or "another key"
    if "runtime version" in parts:
        text += f": {before.runtime_version} → {after.runtime_version}"
    elif "governor" in parts:
        text += f": {before.governor or 'unknown'} → {after.governor or 'unknown'}"
    return text


def _view(row: SeriesRow, before: SeriesRow | None, now: float) -> SeriesView:
    return SeriesView(
        series_id=row.id,
        runtime=row.runtime,
        runtime_version=row.runtime_version,
        runtime_sha256=row.runtime_sha256,
        threads=row.threads,
        cores=", ".join(str(core) for core in row.affinity),
        governor=row.governor or "",
        agent_version=row.agent_version,
        source=row.source.value,
        change="" if before is None else change_words(before, row),
        num_measurements=row.num_measurements,
        since_s=now - row.first_at,
        last_s=now - row.last_at,
    )
