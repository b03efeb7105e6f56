"""XNNPACK's sparse path where it exists: on emulated aarch64, with the TFLite that boards install."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.arm import sparse_path

pytestmark = pytest.mark.xdist_group("arm")


@pytest.fixture(scope="module", params=["cortex-a72", pytest.param("neoverse-n1", marks=pytest.mark.slow)])
def seen(request: pytest.FixtureRequest, run_on_arm: Callable[..., Any]) -> Any:
    return run_on_arm(Path(sparse_path.__file__), request.param)


def test_the_probe_sees_the_path_and_the_profile_agrees(seen: Any) -> None:
    probe = seen["probe"]
    assert probe["taken"] is True, probe["reason"]
    assert sum("SPMM" in tag for tag in probe["tags"]) == 2
    assert seen["runtimes"]["tflite"] == [True, None]
    assert seen["runtimes"]["tflite-sparse"] == [True, None]


def test_kernels_are_timed_on_the_path_with_the_right_outputs(seen: Any) -> None:
    kernels = seen["kernels"]
    refused = kernels.pop("3x3")
    assert refused["failure"] == "unsupported"
    assert "not 3x3" in refused["detail"]
    for name, found in kernels.items():
        assert found.get("mode") == "sparse", (name, found)
        assert found["source"] == "emulated"
        # The times of an emulator are noisy, and that is said; outputs and delegate must be right.
        assert not {"wrong_output", "wrong_delegate", "sparse_path_not_taken"} & set(found["reasons"])


def test_a_whole_network_is_proved_and_right(seen: Any) -> None:
    assert seen["network"]["mode"] == "sparse"
    assert sum("SPMM" in tag for tag in seen["network"]["tags"]) == 4
    assert seen["network"]["error"] <= 1e-5 * seen["largest"]
