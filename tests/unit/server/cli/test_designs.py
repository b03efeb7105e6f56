"""The table of what a front's networks are."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

from rich.console import Console

from device_agent.contracts import DENSE, PruningScheme, WeightPruning, encode
from search.domain.result import FrontPoint
from server.cli.designs import design_table
from tests.unit.server.cli.test_export import a_result

GROUP = WeightPruning(scheme=PruningScheme.GROUP, block_filters=4, density=0.5)
PATTERN = WeightPruning(scheme=PruningScheme.PATTERN, block_filters=4, pattern_entries=4, density=0.3)


RESULT = a_result()


def point(name: str, **decisions: Any) -> FrontPoint:
    return dataclasses.replace(
        RESULT.front[0],
        candidate_id=f"c_{name}",
        macs=571_000,
        parameters=21_540,
        model_bytes=96_618,
        decisions={"removed_blocks": [], "resolution": None, "pruning": {}, **decisions},
    )


def printed(*points: FrontPoint, constraints: tuple[dict[str, Any], ...] = ()) -> list[list[str]]:
    result = dataclasses.replace(
        RESULT,
        search=dataclasses.replace(RESULT.search, settings={"constraints": constraints}),
        baseline=dataclasses.replace(RESULT.baseline, macs=1_779_328, parameters=70_122, model_bytes=280_488),
        front=points,
    )
    console = Console(file=io.StringIO(), width=200)
    console.print(design_table(result))
    assert isinstance(console.file, io.StringIO)
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_sizes_stand_below_their_bounds() -> None:
    bounds = ({"metric": "macs", "max": 6e5}, {"metric": "macs", "max": 7e5}, {"metric": "latency_ms", "max": 1.0})
    assert printed(point("one"), constraints=bounds) == [
        ["candidate", "M", "MACs", "k", "parameters", "kB"],
        ["dense", "1.779", "70.12", "280.5"],
        ["at", "most", "0.6"],
        ["c_one", "0.571", "21.54", "96.62"],
    ]


def test_decisions_are_told_where_there_are_any() -> None:
    pruning = {name: encode(p) for name, p in {"a": GROUP, "b": PATTERN, "c": GROUP, "d": DENSE}.items()}
    lines = printed(point("one", removed_blocks=["layer1.0", "layer1.1"], resolution=24), point("two", pruning=pruning))
    assert lines[0][6:] == ["blocks", "removed", "side", "pruned", "layers"]
    assert lines[2][4:] == ["2", "24"]
    assert lines[3][4:] == ["2", "group:4x1,", "1", "pattern:4x1/4"]
