"""The front as a table and as a picture, and what is said where a library is missing."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kerf
from device_agent.contracts import Source, Verdict
from kerf.progress import ProgressLine
from search.domain.result import (
    Baseline,
    BaselineLatency,
    DeviceSummary,
    FrontPoint,
    SearchResult,
    SearchSummary,
)

ROOT = Path(__file__).parents[3]


def point(name: str, measured_ms: float | None, accuracy: float | None, failure: str | None = None) -> FrontPoint:
    return FrontPoint(
        candidate_id=name, accuracy_estimate=0.5, accuracy=accuracy, predicted_latency_ms=1.0,
        measured_latency_ms=measured_ms, uncorrected_latency_ms=measured_ms,
        latency_ci95_ms=None if measured_ms is None else (measured_ms - 0.1, measured_ms + 0.1),
        verdict=None if measured_ms is None else Verdict.TRUSTED, verdict_reasons=(), output_max_abs_error=1e-6,
        macs=1_000_000, parameters=1000, files={}, decisions={}, failure=failure,
    )  # fmt: skip


@pytest.fixture
def front() -> kerf.Front:
    search = SearchSummary(id="s1", name="a <name>", method="jcw", seed=0, settings={}, evaluations=1, seconds={})
    device = DeviceSummary(
        id="d", name="board", cpu_model="c", runtime="native", runtime_version="1", isa="avx2", threads=1,
        source=Source.SIMULATED, kernels=0, kernels_reused=0,
    )  # fmt: skip
    baseline = Baseline(
        accuracy=0.9, latency_ms=BaselineLatency(tflite_dense=3.0, native_dense=4.0), macs=1, parameters=1
    )
    points = (point("fast", 1.5, 0.8), point("lost", None, None, "<the> device went away"))
    return kerf.Front(SearchResult(search=search, device=device, baseline=baseline, front=points))


def test_rows_have_the_figures_with_their_units(front: kerf.Front) -> None:
    first, second = front.rows()
    assert (first["candidate"], first["accuracy"], first["measured_latency_ms"]) == ("fast", 0.8, 1.5)
    assert (first["latency_ci95_low_ms"], first["speed_up_over_tflite"], first["verdict"]) == (1.4, 2.0, "trusted")
    assert second["measured_latency_ms"] is None
    assert second["speed_up_over_tflite"] is None
    assert (len(front), front[0].candidate_id, [p.candidate_id for p in front]) == (2, "fast", ["fast", "lost"])
    assert "2 networks" in repr(front)


def test_a_notebook_shows_the_table(front: kerf.Front) -> None:
    html = front._repr_html_()
    assert html.count("<tr>") == 3
    assert "&lt;the&gt; device went away" in html
    assert "<the>" not in html


def test_a_data_frame_has_a_row_for_each_candidate(front: kerf.Front) -> None:
    pytest.importorskip("pandas", reason="needs pandas: pip install '.[notebook]'")
    frame = front.to_dataframe()
    assert list(frame.index) == ["fast", "lost"]
    assert frame.loc["fast", "accuracy"] == 0.8
    assert list(frame.reset_index().columns) == list(front.rows()[0])


def test_a_picture_is_shown_and_saved(front: kerf.Front, tmp_path: Path) -> None:
    plot = front.plot()
    assert plot._repr_png_().startswith(b"\x89PNG")
    plot.save(tmp_path / "front.svg")
    assert "<svg" in (tmp_path / "front.svg").read_text()


@pytest.mark.parametrize(("library", "method"), [("pandas", "to_dataframe"), ("search.plot", "plot")])
def test_a_missing_library_is_named_with_the_remedy(
    front: kerf.Front, monkeypatch: pytest.MonkeyPatch, library: str, method: str
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == library:
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(kerf.NotConfigured, match=r"not installed: pip install 'kerf\[notebook\]'"):
        getattr(front, method)()


def test_importing_the_client_needs_no_more_than_the_base_dependencies() -> None:
    heavy = ("torch", "fastapi", "sqlalchemy", "pydantic", "pandas", "matplotlib", "typer", "yaml", "scipy")
    code = f"import sys, kerf; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "[]", done.stderr


EVENTS: list[Any] = [
    {"kind": "stage", "data": {"stage": "searching"}},
    {"kind": "progress", "data": {"stage": "searching", "done": 1, "total": 2, "note": "generation 1"}},
    {"kind": "message", "data": {"text": "hello"}},
    {"kind": "progress", "data": {"stage": "searching", "done": 2, "total": 2}},
    {"kind": "stage", "data": {"stage": "new stage"}},
]


def test_progress_is_one_line_for_each_stage_in_a_log() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream)
    for event in EVENTS:
        line(event)
    line.end()
    assert stream.getvalue() == "search\n  hello\nnew stage\n"


def test_progress_is_drawn_anew_in_a_notebook() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream, redraws=True)
    for event in EVENTS:
        line(event)
    line.end()
    drawn = stream.getvalue().split("\r")
    assert drawn[2].rstrip() == "search                [############............] 1/2 generation 1\n  hello"
    assert "[########################] 2/2\n" in drawn[3]
    assert stream.getvalue().endswith("\n")
