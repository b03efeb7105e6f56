"""What all routes have in common: tokens, scopes, problem documents, paging, health."""

from __future__ import annotations

import gc
import inspect
import json
import os
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from device_agent.contracts import ContractError, LeaseRequest, decode
from server.accounts import repository as accounts
from server.accounts.service import Scope
from server.accounts.tokens import SecretHasher, SecretKind, is_well_formed, make_secret
from server.app import create_process_app
from server.artifacts.endpoints import put_artifact
from server.context import TOKEN_COOKIE
from server.database import Database
from server.fleet.endpoints import lease
from server.models import TokenRow
from server.openapi import WIRE_CLASSES
from server.searches.events import stream_events
from server.settings import Settings
from server.wire import decode_cursor, encode_cursor
from tests.unit.server.server_lab import ServerLab, search_config

SNAPSHOT = Path(__file__).parents[2] / "fixtures" / "openapi.json"


class TestTokens:
    def test_without_a_token(self, sqlite_lab: ServerLab) -> None:
        response = sqlite_lab.client.get("/v1/searches")
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"

    def test_every_route_but_a_few_needs_one(self, sqlite_lab: ServerLab, app: FastAPI) -> None:
        open_routes = {"/healthz", "/readyz", "/v1/version", "/v1/agents:enrol"}
        for path, operations in app.openapi()["paths"].items():
            for method in operations:
                url = path.replace("{digest}", "0" * 64)
                response = sqlite_lab.client.request(method.upper(), url, content=b"{}")
                assert (response.status_code == 401) is (path not in open_routes), (method, path, response.text)

    @pytest.mark.parametrize(
        "token",
        ["x", "kerf_u_short", make_secret(SecretKind.USER), make_secret(SecretKind.AGENT)],
        # The same in every test process, unlike the tokens.
        ids=["word", "short", "user", "agent"],
    )
    def test_an_unknown_token(self, sqlite_lab: ServerLab, token: str) -> None:
        assert sqlite_lab.get("/v1/searches", token).status_code == 401

    def test_a_well_formed_token_of_another_server(self, sqlite_lab: ServerLab) -> None:
        assert sqlite_lab.get("/v1/searches", make_secret(SecretKind.USER)).status_code == 401

    @pytest.mark.parametrize("column", ["expires_at", "revoked_at"])
    def test_a_token_that_is_over(self, lab: ServerLab, column: str) -> None:
        assert lab.get("/v1/searches").status_code == 200
        with lab.database.write() as session:
            session.execute(update(TokenRow).values({column: 1.0}))
        assert lab.get("/v1/searches").status_code == 401

    def test_scopes(self, lab: ServerLab) -> None:
        lab.agent()
        reader, admin = lab.user_token(Scope.READ), lab.user_token(Scope.ADMIN)
        submit = {"method": "POST", "url": "/v1/searches", "json": search_config()}
        assert lab.request(token=reader, **submit).status_code == 403
        assert lab.request(token=admin, **submit).status_code == 201
        # An administrator is no agent, and an agent is no user.
        assert lab.post("/v1/leases", LeaseRequest(), admin).status_code == 403
        assert lab.get("/v1/searches", lab.agent().token).status_code == 403

    def test_the_cookie_reads_and_does_not_write(self, sqlite_lab: ServerLab) -> None:
        sqlite_lab.client.cookies.set(TOKEN_COOKIE, sqlite_lab.admin)
        assert sqlite_lab.client.get("/v1/searches").status_code == 200
        assert sqlite_lab.client.post("/v1/enrolment-codes", json={}).status_code == 401

    def test_only_hashes_are_stored(self, sqlite_lab: ServerLab) -> None:
        sqlite_lab.agent()
        stored = b"".join(path.read_bytes() for path in sqlite_lab.settings.data_dir.glob("kerf.db*"))
        assert sqlite_lab.user.encode() not in stored
        assert b"kerf_a_" not in stored

    def test_last_use_is_noted_coarsely(self, lab: ServerLab) -> None:
        lab.get("/v1/searches")
        with lab.database.read() as session:
            found = accounts.find_token(session, lab.hasher.hash(lab.user))
            assert found is not None
            assert session.get_one(TokenRow, found.id).last_used_at is not None
        assert found.is_use_due is False


