"""Where the measurements of a search stand in the latency database, and how far they can be trusted."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from device_agent.contracts import ReportStatus
from search.domain.result import SeriesSummary
from server.models import MeasurementRow, SearchTaskRow, SeriesRow


def measured_series(session: Session, search_id: str) -> dict[str, tuple[SeriesSummary, ...]]:
    """The series of what a search asked for, by device, with the verdicts of its own measurements in them.

    A task that was shared counts too: its figure is used, whoever had it measured.
    """
    query = (
        select(MeasurementRow.series_id, MeasurementRow.verdict, func.count())
        .join(SearchTaskRow, SearchTaskRow.task_id == MeasurementRow.task_id)
        .where(SearchTaskRow.search_id == search_id, MeasurementRow.status == ReportStatus.ACCEPTED)
        .group_by(MeasurementRow.series_id, MeasurementRow.verdict)
        .order_by(MeasurementRow.series_id, MeasurementRow.verdict)
    )
    verdicts: dict[str, dict[str, int]] = defaultdict(dict)
    for series_id, verdict, count in session.execute(query):
        verdicts[series_id][verdict.value] = int(count)
    found: dict[str, list[SeriesSummary]] = defaultdict(list)
    for row in session.scalars(select(SeriesRow).where(SeriesRow.id.in_(verdicts)).order_by(SeriesRow.id)):
        found[row.device_id].append(
            SeriesSummary(
                id=row.id,
                runtime=row.runtime,
                runtime_version=row.runtime_version,
                agent_version=row.agent_version,
                verdicts=verdicts[row.id],
            )
        )
    return {device_id: tuple(series) for device_id, series in found.items()}
