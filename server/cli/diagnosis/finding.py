"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How it is: good; usable, but worth knowing; not usable; not looked at, or nothing tells."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`remedy` says what to do; every finding that is a warning or broken has one."""

    name: str
    level: Level
    found: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        if self.level in (Level.WARNING, Level.BROKEN) and not self.remedy:
            raise ValueError(f"{self.name}: a finding that is {self.level} needs a remedy")


def ok(name: str, found: str) -> Finding:
    return Finding(name=name, level=Level.OK, found=found)


def warning(name: str, found: str, remedy: str) -> Finding:
    return Finding(name=name, level=Level.WARNING, found=found, remedy=remedy)


def broken(name: str, found: str, remedy: str) -> Finding:
    return Finding(name=name, level=Level.BROKEN, found=found, remedy=remedy)


def unknown(name: str, found: str, remedy: str | None = None) -> Finding:
    return Finding(name=name, level=Level.UNKNOWN, found=found, remedy=remedy)
