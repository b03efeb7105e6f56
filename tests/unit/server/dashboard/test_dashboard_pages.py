"""The pages over HTTP, with what a seeded database holds."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

from fastapi.testclient import TestClient

from server.context import Context
from server.searches import repository
from tests.unit.server.dashboard import seed
from tests.unit.server.dashboard.seed import HOSTILE, Seeded


def text_of(page: str) -> str:
    """What a reader sees: without tags, with entities and white space resolved."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


def tags_of(page: str) -> list[tuple[str, dict[str, str]]]:
    """The tags that a browser sees, with their attributes."""
    parser = _Tags()
    parser.feed(page)
    return parser.found


def test_overview_shows_devices_searches_and_measurements(local: TestClient, seeded: Seeded) -> None:
    answer = local.get("/")
    assert answer.status_code == 200
    text = text_of(answer.text)
    for expected in (
        "51.2 °C", "of the latest", "measurements trusted",
        "pi5-lab", "Cortex-A76", "native 0.1.0", "ncnn (not available)", "cifar10-resnet20", "resnet20 by jcw",
        "Training: 5 of 8", "depthwise conv 3×3, 96 channels", "group 4×1 at 20 %",
        "the clock frequency moved while measuring", "smallest reachable value is 0.42",
    ):  # fmt: skip
        assert expected in text
    assert f'href="/searches/{seeded.running.search_id}"' in answer.text
    assert "No device yet" not in text


def test_simulated_figures_say_so(local: TestClient, seeded: Seeded) -> None:
    rows = re.findall(r"<tr>.*?</tr>", local.get("/").text, re.DOTALL)
    simulated = [row for row in rows if "What was timed" not in row and "simulated-board" in row and "Median" in row]
    assert len(simulated) == 3
    assert all('class="tag tone-warn">simulated<' in row for row in simulated)
    (search,) = [row for row in rows if "digits on the simulated board" in row]
    assert 'class="tag tone-warn">simulated<' in search
    assert sum('class="tag tone-warn">' in row for row in rows) == 4
    assert "are simulated" in text_of(local.get(f"/devices/{seeded.simulated_id}").text)
    assert "latencies of this search are simulated" in text_of(local.get(f"/searches/{seeded.completed_id}").text)
    assert "latencies of this search are" not in text_of(local.get(f"/searches/{seeded.running.search_id}").text)
    assert "are simulated" not in text_of(local.get(f"/devices/{seeded.device_id}").text)


def test_hostile_names_are_text(local: TestClient, seeded: Seeded) -> None:
    for path in ("/", f"/searches/{seeded.failed_id}", f"/fragments/searches/{seeded.failed_id}"):
        page = local.get(path).text
        assert all("src" in attributes for tag, attributes in tags_of(page) if tag == "script")
        assert "<script>alert" not in page
    for path in ("/", f"/searches/{seeded.failed_id}"):
        # The braces are there too: a name is never taken for a template.
        assert HOSTILE in html.unescape(local.get(path).text)


def test_hostile_device_name_error_and_file_name(local: TestClient, context: Context, seeded: Seeded) -> None:
    device_id = seed.enrol(context, '"><img src=x onerror=alert(2)>', seed.profile("<b>cpu</b>", 1))
    claim = seed.submit(context, "hostile error", device_id)
    with context.database.write() as session:
        repository.fail_job(session, claim, "<iframe src=javascript:alert(3)>")
    for path in ("/", f"/devices/{device_id}", f"/searches/{claim.search_id}"):
        page = local.get(path).text
        assert not {"iframe", "b"} & {tag for tag, _ in tags_of(page)}
        assert not [a for _, a in tags_of(page) if "onerror" in a]
    answer = local.get(f"/files/{'0' * 64}/x%22%0d%0aSet-Cookie:%20a=b")
    assert answer.status_code == 404
    assert "set-cookie" not in answer.headers


def test_search_page_in_training(local: TestClient, seeded: Seeded) -> None:
    text = text_of(local.get(f"/searches/{seeded.running.search_id}").text)
    for expected in (
        "Unpruned, TFLite 17.9 ms 91.72 % test accuracy", "Unpruned, native 13.4 ms", "Designs evaluated 240",
        "Fastest predicted", "taken over loss and latency", "5 of 8, candidate",
        "Generation 10 of 10: 240 designs evaluated",
    ):  # fmt: skip
        assert expected in text
    page = local.get(f"/searches/{seeded.running.search_id}").text
    statuses = re.findall(r'<li class="stage (\w+)"', page)
    assert statuses == ["done", "done", "done", "current", "waiting", "waiting"]
    assert page.count('aria-current="step"') == 1
    assert re.search(r'<progress value="5" max="8"', page)