class TestSecrets:
    def test_form(self) -> None:
        for kind in SecretKind:
            secret = make_secret(kind)
            assert is_well_formed(secret)
            assert not is_well_formed(secret[:-1] + ("a" if secret[-1] != "a" else "b"))
            assert not is_well_formed(secret + "0")
        assert not is_well_formed("kerf_u_" + "ä" * 38)

    def test_the_key_is_made_once_and_private(self, tmp_path: Path) -> None:
        file = tmp_path / "new" / "token.key"
        hashes = {SecretHasher.from_file(file).hash("x") for _ in range(3)}
        assert len(hashes) == 1
        assert file.stat().st_mode & 0o777 == 0o600
        assert [path.name for path in file.parent.iterdir()] == ["token.key"]
        assert SecretHasher(b"another").hash("x") not in hashes


class TestProblems:
    def test_an_unknown_path_and_a_wrong_method(self, sqlite_lab: ServerLab) -> None:
        for method, url, status in (("GET", "/v1/nothing", 404), ("DELETE", "/v1/devices", 405)):
            response = sqlite_lab.request(method, url)
            assert response.status_code == status
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["status"] == status

    @pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1' * 3, b"\xff\xfe", b"[" * 200_000])
    def test_what_is_no_json(self, sqlite_lab: ServerLab, content: bytes) -> None:
        response = sqlite_lab.request("POST", "/v1/searches", content=content)
        assert (response.status_code, response.json()["code"]) == (400, "malformed_json")

    @pytest.mark.parametrize("text", ['"a\\u0000b"', '"\\ud800"'])
    def test_texts_that_no_database_stores(self, sqlite_lab: ServerLab, text: str) -> None:
        content = json.dumps(search_config()).replace('"digits"', text, 1).encode()
        assert sqlite_lab.request("POST", "/v1/searches", content=content).status_code == 400

    def test_a_real_surrogate_pair_is_fine(self, sqlite_lab: ServerLab) -> None:
        sqlite_lab.agent()
        content = json.dumps(search_config(name="\U0001f680")).encode()
        assert sqlite_lab.request("POST", "/v1/searches", content=content).json()["name"] == "\U0001f680"

    def test_a_nul_in_the_address(self, lab: ServerLab) -> None:
        assert lab.get("/v1/devices/a%00b").status_code == 400
        assert lab.get("/v1/measurements?device_id=a%00b").status_code == 400

    def test_too_large_a_body(self, sqlite_lab: ServerLab) -> None:
        content = b" " * (sqlite_lab.settings.max_body_bytes + 1)
        assert sqlite_lab.request("POST", "/v1/searches", content=content).status_code == 413

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({"max_leases": 0}, "LeaseRequest: max_leases 0 is not in 1..64"),
            ({"max_leases": "3"}, "LeaseRequest.max_leases: expected int, got '3'"),
            ({"max_lease": 1}, "unknown field 'max_lease'"),
        ],
    )
    def test_bodies_are_checked_strictly(self, sqlite_lab: ServerLab, body: object, words: str) -> None:
        response = sqlite_lab.post("/v1/leases", body, sqlite_lab.agent().token)
        assert response.status_code == 422
        assert words in response.json()["detail"]

    @pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "verdict=good"])
    def test_queries(self, sqlite_lab: ServerLab, query: str) -> None:
        response = sqlite_lab.get(f"/v1/measurements?{query}")
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == f"query.{query.split('=')[0]}"

    @pytest.mark.parametrize("cursor", ["%25", "a", "____"])
    def test_cursors_of_others(self, sqlite_lab: ServerLab, cursor: str) -> None:
        assert sqlite_lab.get(f"/v1/searches?cursor={cursor}").status_code == 400

    def test_a_number_that_fits_no_column(self, lab: ServerLab) -> None:
        agent = lab.agent()
        body = {"attempt": 10**30}
        assert lab.post("/v1/leases/lease_0:renew", body, agent.token).status_code == 422

    def test_a_database_that_is_away(self, sqlite_lab: ServerLab) -> None:
        context = sqlite_lab.client.app.state.context  # type: ignore[attr-defined]
        object.__setattr__(context, "database", Database("postgresql+psycopg://nobody@127.0.0.1:1/none"))
        response = sqlite_lab.get("/v1/searches")
        assert (response.status_code, response.json()["retryable"]) == (503, True)
        assert response.headers["retry-after"] == "2"
        assert sqlite_lab.client.get("/readyz").status_code == 503
        assert sqlite_lab.client.get("/healthz").status_code == 200

    def test_cursors(self) -> None:
        for key in ("", "search_0", "ä"):
            assert decode_cursor(encode_cursor(key)) == key
        assert decode_cursor(None) is None


