"""The best candidate within each latency budget: what a reader with a deadline looks for."""

from __future__ import annotations

from collections.abc import Sequence

from server.dashboard.pages import BudgetRow, FrontRow

#: Budgets, as how many times faster than the unpruned network they ask for.
SPEED_UPS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def budget_rows(front: Sequence[FrontRow], tflite_ms: float | None) -> tuple[BudgetRow, ...]:
    """For each budget the most accurate candidate of `front` within it; none without a latency to set budgets by.

    Where candidates were trained, only those count, by their test accuracy and measured latency; before, all do, by
    estimate and prediction. A latency whose interval ends beyond the budget is marked as open. Budgets that even the
    fastest candidate misses are left out, but for the first of them.
    """
    if tflite_ms is None:
        return ()
    trained = [row for row in front if row.accuracy is not None and row.measured_latency_ms is not None]
    found = []
    for factor in SPEED_UPS:
        budget_ms = tflite_ms / factor
        best = max(
            (row for row in trained or front if _accuracy(row) is not None and _latency_ms(row) <= budget_ms),
            key=lambda row: (_accuracy(row), -_latency_ms(row)),
            default=None,
        )
        interval = None if best is None else best.latency_ci95_ms
        is_open = interval is not None and interval[1] > budget_ms
        found.append(BudgetRow(speed_up=factor, budget_ms=budget_ms, best=best, is_open=is_open))
        if best is None:
            break
    return tuple(found)


def _latency_ms(row: FrontRow) -> float:
    return row.predicted_latency_ms if row.measured_latency_ms is None else row.measured_latency_ms


def _accuracy(row: FrontRow) -> float | None:
    return row.accuracy_estimate if row.accuracy is None else row.accuracy
