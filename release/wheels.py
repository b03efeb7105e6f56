"""The wheel of a release that fits this machine."""

from __future__ import annotations

from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename


def wheel_for_here(folder: Path) -> Path:
    """The newest of Kerf's wheels in `folder` that this Python can install. Raises `SystemExit` without one."""
    usable = set(sys_tags())
    found = {
        path: parse_wheel_filename(path.name)[1]
        for path in folder.glob("kerf-*.whl")
        if not usable.isdisjoint(parse_wheel_filename(path.name)[3])
    }
    if not found:
        raise SystemExit(f"{folder} holds no wheel of Kerf that this machine can install: run `make wheels` first")
    return max(found, key=lambda path: found[path])
