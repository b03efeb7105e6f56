"""The printed front."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from device_agent.contracts import Verdict
from search.domain.result import ExcludedChoices, FrontPoint, SearchResult, Standing
from server.cli.console import make_console
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


def test_latencies_of_small_networks_are_told_in_microseconds() -> None:
    """All of them, in every table, as in the report and on the dashboard."""
    small = verified("fast123456", 0.05, 0.9)
    result = a_result()
    dense = replace(result.baseline.latency_ms, tflite_dense=0.2, native_dense=0.1)
    found = replace(
        result,
        baseline=replace(result.baseline, latency_ms=dense),
        front=(replace(small, predicted_latency_ms=0.0512, standing=Standing.FRONT),),
    )
    lines = printed(found).splitlines()
    assert any("measured µs" in line for line in lines)
    (row, standing) = [line.split() for line in lines if line.startswith("fast123456")][:2]
    assert row[2:5] == ["50.00", "49.50-50.50", "51.20"]
    assert standing[-1] == "49.50-50.50"
    assert [line.split()[3] for line in lines if line.startswith("dense, ")] == ["200.00", "100.00"]
    slower = printed(replace(found, front=(replace(small, predicted_latency_ms=1.2),)))
    assert "measured ms" in slower
    assert "0.0495-0.0505" in slower


def test_names_with_brackets_are_printed_as_they_are() -> None:
    console = make_console()
    assert not console.is_terminal
    with console.capture() as captured:
        print_front(replace(a_result(), search=replace(a_result().search, name="x [/b] [red] :fire:")), console)
    assert "x [/b] [red] :fire:" in captured.get()
