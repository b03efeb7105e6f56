"""What can be done with a search on its page, by whom, and its candidates layer by layer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from device_agent.contracts import dumps
from server.accounts.service import Scope, mint_user_token
from server.context import TOKEN_COOKIE, Context
from server.models import SearchRow
from server.searches import repository
from server.searches.repository import FRONT_LAYERS, RESULT, JobClaim
from server.states import JobState
from tests.unit.server.cli.test_report import layer
from tests.unit.server.dashboard import seed
from tests.unit.server.dashboard.conftest import LOCAL, MakeClient
from tests.unit.server.dashboard.seed import Seeded
from tests.unit.server.dashboard.test_dashboard_pages import tags_of, text_of

OWN = {"Origin": LOCAL}


@pytest.fixture
def claim(context: Context) -> JobClaim:
    """A search that a worker has taken."""
    return seed.submit(context, "steered", seed.enrol(context, "steered-board", seed.profile("Cortex-A55", 4)))


def state_of(context: Context, claim: JobClaim) -> JobState:
    with context.database.read() as session:
        return session.get_one(SearchRow, claim.search_id).state


def forms_of(page: str) -> list[str]:
    return [
        tag["action"].rpartition("/")[2] for name, tag in tags_of(page) if name == "form" and "search" in tag["action"]
    ]


def test_a_search_is_paused_and_cancelled_on_its_page(local: TestClient, context: Context, claim: JobClaim) -> None:
    address = f"/searches/{claim.search_id}"
    assert forms_of(local.get(address).text) == ["pause", "cancel"]
    page = local.post(f"{address}/pause", headers=OWN)
    assert page.url.path == address
    assert state_of(context, claim) is JobState.PAUSING
    assert forms_of(page.text) == ["cancel"]
    assert forms_of(local.post(f"{address}/cancel", headers=OWN).text) == []
    assert state_of(context, claim) is JobState.CANCELLING


def test_scripts_get_what_changed_and_others_the_page_at_its_controls(
    local: TestClient, context: Context, claim: JobClaim
) -> None:
    address = f"/searches/{claim.search_id}"
    answer = local.post(f"{address}/pause", headers=OWN, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{address}#steering")
    answer = local.post(f"{address}/cancel", headers={**OWN, "HX-Request": "true"})
    assert answer.url.path == f"/fragments{address}"
    told = [tag for _, tag in tags_of(answer.text) if tag.get("id") == "steering"]
    assert [tag["aria-label"] for tag in told] == ["The search is cancelling"]
    assert "<html" not in answer.text


def test_what_is_over_is_not_steered(local: TestClient, seeded: Seeded) -> None:
    address = f"/searches/{seeded.completed_id}"
    assert forms_of(local.get(address).text) == []
    answer = local.post(f"{address}/pause", headers=OWN)
    assert answer.status_code == 409
    assert "cannot be paused" in text_of(answer.text)
    assert local.post(f"{address}/restart", headers=OWN).status_code == 404
    assert local.post("/searches/none/pause", headers=OWN).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {**OWN, "Sec-Fetch-Site": "cross-site"}],
    ids=["no browser", "another site", "a sandbox", "a browser that tells on it"],
)
def test_without_a_token_only_our_own_pages_change_anything(
    local: TestClient, context: Context, claim: JobClaim, headers: dict[str, str]
) -> None:
    answer = local.post(f"/searches/{claim.search_id}/cancel", headers=headers)
    assert answer.status_code == 403
    assert state_of(context, claim) is JobState.RUNNING


@pytest.mark.parametrize("may", [False, True])
def test_a_token_needs_the_scope(make_client: MakeClient, context: Context, claim: JobClaim, may: bool) -> None:
    scopes = (Scope.READ, Scope.SEARCHES_WRITE) if may else (Scope.READ,)
    with context.database.write() as session:
        token = mint_user_token(session, context.hasher, name="eve", scopes=scopes)
    client = make_client()
    client.cookies.set(TOKEN_COOKIE, token)
    address = f"/searches/{claim.search_id}"
    assert forms_of(client.get(address).text) == (["pause", "cancel"] if may else [])
    assert client.post(f"{address}/pause").status_code == (303 if may else 403)
    assert state_of(context, claim) is (JobState.PAUSING if may else JobState.RUNNING)


def test_the_result_is_downloaded_byte_for_byte(local: TestClient, context: Context, claim: JobClaim) -> None:
    address = f"/searches/{claim.search_id}/result.json"
    assert local.get(address).status_code == 404
    text = json.dumps({"baseline": {"accuracy": 0.5, "latency_ms": {"tflite_dense": 2.0, "native_dense": None}}})
    with context.database.write() as session:
        repository.put_document(session, claim, RESULT, text)
    answer = local.get(address)
    assert answer.text == text
    assert answer.headers["content-disposition"] == 'attachment; filename="result.json"'
    assert address in local.get(f"/searches/{claim.search_id}").text


def test_a_candidate_is_shown_layer_by_layer(local: TestClient, context: Context, claim: JobClaim) -> None:
    seed.prepare(context, claim)
    front = seed.search(context, claim, generations=1)
    chosen, *_ = seed.select(context, claim, front, 1)
    address = f"/searches/{claim.search_id}/candidates/{chosen}"
    assert f'href="{address}"' in local.get(f"/searches/{claim.search_id}").text
    assert "once it is found" in text_of(local.get(address).text)
    layers = [layer("stem", 1.0, 1.0), replace(layer("head", 0.25, 0.5), op="fully_connected", kernel_h=1, kernel_w=1)]
    with context.database.write() as session:
        repository.put_document(session, claim, FRONT_LAYERS, dumps({chosen: layers}))
    page = local.get(address).text
    text = text_of(page)
    for words in ("stem", "conv 3×3, stride 2", "8 → 12", "group:4x1", "25 %", "Slowest layer 1.00 ms stem"):
        assert words in text
    assert [tag["width"] for name, tag in tags_of(page) if name == "rect"] == ["100.0", "50.0"]


def test_layers_are_those_of_the_front_alone(local: TestClient, context: Context, claim: JobClaim) -> None:
    seed.prepare(context, claim)
    front = seed.search(context, claim, generations=1)
    with context.database.write() as session:
        repository.put_document(session, claim, FRONT_LAYERS, "{}")
    assert "of the candidates on the front" in text_of(
        local.get(f"/searches/{claim.search_id}/candidates/{front[0]}").text
    )
    assert local.get(f"/searches/{claim.search_id}/candidates/c_none").status_code == 404


def test_growth_and_budgets_are_on_the_page_of_a_search(local: TestClient, context: Context, claim: JobClaim) -> None:
    seed.prepare(context, claim)
    seed.search(context, claim, generations=3)
    address = f"/searches/{claim.search_id}"
    assert "Hypervolume" not in local.get(address).text, "these events tell none"
    with context.database.write() as session:
        for generation, volume in ((4, 0.3), (5, 0.45)):
            data = {"generation": generation, "evaluations": 24 * generation, "front": 5, "hypervolume": volume}
            repository.add_events(session, claim, [repository.SearchEvent(kind="generation", data=data)])
    page = local.get(address).text
    text = text_of(page)
    assert "Hypervolume over the search" in text
    assert "generation 5: 0.4500 after 120 designs, 5 on the front" in text
    # 17.9 ms in TFLite: the budgets of the page.
    assert "2× 8.95 ms" in text
    assert "none is so fast" in text
