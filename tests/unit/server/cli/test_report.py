"""`kerf search report`: one file that holds everything, from a server or from an exported result."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from device_agent.contracts import Source, Verdict, encode
from kerf import Client
from kerf.errors import NotFound
from search.domain.config import Method
from search.domain.method_sources import METHOD_SOURCES
from search.domain.result import (
    BaselineLatency,
    DataSummary,
    GenerationFigures,
    LayerFigures,
    SearchResult,
    SeriesSummary,
)
from search.plot import DARK, ImageFormat, front_figure, plot_front
from server.cli import report as command
from server.cli.config_file import ConfigFileError
from server.cli.main import app
from server.dashboard.report import render_report, report_page
from server.worker.result import compared
from tests.unit.server.cli.test_export import a_result
from tests.unit.server.cli.test_output import verified

ROOT = Path(__file__).parents[4]
HOSTILE = "<script>alert(1)</script>"


def layer(name: str, density: float, *latency_ms: float) -> LayerFigures:
    return LayerFigures(
        name=name, op="conv2d", in_channels=8, out_channels=12, kernel_h=3, kernel_w=3, stride=2, input_h=16,
        input_w=16, scheme="group:4x1" if density < 1 else "dense", density=density, macs=1000, latency_ms=latency_ms,
    )  # fmt: skip


def full_result() -> SearchResult:
    """A result with everything that a report shows."""
    base = a_result()
    layers = (layer("stem", 1.0, 0.5), layer("body", 0.25, 1.0))
    points = [replace(p, layers=layers) for p in (verified("good123456", 2.0, 0.90), verified("slow123456", 4.0, 0.95))]
    settings = {
        "method": {"name": "jcw", "seed": 7, "seed_with": "exact"},
        "model": {"architecture": "resnet20", "checkpoint": "a" * 64},
        "objectives": [{"metric": "error"}, {"metric": "latency_ms"}],
        "constraints": [{"metric": "macs", "max": 40e6}],
        "accuracy": {"estimator": "one_shot"},
    }
    history = (
        GenerationFigures(generation=1, evaluations=24, front=3, hypervolume=0.31),
        GenerationFigures(generation=2, evaluations=48, front=5, hypervolume=0.42),
    )
    series = SeriesSummary(
        id="s_abc", runtime="native", runtime_version="1", agent_version="0.1.0", verdicts={"trusted": 212, "noisy": 3}
    )
    return replace(
        base,
        search=replace(
            base.search, name=HOSTILE, seed=7, settings=settings, history=history, versions={"torch": "2.13.0"},
            seconds={"verifying": 5.0, "preparing": 1.0},
        ),
        device=replace(base.device, source=Source.MEASURED, series=(series,)),
        baseline=replace(base.baseline, latency_ms=BaselineLatency(tflite_dense=8.0, native_dense=6.0)),
        front=tuple(compared(points)),
    )  # fmt: skip


class Page(HTMLParser):
    """The addresses that a page loads from, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "srcset", "href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_holds_everything_and_loads_nothing() -> None:
    html = render_report(encode(full_result()))
    page = Page(html)
    assert {url for url in page.loads if not url.startswith(("data:image/svg+xml;base64,", "#"))} == set()
    assert "@import" not in html
    assert "url(" not in html
    assert "script" not in page.tags, "the name of the search is text"
    assert HOSTILE in page.text
    for text in (
        "T. Zhao et al., arXiv 2110.08013",  # the method's source
        "accuracy", "90.00 %", "88.00 to 92.00",  # the front, with intervals
        "group:4x1", "8 → 12", "25 %",  # layers
        "trusted 212, noisy 3", "s_abc",  # trust and series
        "2.13.0",  # versions
        "MACs ≤ 4e+07",
        "preparing 1.0 s, verifying 5.0 s",  # in the order of the stages
        "kerf search run --config search.yaml --data DIR --output again --latency-from s1",
    ):  # fmt: skip
        assert text in page.text, text


