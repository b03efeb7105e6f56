"""The card of a series as its page shows it. It is read, never worked out here: the page stays quick."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from search.latency.card import ErrorSummary
from server.dashboard.formats import device_time, duration, short_id
from server.dashboard.pages import CardPage, DeviceLink, DriftRow, ErrorRow, Tile
from server.dashboard.pictures import Scatter
from server.dashboard.scatter import ScatterValue, log_scatter
from server.dashboard.series import series_views
from server.dashboard.wording import StateLabel
from server.latency.card import CardPoint, SeriesCard, stored_card
from server.latency.drift import checks_of
from server.latency.series import get_series
from server.models import DeviceRow
from server.states import DriftOutcome

SHOWN_FAMILIES = 40
SHOWN_CHECKS = 12

_NS_PER_MS = 1e6

_MEASURING = StateLabel(text="being measured", tone="busy")
_OUTCOMES = {
    DriftOutcome.AGREES: StateLabel(text="agrees", tone="good"),
    DriftOutcome.DRIFTED: StateLabel(text="drifted", tone="bad"),
    DriftOutcome.INCONCLUSIVE: StateLabel(text="not conclusive", tone="idle"),
}


def card_page(session: Session, series_id: str, now: float) -> CardPage:
    """Raises `NotFound`."""
    series = get_series(session, series_id)
    device = session.get_one(DeviceRow, series.device_id)
    found = stored_card(session, series_id)
    card = None if found is None else found[0]
    checks = checks_of(session, series_id, limit=SHOWN_CHECKS)
    finished = [check for check in checks if check.row.finished_at is not None]
    families = [] if card is None else card.families
    rows = [_error_row(f.family, f.model or f.table) for f in families]
    known = [row for row in rows if row is not None]
    return CardPage(
        series=series_views([series], now)[0],
        device=DeviceLink(device_id=device.id, name=device.name),
        has_alarm=bool(finished) and finished[0].row.alarm_since is not None,
        is_stale=card is not None and card.num_measurements != series.num_measurements,
        made_s=None if found is None else now - found[1],
        tiles=() if card is None else _tiles(card),
        errors=() if card is None else _errors(card),
        families=tuple(known[:SHOWN_FAMILIES]),
        more_families=max(0, len(known) - SHOWN_FAMILIES),
        without_model="" if card is None else card.without_model,
        scatter=None if card is None else scatter_of(card.kernel_points, card.network_points),
        checks=tuple(
            DriftRow(
                outcome=_MEASURING if check.row.outcome is None else _OUTCOMES[check.row.outcome],
                reference=None
                if check.findings is None or check.findings.reference is None
                else check.findings.reference.ratio,
                kernels=() if check.findings is None else tuple(c.ratio for c in check.findings.kernels.values()),
                age_s=now - check.row.created_at,
            )
            for check in checks
        ),
    )


def _tiles(card: SeriesCard) -> tuple[Tile, ...]:
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(card.verdicts.items()))
    return (
        Tile(label="Kernels", value=str(card.num_kernels)),
        Tile(label="Measurements", value=str(card.num_measurements), note=verdicts),
        Tile(label="Device time", value=device_time(card.device_minutes)),
        Tile(label="Whole networks", value=str(len(card.network_points)), note="predicted by searches, then measured"),
    )


def _errors(card: SeriesCard) -> tuple[ErrorRow, ...]:
    rows = (
        _error_row("Whole networks, as searches predicted them", card.networks),
        _error_row("Kernels, by a latency model fitted without them", card.model),
        _error_row("Kernels, between their neighbours in the table", card.table),
    )
    return tuple(row for row in rows if row is not None)


def _error_row(what: str, errors: ErrorSummary | None) -> ErrorRow | None:
    if errors is None:
        return None
    return ErrorRow(
        what=what,
        count=errors.count,
        within_5_percent=errors.within_5_percent,
        within_10_percent=errors.within_10_percent,
        rmspe=errors.rmspe,
        spearman=errors.spearman,
    )


def scatter_of(kernels: Sequence[CardPoint], networks: Sequence[CardPoint]) -> Scatter | None:
    """On the diagonal a prediction is right."""
    points = [(point, False) for point in kernels] + [(point, True) for point in networks]
    return log_scatter(
        [
            ScatterValue(
                x_ms=point.measured_ms,
                y_ms=point.predicted_ms,
                is_network=is_network,
                title=f"{short_id(point.name) if is_network else point.name}: measured "
                f"{duration(point.measured_ms * _NS_PER_MS)}, predicted {duration(point.predicted_ms * _NS_PER_MS)}",
            )
            for point, is_network in points
        ]
    )
