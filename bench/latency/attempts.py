"""Records of measurements as they were made: one line of JSON each, several for what was measured several times.

A measurement on a shared machine differs from the next one of the same kernel, minutes later, by more than its own
interval says: other neighbours, other pages of memory. Passes over everything, minutes apart, average that out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Record = dict[str, Any]

#: What the machine was slow or fast for is measured again at the end, at most so often.
_REPAIRS = 2
_USUAL_WITHIN = 0.08


def num_turns(passes: int) -> int:
    """How often a run goes through everything: `passes` times, and what was disturbed again."""
    return passes + _REPAIRS


def read_records(path: Path) -> list[Record]:
    """All records so far; none where there is no file.

    A last line that was cut off by a kill is removed from the file: it is measured again.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def by_key(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each kernel and network, in the order of their first ones."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(str(record["key"]), []).append(record)
    return found


def done_keys(records: Sequence[Record], *, turn: int, passes: int = 1) -> set[str]:
    """What need not be measured in the turn `turn`, from 0.

    That is what was tried `turn + 1` times already, so that a run which was stopped goes on, and after the first
    `passes` turns what was measured so often at the machine's usual speed.
    """
    usual_ns = usual_reference_ns(records)
    done = set()
    for key, attempts in by_key(records).items():
        num_usual = sum(is_at_usual_speed(record, usual_ns) for record in attempts)
        if len(attempts) > turn or (turn >= passes and num_usual >= passes):
            done.add(key)
    return done


def used_records(attempts: Sequence[Record], usual_ns: float) -> list[Record]:
    """Of all records of one kernel or network those that count: at the usual speed, or else the one nearest to it.

    None where every attempt failed.
    """
    usual = [record for record in attempts if is_at_usual_speed(record, usual_ns)]
    if usual:
        return usual
    nearest = min(attempts, key=lambda record: _off_speed(record, usual_ns))
    return [nearest] if "statistics" in nearest else []


def usual_reference_ns(records: Sequence[Record]) -> float:
    """The median time of the reference kernel; 1 without any measurement."""
    times = [r["statistics"]["reference_ns"] for r in records if "statistics" in r]
    return float(median(times)) if times else 1.0


def is_at_usual_speed(record: Record, usual_ns: float) -> bool:
    """Whether the machine ran at its usual speed. A neighbour's load slows kernels by different factors."""
    return _off_speed(record, usual_ns) <= _USUAL_WITHIN


def _off_speed(record: Record, usual_ns: float) -> float:
    if "statistics" not in record:
        return math.inf
    return abs(math.log(record["statistics"]["reference_ns"] / usual_ns))