def test_figures_of_a_task_of_ones_own_have_the_name_of_its_metric() -> None:
    data = DataSummary(
        metric="mean IoU <1>", class_names=(), mean=(0.5,), std=(0.2,), num_train=8, num_holdout=4, num_test=4
    )
    text = Page(render_report(encode(replace(full_result(), data=data)))).text
    for words in (
        "Test mean IoU <1>",
        "mean IoU <1> estimate",
        "% test mean IoU <1>",
        "binomial of the mean IoU <1> on",
    ):
        assert words in text, words
    assert "Test accuracy" not in text


def test_the_config_of_a_report_is_the_resolved_one() -> None:
    result = full_result()
    assert yaml.safe_load(report_page(encode(result)).config) == result.search.settings


def test_budgets_name_the_most_accurate_candidate_that_is_fast_enough() -> None:
    rows = report_page(encode(full_result())).budgets
    told = {row.speed_up: None if row.best is None else row.best.candidate_id for row in rows}
    # 8 ms dense: 4 ms is twice as fast, and its interval ends beyond that budget.
    assert told == {
        1.0: "slow123456", 1.5: "slow123456", 2.0: "slow123456", 3.0: "good123456", 4.0: "good123456", 6.0: None,
    }  # fmt: skip
    assert [row.is_open for row in rows] == [False, False, True, False, True, False]


def test_an_older_result_is_reported_without_what_it_lacks() -> None:
    data: dict[str, Any] = encode(a_result())
    for part, name in (("search", "history"), ("search", "versions"), ("device", "series")):
        del data[part][name]
    page = Page(render_report(data))
    assert "Pareto front" in page.text
    assert "Layer by layer" not in page.text
    assert "Hypervolume" not in page.text


def test_pictures_are_the_same_for_the_same_result_and_say_nothing_of_fonts() -> None:
    result = full_result()
    light = plot_front(result, ImageFormat.SVG)
    assert light == plot_front(result, ImageFormat.SVG)
    assert light != plot_front(result, ImageFormat.SVG, palette=DARK)
    root = ElementTree.fromstring(light)
    assert root.tag.endswith("svg")
    assert b"<text" not in light
    assert b"http" not in light.replace(b"http://www.w3.org", b"").split(b"</metadata>")[1]
    assert plot_front(result, dots_per_inch=50).startswith(b"\x89PNG")


def test_tables_and_pictures_of_a_report_have_one_unit() -> None:
    """That of the slowest network: here everything is 10,000 times faster, but for ncnn."""

    def faster(result: SearchResult) -> SearchResult:
        baseline = BaselineLatency(tflite_dense=8e-4, native_dense=6e-4, ncnn_dense=90.0)
        point = verified("fast123456", 2e-4, 0.9)
        settings = {**result.search.settings, "constraints": [{"metric": "latency_ms", "max": 3e-4}]}
        return replace(
            result,
            search=replace(result.search, settings=settings),
            baseline=replace(result.baseline, latency_ms=baseline),
            front=(replace(point, predicted_latency_ms=2.1e-4),),
        )

    for change, name, words in ((lambda r: r, "ms", "2.00 ms"), (faster, "µs", "0.200 µs")):
        result = change(full_result())
        page = Page(render_report(encode(result)))
        assert words in page.text
        (axes,) = front_figure(result).axes
        assert axes.get_xlabel() == f"latency, {name} (one image, median)"
    assert "latency ≤ 0.300 µs" in page.text


