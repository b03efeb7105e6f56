"""The native library gives the same bits on emulated aarch64 processors as here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.arm import output_hashes

pytestmark = pytest.mark.xdist_group("arm")


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """The hashes on this machine's instruction sets, which agree with each other."""
    by_isa = list(output_hashes.all_hashes().values())
    if not by_isa:
        pytest.skip("this machine has no fused multiply-add: its outputs are rounded differently")
    for other in by_isa[1:]:
        assert other == by_isa[0]
    return by_isa[0]


@pytest.mark.parametrize("cpu", ["cortex-a72", pytest.param("neoverse-n1", marks=pytest.mark.slow)])
def test_outputs_have_the_bits_of_this_machine(
    cpu: str, expected: dict[str, str], run_on_arm: Callable[..., Any]
) -> None:
    answers = run_on_arm(Path(output_hashes.__file__), cpu)
    assert set(answers) == {"neon"}
    assert len(expected) > len(list(output_hashes.kernels()))
    assert set(answers["neon"]) == set(expected)
    assert {name for name in expected if answers["neon"][name] != expected[name]} == set()
