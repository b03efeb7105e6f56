"""Where tests find the larger data files that are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ENVIRONMENT_VARIABLE = "KERF_SHARED_DATA"
_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(name: str) -> Path:
    """The path of a shared data file. Skips the test where it is absent."""
    folder = Path(os.environ.get(_ENVIRONMENT_VARIABLE, _BESIDE_THE_REPOSITORY))
    path = folder / name
    if not path.exists():
        pytest.skip(f"needs {name}: set {_ENVIRONMENT_VARIABLE} to the folder that holds it")
    return path
