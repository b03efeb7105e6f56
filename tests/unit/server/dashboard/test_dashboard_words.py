"""Numbers and states as the pages print them."""

from __future__ import annotations

import pytest

from device_agent.contracts import (
    KernelSpec,
    NetworkFormat,
    NetworkTask,
    Op,
    PruningScheme,
    Verdict,
    VerdictReason,
    WeightPruning,
)
from search.domain.result import Standing
from search.latency_axis import MICROSECONDS, MILLISECONDS
from server.dashboard import formats, wording
from server.dashboard.pages import Progress, SpeedUp
from server.states import JobStage, JobState
from tests.unit.server.dashboard.seed import SETUP


@pytest.mark.parametrize(
    ("value_ns", "expected"),
    [
        (None, "–"), (0.0, "0.00 ns"), (12.0, "12.0 ns"), (999.4, "999 ns"), (1_000.0, "1.00 µs"),
        (823_400.0, "823 µs"), (6_214_000.0, "6.21 ms"), (17.9e6, "17.9 ms"), (1.5e9, "1.50 s"), (61e9, "61.0 s"),
    ],
)  # fmt: skip
def test_duration(value_ns: float | None, expected: str) -> None:
    assert formats.duration(value_ns) == expected


def test_interval_keeps_its_ends_apart() -> None:
    assert formats.interval((6_181_000.0, 6_252_000.0)) == "6.181 to 6.252 ms"
    assert formats.interval((998_000.0, 1_002_000.0)) == "0.998 to 1.002 ms"
    assert formats.interval(None) == "–"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-3.0, "just now"), (4.0, "just now"), (40.0, "40 s ago"), (180.0, "3 min ago"), (7200.0, "2 h ago"),
        (432_000.0, "5 days ago"),
    ],
)  # fmt: skip
def test_age(seconds: float, expected: str) -> None:
    assert formats.age(seconds) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.84, "0.8 s"), (42.0, "42 s"), (725.0, "12 min 5 s"), (12_000.0, "3 h 20 min")]
)
def test_span(seconds: float, expected: str) -> None:
    assert formats.span(seconds) == expected


def test_counts_bytes_and_factors() -> None:
    assert [formats.count(n) for n in (None, 0, 999, 8_340, 41_234_567)] == ["–", "0", "999", "8.34 k", "41.2 M"]
    assert [formats.byte_count(n) for n in (512, 1536, 8 << 30)] == ["512 B", "1.50 KiB", "8.00 GiB"]
    assert formats.percent(0.9172) == "91.72 %"
    assert formats.times(SpeedUp(factor=3.456, predicted=True)) == "≈ 3.46×"
    assert formats.times(SpeedUp(factor=3.456, predicted=False)) == "3.46×"
    assert formats.times(None) == "–"
    assert formats.short_id("c_0123456789abcdef") == "c_01234567"


def test_latencies_of_a_search_share_a_unit() -> None:
    unit = MICROSECONDS
    assert [formats.latency(v, unit) for v in (0.0014, 0.043, None)] == ["1.40 µs", "43.0 µs", "–"]
    assert formats.latency_interval((0.0412, 0.0429), unit) == "41.20 to 42.90"
    assert formats.latency(0.9, MILLISECONDS) == "0.900 ms"
    assert formats.latency(0.0125, MILLISECONDS) == "0.0125 ms"
    assert formats.latency_interval((0.1690, 0.9999), MILLISECONDS) == "0.1690 to 0.9999"


def test_progress_in_per_cent() -> None:
    assert Progress(done=0, total=0).percent == 0
    assert Progress(done=2, total=3).percent == 66
    assert Progress(done=5, total=3).percent == 100


def test_every_state_and_reason_has_words() -> None:
    assert set(wording.JOB_LABELS) == set(JobState)
    assert set(wording.STAGE_LABELS) == set(JobStage)
    assert set(wording.VERDICT_LABELS) == set(Verdict)
    assert set(wording.STANDING_LABELS) == set(Standing)
    assert set(wording.REASON_TEXTS) == set(VerdictReason)
    for op in Op:
        out_channels = {Op.CONCAT: 16, Op.FIRST_CHANNELS: 3, Op.LAST_CHANNELS: 3}.get(op, 8)
        spec = KernelSpec(op=op, in_channels=8, out_channels=out_channels)
        assert wording.kernel_words(spec)[0]
    for scheme in PruningScheme:
        density = 1.0 if scheme is PruningScheme.DENSE else 0.25
        entries = 4 if scheme is PruningScheme.PATTERN else 0
        pruning = WeightPruning(scheme=scheme, density=density, pattern_entries=entries)
        spec = KernelSpec(
            op=Op.CONV2D, in_channels=8, out_channels=8, input_h=9, input_w=9, kernel_h=3, kernel_w=3, padding=1,
            pruning=pruning,
        ) if scheme is not PruningScheme.BLOCK else KernelSpec(
            op=Op.FULLY_CONNECTED, in_channels=8, out_channels=8, pruning=pruning
        )  # fmt: skip
        assert scheme.value.replace("_", "-") in wording.kernel_words(spec)[1]


def test_network_words() -> None:
    task = NetworkTask(
        artifact_sha256="ab" * 32, artifact_bytes=10, format=NetworkFormat.TFLITE, input_shape=(3, 32, 32), setup=SETUP
    )
    assert wording.network_words(task) == ("whole network, tflite", "input 3×32×32, abababababab")