def test_a_baseline_that_is_much_slower_is_marked_at_the_end_of_the_axis() -> None:
    result = full_result()
    for ncnn, is_beyond in ((9.0, False), (95.5, True)):
        latency = BaselineLatency(tflite_dense=8.0, native_dense=6.0, ncnn_dense=ncnn)
        (axes,) = front_figure(replace(result, baseline=replace(result.baseline, latency_ms=latency))).axes
        left, right = axes.get_xlim()
        assert (left, right < 10) == (0.0, True)
        told = [text.get_text() for text in axes.texts]
        assert told == (["95.5 ms"] if is_beyond else [])
        labels = [line.get_label() for line in axes.get_lines() if str(line.get_label()).startswith("dense")]
        assert len(labels) == 3
        assert ("dense, ncnn, beyond the axis" in labels) is is_beyond
        drawn = [x for line in axes.get_lines() for x in line.get_xdata()]
        assert max(drawn) <= right, "nothing is outside"


def test_the_measured_latency_lies_between_the_bars_of_its_layers() -> None:
    (first, _) = report_page(encode(full_result())).candidates
    assert first.summary == "2.00 ms, 90.00 %"
    assert [time.share for row in first.layers for time in row.times] == [0.5, 1.0]
    assert [row.density for row in first.layers] == [1.0, 0.25]


@pytest.mark.parametrize("where", ["out", "out/result.json"])
def test_an_exported_result_needs_no_server(tmp_path: Path, where: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text(json.dumps(encode(full_result())), encoding="utf-8")
    output = tmp_path / "review" / "front.html"
    answer = CliRunner().invoke(app, ["search", "report", str(tmp_path / where), "-o", str(output)])
    assert answer.exit_code == 0, answer.output
    assert "Pareto front" in output.read_text(encoding="utf-8")
    assert (tmp_path / "review" / "front-front.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "review" / "front-front.svg").read_bytes()


def test_a_search_on_a_server_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer_to(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, json=encode(full_result()))

    client = Client("http://kerf.test", "kerf_u_x", transport=httpx.MockTransport(answer_to))
    monkeypatch.setattr(command, "connect", lambda *_: client)
    output = tmp_path / "report.html"
    answer = CliRunner().invoke(app, ["search", "report", "search_1", "-o", str(output), "--json"])
    assert answer.exit_code == 0, answer.output
    assert asked == ["/v1/searches/search_1/result"]
    written = [output, tmp_path / "report-front.png", tmp_path / "report-front.svg"]
    assert json.loads(answer.output) == {"files": [str(path) for path in written]}
    assert all(path.is_file() for path in written)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not valid JSON"), ("[]", "no result"), ('{"a": 1}', "no result"), ("{}", "no result")]
)
def test_what_is_no_result_is_refused_and_nothing_written(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigFileError, match=words):
        command.report(str(path), tmp_path / "report.html")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_every_method_has_a_source_as_the_documentation_names_it() -> None:
    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert set(METHOD_SOURCES) == set(Method)
    for source in METHOD_SOURCES.values():
        number = source.publication.partition("arXiv ")[2]
        assert number in methods


def test_a_verdict_of_every_kind_has_a_word() -> None:
    result = full_result()
    series = replace(result.device.series[0], verdicts={verdict.value: 1 for verdict in Verdict})
    page = report_page(encode(replace(result, device=replace(result.device, series=(series,)))))
    assert page.hardware[0].series[0].verdicts == "trusted 1, noisy 1, rejected 1"


def test_what_is_neither_here_nor_on_the_server_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = httpx.MockTransport(lambda request: httpx.Response(404, json={"detail": "there is no search 'out'"}))
    client = Client("http://kerf.test", "kerf_u_x", transport=nothing)
    monkeypatch.setattr(command, "connect", lambda *_: client)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigFileError, match="'out' is neither a file or folder here nor a search on"):
        command.report("out", Path("report.html"))


def test_a_search_without_a_result_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = {"code": "not_ready", "detail": "search search_1 has no result: it is cancelled"}
    unfinished = httpx.MockTransport(lambda request: httpx.Response(404, json=problem))
    client = Client("http://kerf.test", "kerf_u_x", transport=unfinished)
    monkeypatch.setattr(command, "connect", lambda *_: client)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match="has no result: it is cancelled"):
        command.report("search_1", Path("report.html"))
