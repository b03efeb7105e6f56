"""The printed front."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from device_agent.contracts import Verdict
from search.domain.result import ExcludedChoices, FrontPoint, SearchResult, Standing
from server.cli.output import print_front
from server.worker.result import compared
from tests.unit.server.cli.test_export import a_result


def verified(name: str, latency_ms: float, accuracy: float, verdict: Verdict = Verdict.TRUSTED) -> FrontPoint:
    return replace(
        a_result().front[0],
        candidate_id=name,
        measured_latency_ms=latency_ms,
        latency_ci95_ms=(0.99 * latency_ms, 1.01 * latency_ms),
        accuracy=accuracy,
        accuracy_ci95=(accuracy - 0.02, accuracy + 0.02),
        verdict=verdict,
    )


def printed(result: SearchResult) -> str:
    file = io.StringIO()
    print_front(result, Console(file=file, width=160))
    return file.getvalue()


def test_standings_are_compared_and_printed() -> None:
    points = compared(
        [
            verified("good123456", 2.0, 0.90),
            verified("same123456", 2.01, 0.89),
            verified("worse12345", 4.0, 0.80),
            verified("wrong12345", 1.0, 0.99, Verdict.REJECTED),
        ]
    )
    assert [p.standing for p in points] == [Standing.FRONT, Standing.WITHIN_NOISE, Standing.DOMINATED, None]
    assert [p.tied_with for p in points] == [("same123456",), ("good123456",), (), ()]
    lines = printed(replace(a_result(), front=tuple(points))).splitlines()
    table = lines[next(i for i, line in enumerate(lines) if "standing" in line) :]
    assert table[1].split() == ["good123456", "on", "the", "front", "88.00-92.00", "1.9800-2.0200", "same123456"]
    assert table[2].split() == [
        "same123456", "dominated", "within", "noise", "87.00-91.00", "1.9899-2.0301", "good123456",
    ]  # fmt: skip
    assert "dominated beyond noise" in table[3]
    assert "unknown" in table[4]


def test_without_measurements_there_is_no_standing() -> None:
    assert "standing" not in printed(a_result())


def test_what_was_left_out_is_told() -> None:
    result = a_result()
    assert "not tried" not in printed(result)
    search = replace(result.search, excluded_choices=ExcludedChoices(pruned=684, excluded=114))
    text = printed(replace(result, search=search))
    assert "not tried: 114 of 684 prunings of layers: a denser one takes no longer" in text