def test_search_page_when_completed(local: TestClient, context: Context, seeded: Seeded) -> None:
    page = local.get(f"/searches/{seeded.completed_id}").text
    text = text_of(page)
    assert "8 verified" in text
    assert "Fastest verified" in text
    assert "other processes took the core" in text
    assert "outputs within 3.1e-06 of torch" in text
    assert re.findall(r'<li class="stage (\w+)"', page) == ["done"] * 6
    with context.database.read() as session:
        chosen = repository.load_candidates(session, seeded.completed_id, selected=True)
    measured = min(c.results["verifying"]["measured_latency_ms"] for c in chosen)
    assert f"{17.9 / measured:.2f}× faster than unpruned TFLite" in text
    for candidate in chosen:
        assert f'id="{candidate.candidate_id}"' in page
    links = re.findall(r'href="(/files/[^"]+)"', page)
    assert len(links) == 8 * 4
    answer = local.get(links[0])
    assert answer.status_code == 200
    assert answer.content.startswith(b"packed c_")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_search_over_several_devices_shows_each(local: TestClient, context: Context, seeded: Seeded) -> None:
    search_id, chosen, devices = seed.several_devices(context)
    page = local.get(f"/searches/{search_id}").text
    text = text_of(page)
    assert "Devices fleet-phone , fleet-pi4" in text
    assert "Latency is that of the slowest device" in text
    assert "Unpruned, TFLite 40.0 ms" in text
    for device_id in devices:
        assert page.count(f'href="/devices/{device_id}"') == 1 + len(chosen)
    rows = [text_of(row) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL) if "fleet-" in row]
    assert len(rows) == 2 * len(chosen)
    assert all("5.00 ms" in row and "3.60×" in row for row in rows if "fleet-phone" in row), rows
    assert all("20.0 ms" in row and "2.00×" in row for row in rows if "fleet-pi4" in row), rows
    overview = local.get("/").text
    assert "fleet-phone, fleet-pi4" in text_of(overview)
    chart = local.get(f"/searches/{search_id}/front.json").json()
    assert {point["measured_latency_ms"] for point in chart["verified"]} == {20.0}


def test_what_was_measured_untrained_is_told_apart(local: TestClient, context: Context) -> None:
    claim = seed.submit(context, "whole front", seed.enrol(context, "whole-phone", seed.profile("Cortex-A76", 4)))
    seed.prepare(context, claim)
    front = seed.search(context, claim, generations=2)
    (chosen,) = seed.select(context, claim, front, 1)
    seed.verify(context, claim, chosen, 9.0)
    rest = [name for name in front if name != chosen]
    assert len(rest) >= 2
    with context.database.write() as session:
        for name in rest:
            result = {"measured_latency_ms": 7.0, "verdict": "trusted", "output_max_abs_error": None, "untrained": True}
            repository.set_candidate_result(session, claim, name, "verifying", result)
    page = local.get(f"/searches/{claim.search_id}").text
    text = text_of(page)
    assert f"{len(front)} on the front, 1 verified, {len(rest)} measured untrained" in text
    assert "Fastest verified 9.00 ms" in text
    assert "Measured untrained" in text
    assert text.partition("Best per latency budget")[0].count("7.00 ms") == len(rest)
    chart = local.get(f"/searches/{claim.search_id}/front.json").json()
    assert [point["candidate_id"] for point in chart["verified"]] == [chosen]
    assert {point["candidate_id"] for point in chart["measured_untrained"]} == set(rest)


def test_failed_search_says_why(local: TestClient, seeded: Seeded) -> None:
    page = local.get(f"/searches/{seeded.failed_id}").text
    assert 'role="alert"' in page
    assert "Raise the bound" in text_of(page)
    assert "The search ended before its first generation" in text_of(page)
    assert "nothing was asked of the device yet" not in text_of(page)
    assert re.findall(r'<li class="stage (\w+)"', page)[:2] == ["failed", "waiting"]


def test_front_data_for_the_chart(local: TestClient, seeded: Seeded) -> None:
    data = local.get(f"/searches/{seeded.completed_id}/front.json").json()
    assert len(data["evaluated"]) == 240
    assert len(data["selected"]) == len(data["verified"]) == 8
    assert {line["label"] for line in data["baselines"]} == {"unpruned, TFLite", "unpruned, native", "unpruned, ncnn"}
    front = [(p["predicted_latency_ms"], p["accuracy_estimate"]) for p in data["front"]]
    assert front == sorted(front)
    assert [accuracy for _, accuracy in front] == sorted(accuracy for _, accuracy in front)
    for point in data["verified"]:
        low, high = point["latency_ci95_ms"]
        assert low < point["measured_latency_ms"] < high
        assert point["shown_accuracy"] == point["accuracy"]
        low, high = point["accuracy_ci95"]
        assert low < point["accuracy"] < high


