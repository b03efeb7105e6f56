"""Series on the page of a device: an upgrade shows, and imported devices say what they are."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from device_agent.contracts import KernelTask, Source, TaskReport, decode
from device_agent.contracts import ReportBatch as Batch
from server.context import Context
from server.dashboard.card import scatter_of
from server.dashboard.series import change_words, series_views
from server.fleet import service as fleet
from server.ids import uuid7
from server.latency.card import CardPoint, refresh_card
from server.latency.exchange.service import LatencyImport, import_file
from server.latency.series import series_of_device
from server.latency.source import SqlLatencySource
from server.models import DeviceRow, DriftCheckRow, SeriesRow
from server.states import DriftOutcome
from tests.unit.server.dashboard import seed
from tests.unit.server.dashboard.test_dashboard_pages import text_of
from tests.unit.server.server_lab import measurement


def row(number: int, **changes: object) -> SeriesRow:
    """A series that began at second `number`."""
    values = {
        "id": f"s_{number}",
        "device_id": "d",
        "profile_id": "p",
        "setup_id": "m",
        "runtime": "native",
        "runtime_version": "1.0",
        "runtime_sha256": "a",
        "isa": "neon",
        "threads": 1,
        "affinity": [3],
        "governor": "performance",
        "agent_version": "1",
        "source": Source.MEASURED,
        "num_measurements": 1,
        "first_at": float(number),
        "last_at": float(number),
    }
    return SeriesRow(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runtime_version": "1.1", "runtime_sha256": "b"}, "runtime upgraded: 1.0 → 1.1"),
        ({"runtime_sha256": "b"}, "runtime upgraded"),
        ({"governor": None}, "governor changed: performance → unknown"),
        ({"agent_version": "2", "profile_id": "q"}, "agent upgraded and device or system changed"),
        ({"affinity": [2]}, "other cores"),
        ({"threads": 4}, "another key"),
    ],
)
def test_why_a_series_began(changes: dict[str, object], words: str) -> None:
    assert change_words(row(1), row(2, **changes)) == words


def test_only_the_same_runtime_and_setup_have_a_predecessor() -> None:
    rows = [
        row(1),
        row(2, runtime="tflite"),
        row(3, setup_id="n"),
        row(4, agent_version="2"),
        row(5, agent_version="2", governor="powersave"),
    ]
    views = series_views(rows, now=10.0)
    assert [view.series_id for view in views] == ["s_5", "s_4", "s_3", "s_2", "s_1"]
    assert [view.change for view in views] == [
        "governor changed: performance → powersave",
        "agent upgraded",
        "",
        "",
        "",
    ]
    assert views[0].since_s == 5.0


def test_a_runtime_upgrade_shows_on_the_page(local: TestClient, context: Context) -> None:
    device = seed.enrol(context, "upgraded-board", seed.profile("Cortex-A55", 4))
    task = KernelTask(kernel=seed.kernels()[0], setup=seed.SETUP)
    for version in ("0.1.0", "0.2.0"):
        claim = seed.submit(context, f"with {version}", device)
        SqlLatencySource(context.database).request(device, [task], claim.search_id, force=True)
        (lease,) = fleet.lend(context, device, 1)
        result = measurement(5000.0)
        result = replace(result, provenance=replace(result.provenance, runtime_version=version))
        report = TaskReport(
            result_key=str(uuid7()),
            lease_id=lease.lease_id,
            task_id=lease.task_id,
            attempt=lease.attempt,
            result=result,
        )
        fleet.report(context, device, Batch(reports=(report,)))
        text = text_of(local.get(f"/devices/{device}").text)
        assert ("runtime upgraded: 0.1.0 → 0.2.0 : new series since" in text) is (version == "0.2.0")
    rows = re.findall(r'<td data-label="Series">', local.get(f"/devices/{device}").text)
    assert len(rows) == 2


def test_an_imported_device_says_so(local: TestClient, context: Context) -> None:
    data = b"c,ms\n8,0.5\n"
    context.store.put_bytes(context.database, data, created_by="test")
    mapping = {
        "unit": "ms",
        "latency": "ms",
        "device": {"cpu_model": "Cortex-A35"},
        "columns": {"in_channels": "c", "out_channels": "c"},
        "constants": {"op": "conv2d", "runtime": "theirs", "runtime_version": "7", "threads": 1},
    }
    body = {"device": "their board", "file_name": "t.csv", "file_sha256": hashlib.sha256(data).hexdigest()}
    request = decode(LatencyImport, {**body, "mapping": mapping})
    answer = import_file(context.database, context.store, request, created_by="test", owner=None)
    text = text_of(local.get(f"/devices/{answer.device_id}").text)
    for expected in (
        "are imported",
        "It has no agent and gets no work",
        "Cortex-A35",
        "not verified",
        "theirs 7 imported",
    ):
        assert expected in text
    assert "Last seen" not in text
    overview = local.get("/").text
    (card,) = [
        part for part in re.findall(r'<li class="card">.*?</ul>.*?</li>', overview, re.DOTALL) if "their board" in part
    ]
    assert "No agent: imported figures" in text_of(card)
    assert 'class="tag tone-warn">imported<' in card


def test_the_card_of_a_series(local: TestClient, context: Context, seeded: seed.Seeded) -> None:
    (series, *_) = series_of(context, seeded.device_id)
    page = local.get(f"/devices/{seeded.device_id}").text
    assert f'href="/series/{series}"' in page
    before = local.get(f"/series/{series}")
    assert before.status_code == 200
    while refresh_card(context.database, quiet_s=0.0) is not None:
        pass
    text = text_of(local.get(f"/series/{series}").text)
    assert "Kernels, by a latency model fitted without them" in text or "No latency model:" in text
    assert "No drift check yet" in text
    assert local.get("/series/s_unknown").status_code == 404


def test_an_alarm_shows_on_the_device_and_its_series(local: TestClient, context: Context, seeded: seed.Seeded) -> None:
    (series, *_) = series_of(context, seeded.device_id)
    kernels = {f"k_{i}": {"ratio": 1.25, "limit": 1.1} for i in range(5)}
    with context.database.write() as session:
        # A series is only marked where the device would still measure in it.
        device = session.get_one(DeviceRow, seeded.device_id)
        row = session.get_one(SeriesRow, series)
        session.execute(
            update(SeriesRow).where(SeriesRow.id == series).values(agent_version=device.agent_version, isa="asimd")
        )
        check = DriftCheckRow(
            id="drift_1", series_id=row.id, device_id=device.id, kernel_ids=[], task_ids=[],
            outcome=DriftOutcome.DRIFTED, findings={"reference": None, "kernels": kernels}, alarm_since=1.0,
            created_at=1.0, finished_at=2.0,
        )  # fmt: skip
        session.add(check)
    assert "1.250 1.250" in text_of(local.get(f"/series/{series}").text)
    assert "The device has drifted" in text_of(local.get(f"/series/{series}").text)


def series_of(context: Context, device_id: str) -> list[str]:
    """The series of a device that have kernels, the latest first."""
    with context.database.read() as session:
        rows = series_of_device(session, device_id, 10)
        return [row.id for row in rows if row.num_measurements > 0]


@pytest.mark.parametrize(("times_ms", "ticks"), [((0.02, 0.5), ["10.0 µs", "100 µs", "1.00 ms"]), ((1.0, 1.0), 2)])
def test_the_scatter_has_whole_powers_of_ten(times_ms: tuple[float, float], ticks: object) -> None:
    points = [CardPoint(name="k", predicted_ms=t, measured_ms=t) for t in times_ms]
    scatter = scatter_of(points, [])
    assert scatter is not None
    labels = [tick.label for tick in scatter.ticks]
    assert labels == ticks or len(labels) == ticks
    # Right predictions lie on the diagonal.
    assert all(point.x + point.y == pytest.approx(scatter.size) for point in scatter.points)
    assert scatter_of([], []) is None
