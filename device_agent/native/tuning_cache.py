"""Choices of the tuner on disk, so that a kernel is timed once per device and library.

One small file per kernel and layout in the user's cache folder, written at once or not at all. A file that is damaged,
or names a tiling that is not among those the tuner would time now, is as good as none: the kernel is tuned again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from device_agent.native.library import BackendInfo, Library, cache_dir

#: Set this variable to 0 to tune every time, as the tests do.
SWITCH = "KERF_TUNING_CACHE"
_FORMAT_VERSION = 1
_CPUINFO = Path("/proc/cpuinfo")
#: What tells processors apart in /proc/cpuinfo, on x86 and on ARM.
_CPU_FIELDS = ("model name", "stepping", "cache size", "CPU implementer", "CPU part", "CPU variant", "Hardware")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedChoice:
    """The steps of the chosen way, as the tuner describes them, and the `repr` of each step's tiling."""

    signature: str
    tilings: tuple[str, ...]


class TuningCache:
    """Choices for one library, backend and processor."""

    def __init__(self, library: Library, backend: BackendInfo, folder: Path | None = None) -> None:
        self._folder = folder or cache_dir() / "tunings"
        self._prefix = f"{_FORMAT_VERSION}\n{library.sha256}\n{backend.name}\n{_processor()}\n"

    def load(self, key: str) -> CachedChoice | None:
        """What was stored for `key`, or None."""
        full_key = self._prefix + key
        try:
            stored = json.loads(self._path(full_key).read_text())
        except (OSError, ValueError):
            return None
        match stored:
            case {"key": str(found), "signature": str(signature), "tilings": [*tilings]} if found == full_key and all(
                isinstance(tiling, str) for tiling in tilings
            ):
                return CachedChoice(signature=signature, tilings=tuple(tilings))
        return None

    def store(self, key: str, signature: str, tilings: Sequence[str]) -> None:
        """Keep a choice. Where that fails, for want of room or of a folder to write to, nothing is kept."""
        full_key = self._prefix + key
        path = self._path(full_key)
        text = json.dumps({"key": full_key, "signature": signature, "tilings": list(tilings)})
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
                file.write(text)
            os.replace(file.name, path)

    def _path(self, full_key: str) -> Path:
        return self._folder / f"{hashlib.sha256(full_key.encode()).hexdigest()[:32]}.json"


def open_tuning_cache(library: Library, backend: BackendInfo) -> TuningCache | None:
    """The cache of the user, or None where `SWITCH` turns it off."""
    return None if os.environ.get(SWITCH) == "0" else TuningCache(library, backend)


@functools.cache
def _processor() -> str:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return "unknown"
    return ";".join(sorted({line for line in lines if line.split(":")[0].strip() in _CPU_FIELDS}))