def test_standings_are_those_of_the_intervals(local: TestClient, context: Context, seeded: Seeded) -> None:
    data = local.get(f"/searches/{seeded.completed_id}/front.json").json()["verified"]
    names = {point["candidate_id"]: point for point in data}
    tied = {(name, other) for name, point in names.items() for other in point["tied_with"]}
    assert tied == {(other, name) for name, other in tied}
    for name, point in names.items():
        for other in names.keys() - {name}:
            overlaps = [
                point[key][0] <= names[other][key][1] and names[other][key][0] <= point[key][1]
                for key in ("latency_ci95_ms", "accuracy_ci95")
            ]
            assert ((name, other) in tied) == all(overlaps)
    assert tied
    page = local.get(f"/searches/{seeded.completed_id}").text
    text = text_of(page)
    for standing in {point["standing"] for point in data}:
        assert standing in text
    assert text.count("not told apart by noise from") == sum(bool(point["tied_with"]) for point in data)
    assert all(f'href="#{other}"' in page for _, other in tied)
    assert all(point["is_dominated"] == (point["standing"] == "dominated beyond noise") for point in data)


def test_front_data_before_the_first_candidate(local: TestClient, seeded: Seeded) -> None:
    data = local.get(f"/searches/{seeded.failed_id}/front.json").json()
    assert data.pop("unit") == {"name": "ms", "per_ms": 1.0}
    assert data == {
        "metric": "accuracy",
        "reach_ms": 0.0,
        "evaluated": [],
        "front": [],
        "selected": [],
        "verified": [],
        "measured_untrained": [],
        "baselines": [],
    }


def test_device_page(local: TestClient, seeded: Seeded) -> None:
    text = text_of(local.get(f"/devices/{seeded.device_id}").text)
    for expected in (
        "4 × Cortex-A76 up to 2.40 GHz", "8.00 GiB", "51.2 °C", "performance", "the module ncnn is not installed",
        "conv 3×3, 3 → 16 channels", "the processor was throttled",
    ):  # fmt: skip
        assert expected in text
    assert "simulated-board" not in text


def test_fragments_are_parts_of_their_pages(local: TestClient, seeded: Seeded) -> None:
    for page, fragment in (
        ("/", "/fragments/overview"),
        (f"/searches/{seeded.completed_id}", f"/fragments/searches/{seeded.completed_id}"),
        (f"/devices/{seeded.device_id}", f"/fragments/devices/{seeded.device_id}"),
    ):
        whole, part = local.get(page).text, local.get(fragment).text
        assert "<html" in whole
        assert "<html" not in part
        headings = re.findall(r'<h2 id="([\w-]+)"', part)
        assert headings
        assert headings == re.findall(r'<h2 id="([\w-]+)"', whole)


def test_empty_pages_say_what_to_do_next(empty: TestClient) -> None:
    text = text_of(empty.get("/").text)
    for expected in (
        "No search yet",
        "kerf search run --config",
        "No device yet",
        "Nothing measured",
    ):
        assert expected in text
    assert 'href="/enrol"' in empty.get("/").text
    assert "This needs two series" in text_of(empty.get("/compare").text)
    told = text_of(empty.get("/enrol").text)
    assert "kerf enrol-code" in told
    assert "kerf-agent run --server http://127.0.0.1:8321 --code CODE" in told


def test_missing_things_are_404_pages(local: TestClient) -> None:
    for path in ("/searches/none", "/devices/none", "/fragments/searches/none", "/searches/none/front.json"):
        answer = local.get(path)
        assert answer.status_code == 404
        assert "Not found" in answer.text
        assert "&#39;none&#39;" in answer.text


def test_pages_forbid_what_they_do_not_need(local: TestClient, seeded: Seeded) -> None:
    for path in ("/", f"/searches/{seeded.running.search_id}", f"/devices/{seeded.device_id}", "/login"):
        answer = local.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        tags = tags_of(answer.text)
        assert "style" not in {name for name, _ in tags}
        assert all("src" in attributes for name, attributes in tags if name == "script")
        used = {name for _, attributes in tags for name in attributes}
        assert not [name for name in used if name.startswith("on") or name == "style"]
        sources = [a[key] for _, a in tags for key in ("src", "href", "action") if key in a]
        assert sources
        assert all(source.startswith(("/", "#")) for source in sources)


def test_static_files_are_served_with_their_licences(local: TestClient) -> None:
    page = local.get("/login").text
    for source in re.findall(r'"(/static/[^"]+)"', page):
        answer = local.get(source)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    for licence in ("htmx-4.0.1/LICENSE", "echarts-6.1.0/LICENSE", "echarts-6.1.0/NOTICE"):
        assert local.get(f"/static/vendor/{licence}").status_code == 200
    for escape in ("/static/../views.py", "/static/%2e%2e/views.py", "/static/..%2fviews.py"):
        assert local.get(escape).status_code == 404
