"""Versions with a known hole that concerns us cannot be installed with Kerf, and are not here.

`make audit` asks PyPI about all that is installed; this needs no network, and covers what touches data of others.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

#: Package, the first version without the hole, and the hole. Looked up on 22 November 2026.
ADVISORIES = (
    (
        "torch",
        "2.10",
        "CVE-2025-32434 and CVE-2026-24747: torch.load(weights_only=True) runs code, corrupts memory",
    ),
    ("onnx", "1.21", "CVE-2026-27489 and CVE-2026-34445: external data leaves its folder; attributes exhaust memory"),
    ("pyarrow", "14.0.1", "CVE-2023-47248: reading Parquet or IPC runs code"),
    ("pyyaml", "5.4", "CVE-2020-14343: full_load runs code"),
    ("pillow", "10.3", "CVE-2024-28219: buffer overflow in colour management"),
    ("jinja2", "3.1.6", "CVE-2025-27516: the sandbox is left through a filter"),
    ("numpy", "1.22", "CVE-2021-41496: buffer overflow where f2py makes arrays"),
    ("h11", "0.16", "CVE-2025-43859: request smuggling through chunked bodies"),
)


def requirements() -> list[Requirement]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for texts in lists for text in texts]


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(("name", "fixed", "hole"), ADVISORIES, ids=lambda value: str(value).partition(":")[0])
def test_no_version_with_a_hole(name: str, fixed: str, hole: str) -> None:
    lower: list[Version] = []
    for requirement in requirements():
        if normalized(requirement.name) == name:
            # Several lists may name a package; its lower bound is in one of them.
            lower += [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    if lower:
        assert min(lower) >= Version(fixed), f"{name}>={min(lower)} allows {hole}: ask for {fixed}"
    try:
        installed = Version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return
    assert installed >= Version(fixed), f"{name} {installed} is installed: {hole}"