class TestStatus:
    def test_ready(self, lab: ServerLab) -> None:
        assert lab.client.get("/readyz").json() == {"status": "ready"}
        assert lab.client.get("/v1/version").json()["schema"] == "0001_initial"

    def test_a_file_that_is_another_is_not_written_on_in_silence(self, sqlite_lab: ServerLab) -> None:
        path = Path(str(sqlite_lab.database.url.database))
        moved = path.rename(path.with_name("moved.db"))
        for is_replaced in (False, True):
            if is_replaced:
                path.write_bytes(moved.read_bytes())
            answer = sqlite_lab.client.get("/readyz")
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
            assert "moved, removed or replaced" in answer.json()["detail"]
            assert sqlite_lab.client.get("/healthz").status_code == 200
        moved.rename(path)
        assert sqlite_lab.client.get("/readyz").status_code == 200


class TestOpenApi:
    def test_snapshot(self, app: FastAPI) -> None:
        """The API is a promise: change the snapshot knowingly.

        Write it anew with `KERF_UPDATE_SNAPSHOTS=1 pytest tests/unit/server/test_http.py`.
        """
        text = json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"
        if os.environ.get("KERF_UPDATE_SNAPSHOTS"):
            SNAPSHOT.write_text(text, encoding="utf-8")
        assert text == SNAPSHOT.read_text(encoding="utf-8")

    def test_every_reference_leads_somewhere(self, app: FastAPI) -> None:
        document = app.openapi()
        names = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
        assert names <= set(document["components"]["schemas"])
        assert {cls.__name__ for cls in WIRE_CLASSES} <= set(document["components"]["schemas"])

    def test_errors_are_declared(self, app: FastAPI) -> None:
        for path, operations in app.openapi()["paths"].items():
            if path.startswith("/v1/") and path != "/v1/version":
                for operation in operations.values():
                    assert {"400", "404", "409", "413", "422"} <= set(operation["responses"]), path

    def test_endpoints_that_wait_are_async(self) -> None:
        """A blocking wait would hold one of the 40 threads."""
        assert inspect.iscoroutinefunction(lease)
        assert inspect.iscoroutinefunction(put_artifact)
        assert inspect.isasyncgenfunction(stream_events)


def test_contract_errors_name_the_path() -> None:
    with pytest.raises(ContractError, match=r"^LeaseRequest: max_leases 0"):
        decode(LeaseRequest, {"max_leases": 0})


def test_what_a_process_has_loaded_is_no_garbage(sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    # Freezing for real would keep what the tests before this one left.
    for name in ("collect", "freeze"):
        monkeypatch.setattr(gc, name, lambda name=name: done.append(name))
    app = create_process_app(sqlite_settings)
    assert done == ["collect", "freeze"]
    with TestClient(app) as client:
        assert client.get("/readyz").status_code == 200
