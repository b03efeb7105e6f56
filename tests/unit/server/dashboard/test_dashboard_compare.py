"""Two devices beside each other."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from device_agent.contracts import KernelTask, Source, Verdict
from server.context import Context
from server.dashboard.compare import _name
from server.models import SeriesRow
from tests.unit.server.dashboard import seed
from tests.unit.server.dashboard.test_dashboard_pages import tags_of, text_of


@pytest.fixture(scope="module")
def pair(context: Context) -> tuple[str, str]:
    """The series of two boards that were timed with the same kernels, the second with two fewer."""
    found = []
    for name, count in (("compared-a", 8), ("compared-b", 6)):
        device = seed.enrol(context, name, seed.profile(name, 4))
        tasks = tuple(KernelTask(kernel=kernel, setup=seed.SETUP) for kernel in seed.kernels())[:count]
        claim = seed.submit(context, name, device)
        seed.measure(context, claim, tasks, source=Source.MEASURED, judge=lambda _: (Verdict.TRUSTED, ()))
        with context.database.read() as session:
            found.append(session.scalars(select(SeriesRow.id).where(SeriesRow.device_id == device)).one())
    return found[0], found[1]


def test_the_kernels_of_both_are_compared(local: TestClient, pair: tuple[str, str]) -> None:
    page = local.get("/compare", params={"first": pair[0], "second": pair[1]}).text
    text = text_of(page)
    assert "They differ in device, device profile." in text
    assert "Kernels in common 6 2 in the first alone, 0 in the second" in text
    assert "Second / first 1.000" in text
    assert "Differ beyond noise 0 of 6 with an interval" in text
    assert len([tag for name, tag in tags_of(page) if name == "circle"]) == 6
    assert len(re.findall(r"<td data-label=\"Ratio\"", page)) == 6
    chosen = [tag["value"] for name, tag in tags_of(page) if name == "option" and "selected" in tag]
    assert chosen == list(pair)


def test_series_that_differ_in_cores_or_governor_alone_have_labels_of_their_own(
    context: Context, pair: tuple[str, str]
) -> None:
    def label(**parts: object) -> str:
        with context.database.read() as session:
            row = session.get_one(SeriesRow, pair[0])
            session.expunge(row)
        for part, value in parts.items():
            setattr(row, part, value)
        return _name(row, "board")

    end = f"({pair[0][:10]})"
    assert label() == f"board, native 0.1.0, 1 thread {end}"
    saving = label(affinity=[4], governor="powersave")
    assert saving == f"board, native 0.1.0, 1 thread, core 4, governor powersave {end}"
    assert label(affinity=[0, 1], threads=2, source=Source.SIMULATED) == (
        f"board, native 0.1.0, 2 threads, cores 0 1, simulated {end}"
    )


def test_what_cannot_be_compared_is_said(local: TestClient, pair: tuple[str, str]) -> None:
    assert "Choose two series" in local.get("/compare").text
    assert "the same series" in local.get("/compare", params={"first": pair[0], "second": pair[0]}).text
    assert local.get("/compare", params={"first": pair[0], "second": "s_none"}).status_code == 404


def test_every_series_with_kernels_can_be_chosen(local: TestClient, pair: tuple[str, str]) -> None:
    options = [tag["value"] for name, tag in tags_of(local.get("/compare").text) if name == "option"]
    assert set(pair) <= set(options)
