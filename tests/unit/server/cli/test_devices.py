"""`kerf devices ls` tells whose latencies are not measured on real hardware."""

from __future__ import annotations

import pytest

from server.cli.devices import _cpu_words


@pytest.mark.parametrize(
    ("simulated", "emulated", "words"),
    [
        (False, False, "Cortex-A72"),
        (False, True, "Cortex-A72 (emulated)"),
        (True, False, "Cortex-A72 (simulated)"),
        (True, True, "Cortex-A72 (simulated)"),
    ],
)
def test_a_device_that_is_not_real_is_marked(simulated: bool, emulated: bool, words: str) -> None:
    assert _cpu_words({"cpu_model": "Cortex-A72", "simulated": simulated, "emulated": emulated}) == words
