"""What each kind of token may do, on every route that there is; whose searches a user sees; how often, how much."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from safetensors.numpy import save
from sqlalchemy import select, update

from device_agent.contracts import ContractError, FailureReason, LeaseRequest, RenewRequest, dumps
from server import wire
from server.accounts.service import DEFAULT_USER_SCOPES, Scope, mint_agent_token, mint_user_token
from server.app import create_app
from server.artifacts.store import ArtifactStore
from server.context import TOKEN_COOKIE
from server.dashboard.templating import STATIC_URL
from server.dashboard.views import router as dashboard
from server.errors import MAX_TEXT_CHARS, problem
from server.fleet.endpoints import MAX_ENROLMENT_BYTES
from server.headers import DEFAULT_HEADERS
from server.latency.card import CardPoint, SeriesCard
from server.models import CardRow, EnrolmentCodeRow, KernelRow, MeasurementFailureRow, ReportRow, SearchRow, WorkerRow
from server.rates import RateLimit
from server.settings import Settings
from server.wire import LARGE_BODY_BYTES, MAX_CONTAINERS, MAX_VALUES
from tests.unit.server.server_lab import LabAgent, ServerLab, failure, report_of, search_config
from tests.unit.server.test_latency_card import complete, measured, verified

WEIGHTS = save({"weight": np.zeros(3, np.float32)})

#: Needs no token at all.
OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/v1/version"), ("POST", "/v1/agents:enrol")}
#: What devices call, and nobody else.
OF_AGENTS = {
    ("POST", "/v1/agents:heartbeat"),
    ("POST", "/v1/leases"),
    ("POST", "/v1/leases/{lease_id}:renew"),
    ("POST", "/v1/leases/{lease_id}:release"),
    ("POST", "/v1/reports"),
}
#: What devices may call as well.
ALSO_AGENTS = {
    ("GET", "/v1/artifacts/sha256/{digest}"),
    ("HEAD", "/v1/artifacts/sha256/{digest}"),
    ("GET", "/v1/tokens/current"),
}
#: They change nothing, though they are POST.
READING_POSTS = {("POST", "/v1/latency:query"), ("POST", "/v1/latency:predict")}
OF_ADMINS = {
    ("POST", "/v1/enrolment-codes"),
    ("POST", "/v1/devices/{device_id}:enable"),
    ("POST", "/v1/devices/{device_id}:disable"),
    ("GET", "/v1/tokens"),
    ("POST", "/v1/tokens"),
    ("POST", "/v1/tokens/{token_id}:revoke"),
}

#: Pages that nobody signs in for.
OPEN_PAGES = {"/login", "/logout", STATIC_URL + "/{path:path}"}

Operation = tuple[str, str]


def paths_of(routes: Iterable[Any]) -> set[str]:
    """Of these routes, and of those that they stand for."""
    found: set[str] = set()
    for route in routes:
        if inner := getattr(getattr(route, "original_router", route), "routes", None):
            found |= paths_of(inner)
        else:
            found.add(route.path)
    return found


def operations(app: FastAPI) -> list[Operation]:
    return [(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item]


def ask(lab: ServerLab, operation: Operation, token: str) -> Any:
    method, path = operation
    return lab.request(method, path.replace("{digest}", "0" * 64), token, content=b"{}")


class TestScopes:
    def test_a_reader_changes_nothing(self, sqlite_lab: ServerLab, app: FastAPI) -> None:
        reader = sqlite_lab.user_token(Scope.READ)
        for operation in set(operations(app)) - OPEN:
            is_reading = operation[0] in ("GET", "HEAD") or operation in READING_POSTS
            if is_reading and operation not in OF_ADMINS:
                continue
            assert ask(sqlite_lab, operation, reader).status_code == 403, operation

    def test_without_a_token_nothing_is_told(self, sqlite_lab: ServerLab, app: FastAPI) -> None:
        """On every route and page that there is, found in the application itself."""
        client = sqlite_lab.client
        client.headers.pop("authorization", None)
        for method, path in set(operations(app)) - OPEN:
            answer = client.request(method, path.replace("{digest}", "0" * 64), content=b"{}")
            assert answer.status_code == 401, (method, path)
        pages = [route for route in dashboard.routes if isinstance(route, APIRoute)]
        for route in pages:
            if route.path in OPEN_PAGES:
                continue
            for method in route.methods:
                assert client.request(method, route.path).status_code == 401, route.path
        # Those are all that there are.
        listed = {path for _, path in operations(app)} | {route.path for route in pages}
        assert paths_of(app.routes) == listed | {"/metrics", "/openapi.json"}

    def test_an_agent_is_no_user(self, sqlite_lab: ServerLab, app: FastAPI) -> None:
        agent = sqlite_lab.agent().token
        for operation in set(operations(app)) - OPEN - OF_AGENTS - ALSO_AGENTS:
            assert ask(sqlite_lab, operation, agent).status_code == 403, operation

    def test_nobody_else_is_an_agent(self, sqlite_lab: ServerLab) -> None:
        for token in (sqlite_lab.user_token(*DEFAULT_USER_SCOPES), sqlite_lab.admin):
            for operation in OF_AGENTS:
                assert ask(sqlite_lab, operation, token).status_code == 403, operation

    def test_a_user_is_no_admin(self, sqlite_lab: ServerLab) -> None:
        user = sqlite_lab.user_token(*DEFAULT_USER_SCOPES)
        for operation in OF_ADMINS:
            assert ask(sqlite_lab, operation, user).status_code == 403, operation

    def test_the_lists_above_name_routes_that_exist(self, app: FastAPI) -> None:
        assert set(operations(app)) >= OPEN | OF_AGENTS | ALSO_AGENTS | READING_POSTS | OF_ADMINS


class TestAgentsAmongThemselves:
    def test_a_lease_is_its_device_s_alone(self, lab: ServerLab) -> None:
        owner, stranger = lab.agent(), lab.agent(device_name="another")
        lab.tasks(owner, 1)
        (lease,) = lab.lease(owner)
        assert lab.lease(stranger) == ()
        for verb in ("renew", "release"):
            answer = lab.post(
                f"/v1/leases/{lease.lease_id}:{verb}", RenewRequest(attempt=lease.attempt), stranger.token
            )
            assert (answer.status_code, answer.json()["code"]) == (409, "lease_lost")
        assert lab.report(stranger, report_of(lease, failure(FailureReason.AGENT_ERROR))) == ["late"]
        with lab.database.read() as session:
            # Taken off its hands, and kept nowhere.
            assert session.scalars(select(ReportRow)).all() == []
            assert session.scalars(select(MeasurementFailureRow)).all() == []
        assert lab.task(lease.task_id).attempt == lease.attempt
        assert lab.lease(owner)[0].lease_id == lease.lease_id


class TestEnrolmentCodes:
    def test_a_used_code_does_not_bring_a_revoked_agent_back(self, lab: ServerLab) -> None:
        request = lab.enrolment(lab.code())
        token = lab.post("/v1/agents:enrol", request).json()["token"]
        token_id = lab.get("/v1/tokens/current", token).json()["id"]
        assert lab.post(f"/v1/tokens/{token_id}:revoke", token=lab.admin).status_code == 200
        assert lab.post("/v1/leases", LeaseRequest(), token).status_code == 401
        assert lab.post("/v1/agents:enrol", request).status_code == 403
        # A new code does.
        assert lab.post("/v1/agents:enrol", replace(request, code=lab.code())).status_code == 200

    def test_only_an_enrolment_whose_answer_was_lost_repeats(self, lab: ServerLab) -> None:
        request = lab.enrolment(lab.code())
        device_ids = {lab.post("/v1/agents:enrol", request).json()["device_id"] for _ in range(2)}
        assert len(device_ids) == 1
        token = lab.post("/v1/agents:enrol", request).json()["token"]
        assert lab.post("/v1/leases", LeaseRequest(), token).status_code == 200
        assert lab.post("/v1/agents:enrol", request).status_code == 403

    def test_another_s_code_is_no_code(self, lab: ServerLab) -> None:
        used = lab.code()
        assert lab.post("/v1/agents:enrol", lab.enrolment(used)).status_code == 200
        request = lab.enrolment(lab.code())
        assert lab.post("/v1/agents:enrol", request).status_code == 200
        assert lab.post("/v1/agents:enrol", replace(request, code=used)).status_code == 403

    def test_every_enrolment_takes_one_use(self, lab: ServerLab) -> None:
        request = lab.enrolment(lab.code(max_uses=3))
        token = lab.post("/v1/agents:enrol", request).json()["token"]
        lab.post("/v1/leases", LeaseRequest(), token)
        lab.post("/v1/agents:enrol", request)
        with lab.database.read() as session:
            assert session.scalars(select(EnrolmentCodeRow.uses)).all() == [2]


class TestMultiUser:
    @pytest.fixture
    def users(self, app: FastAPI, settings: Settings) -> Iterator[ServerLab]:
        app.state.settings = replace(settings, multi_user=True)
        with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
            lab = ServerLab(client, settings)
            lab.agent()
            yield lab
            lab.close()

    @staticmethod
    def token(lab: ServerLab, name: str) -> str:
        with lab.database.write() as session:
            return mint_user_token(session, lab.hasher, name=name)

    @staticmethod
    def submit(lab: ServerLab, token: str, name: str, **changes: Any) -> Any:
        return lab.request("POST", "/v1/searches", token, json=search_config(name=name, **changes))

    def test_every_route_of_another_s_search_is_404(self, users: ServerLab, app: FastAPI) -> None:
        ada, bob = self.token(users, "ada"), self.token(users, "bob")
        search_id = self.submit(users, ada, "secret").json()["id"]
        paths = [op for op in operations(app) if "{search_id}" in op[1]]
        assert len(paths) > 10
        for method, path in paths:
            url = path.replace("{search_id}", search_id)
            answer = users.request(method, url, bob, content=b"{}")
            assert answer.status_code == 404, (method, path)
            unknown = users.request(method, path.replace("{search_id}", "search_0"), bob, content=b"{}")
            assert answer.json()["detail"].replace(search_id, "search_0") == unknown.json()["detail"]
        assert users.get(f"/v1/searches/{search_id}", ada).json()["state"] == "pending"

    def test_every_page_of_another_s_search_is_404(self, users: ServerLab) -> None:
        search_id = self.submit(users, self.token(users, "ada"), "secret").json()["id"]
        users.client.cookies.set(TOKEN_COOKIE, self.token(users, "bob"))
        routes = [route for route in dashboard.routes if isinstance(route, APIRoute)]
        pages = [route for route in routes if "{search_id}" in route.path]
        assert len(pages) > 5
        for route in pages:
            url = route.path.replace("{search_id}", search_id).replace("{verb}", "cancel")
            for method in route.methods:
                assert users.client.request(method, url).status_code == 404, route.path
        for url in ("/", "/queue", "/fragments/overview", "/fragments/queue"):
            page = users.client.get(url).text
            assert "secret" not in page
            assert search_id not in page
        assert "another user&#39;s search" in users.client.get("/queue").text

    @pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
    def test_no_other_page_or_route_names_another_s_search(self, users: ServerLab, app: FastAPI) -> None:
        """Whatever is about devices, series, workers or figures, and goes back to a search."""
        ada, bob = self.token(users, "ada"), self.token(users, "bob")
        search_id = self.submit(users, ada, "secret-name").json()["id"]
        device_id = users.get("/v1/devices").json()["items"][0]["id"]
        with users.database.write() as session:
            secret = mint_agent_token(session, users.hasher, device_id=device_id, name="agent")
        agent = LabAgent(device_id=device_id, token=secret)
        series_id = measured(users, agent, search_id, range(1, 4))
        complete(users, search_id, [verified(users, agent, search_id, "c0ffee", predicted_ms=1.0)])
        running = self.submit(users, ada, "secret-name").json()["id"]
        users.tasks(agent, 30, running)
        with users.database.write() as session:
            card = SeriesCard(
                num_measurements=3, num_kernels=3, verdicts={}, device_minutes=1.0, table=None, model=None,
                networks=None, families=(), kernel_points=(), without_model="few",
                network_points=(CardPoint(name="n", predicted_ms=1.0, measured_ms=2.0, search_id=search_id),),
            )  # fmt: skip
            session.add(CardRow(series_id=series_id, num_measurements=3, card=dumps(card)))
            session.add(WorkerRow(id="worker_1", name="w", host="h", version="0", search_id=running))
            progress = {"done": 1, "total": 2}
            session.execute(update(SearchRow).values(worker="w", heartbeat_at=1.0, progress=progress))
            kernel_id = session.scalars(select(KernelRow.id)).first()
        values = {"device_id": device_id, "series_id": series_id, "kernel_id": kernel_id, "form": "json"}
        routes = [path for method, path in operations(app) if method == "GET"]
        routes += [route.path for route in dashboard.routes if isinstance(route, APIRoute) and "GET" in route.methods]
        urls = [path.format(**values) for path in routes if set(re.findall(r"{([^}]+)}", path)) <= values.keys()]
        urls = [url for url in {*urls, "/metrics"} if url not in ("/live", "/login")]

        def named(token: str) -> set[str]:
            users.client.cookies.set(TOKEN_COOKIE, token)
            answers = {url: users.get(url, token) for url in urls}
            users.client.cookies.clear()
            assert {url for url, answer in answers.items() if answer.status_code >= 500} == set()
            words = (search_id, running, "secret-name")
            return {url for url, answer in answers.items() if any(word in answer.text for word in words)}

        assert named(bob) == set()
        card_url = f"/v1/latency-series/{series_id}/card"
        assert named(ada) >= {"/", "/queue", "/v1/searches", "/v1/workers", "/metrics", card_url}
        assert named(users.admin) == named(ada)

    def test_lists_hold_one_s_own_and_admins_see_all(self, users: ServerLab) -> None:
        ada, bob = self.token(users, "ada"), self.token(users, "bob")
        for token, name in ((ada, "a"), (bob, "b"), (ada, "c")):
            assert self.submit(users, token, name).status_code == 201

        def names(token: str) -> list[str]:
            return [item["name"] for item in users.get("/v1/searches", token).json()["items"]]

        assert (names(ada), names(bob), names(users.admin)) == (["c", "a"], ["b"], ["c", "b", "a"])
        # Another token of the same user sees the same: tokens come and go.
        assert names(self.token(users, "ada")) == ["c", "a"]

    def test_latencies_of_another_s_search_cannot_be_named(self, users: ServerLab) -> None:
        search_id = self.submit(users, self.token(users, "ada"), "secret").json()["id"]
        answer = self.submit(users, self.token(users, "bob"), "mine", latency_from=search_id)
        assert answer.status_code == 422
        assert "there is no search" in answer.json()["detail"]

    def test_the_hash_of_another_s_file_opens_nothing(self, users: ServerLab) -> None:
        ada, bob = self.token(users, "ada"), self.token(users, "bob")
        digest = hashlib.sha256(WEIGHTS).hexdigest()
        url = f"/v1/artifacts/sha256/{digest}"
        assert users.request("PUT", url, ada, content=WEIGHTS).status_code == 201

        def reads(token: str) -> list[int]:
            codes = [users.request(method, url, token).status_code for method in ("GET", "HEAD")]
            users.client.cookies.set(TOKEN_COOKIE, token)
            codes.append(users.client.get(f"/files/{digest}/w.safetensors").status_code)
            users.client.cookies.clear()
            return codes

        assert reads(bob) == [404] * 3
        assert reads(ada) == reads(self.token(users, "ada")) == reads(users.admin) == [200] * 3
        # Neither can anything be made from it: what is registered, everybody reads.
        refusals = [
            users.request("POST", path, bob, json={"name": "x", **body})
            for path, body in (
                ("/v1/models", {"architecture": "small_cnn", "sha256": digest}),
                ("/v1/networks", {"sha256": digest}),
                ("/v1/datasets", {"train": digest}),
            )
        ]
        refusals += [
            self.submit(users, bob, "x", **changes)
            for changes in (
                {"dataset": {"name": "x", "train": digest}},
                {"model": {"architecture": "small_cnn", "checkpoint": digest}},
                {"model": {"network": digest}},
            )
        ]
        for refusal in refusals:
            assert (refusal.status_code, f"no artifact {digest} is stored" in refusal.text) == (422, True), refusal.text
        # What is wrong with a row would tell what is in the file.
        body = {"device": "x", "file_name": "x.csv", "file_sha256": digest}
        assert users.request("POST", "/v1/latency:import", bob, json=body).status_code == 404
        assert users.request("POST", "/v1/latency:import", ada, json=body).status_code == 422
        # To send it takes the whole file, and looks like sending something new.
        assert users.request("PUT", url, bob, content=b"").status_code == 422
        assert reads(bob) == [404] * 3
        assert users.request("PUT", url, bob, content=WEIGHTS).status_code == 201
        assert reads(bob) == [200] * 3
        assert users.request("PUT", url, bob, content=b"").status_code == 200

    def test_files_of_one_s_searches_and_of_what_is_registered_are_seen(self, users: ServerLab) -> None:
        ada, bob = self.token(users, "ada"), self.token(users, "bob")
        store = ArtifactStore(users.settings.artifacts_dir)
        search_id = self.submit(users, ada, "secret").json()["id"]
        made = store.put_bytes(users.database, b"a pruned network", created_by=search_id)
        weights = store.put_bytes(users.database, WEIGHTS, created_by="another token")

        def codes(digest: str) -> list[int]:
            return [users.get(f"/v1/artifacts/sha256/{digest}", token).status_code for token in (ada, bob)]

        assert codes(made) == [200, 404]
        assert codes(weights) == [404, 404]
        body = {"name": "shared", "architecture": "small_cnn", "sha256": weights}
        assert users.request("POST", "/v1/models", users.admin, json=body).status_code == 201
        assert codes(weights) == [200, 200]

    def test_without_the_setting_all_are_seen(self, sqlite_lab: ServerLab) -> None:
        sqlite_lab.agent()
        ada, bob = self.token(sqlite_lab, "ada"), self.token(sqlite_lab, "bob")
        search_id = self.submit(sqlite_lab, ada, "shared").json()["id"]
        assert sqlite_lab.get(f"/v1/searches/{search_id}", bob).status_code == 200

    def test_it_excludes_an_open_dashboard(self) -> None:
        with pytest.raises(ContractError, match="KERF_OPEN_DASHBOARD=0"):
            Settings(multi_user=True, open_dashboard=True)


class TestRates:
    def test_a_bucket(self) -> None:
        now = [0.0]
        limit = RateLimit(60, max_keys=2, clock=lambda: now[0])
        assert [limit.take("a") for _ in range(61)] == [None] * 60 + [1]
        assert limit.take("b") is None
        now[0] = 2.5
        assert [limit.take("a") for _ in range(3)] == [None, None, 1]
        # Whoever was not seen for longest is forgotten, and begins anew.
        limit.take("b"), limit.take("c")
        assert limit.take("a") is None
        assert all(RateLimit(0).take("a") is None for _ in range(1000))

    def test_one_token_s_requests(self, app: FastAPI, sqlite_settings: Settings) -> None:
        app.state.settings = replace(sqlite_settings, max_requests_per_minute=5)
        with TestClient(app) as client:
            lab = ServerLab(client, sqlite_settings)
            answers = [lab.get("/v1/searches") for _ in range(6)]
            assert [answer.status_code for answer in answers] == [200] * 5 + [429]
            assert int(answers[-1].headers["retry-after"]) > 0
            assert answers[-1].json()["retryable"] is True
            # Others are not disturbed.
            assert lab.get("/v1/searches", lab.admin).status_code == 200
            lab.close()

    def test_wrong_tokens_and_codes(self, app: FastAPI, sqlite_settings: Settings) -> None:
        app.state.settings = replace(sqlite_settings, max_failed_sign_ins_per_minute=3)
        with TestClient(app) as client:
            lab = ServerLab(client, sqlite_settings)
            assert lab.get("/v1/searches", "wrong").status_code == 401
            assert lab.post("/v1/agents:enrol", lab.enrolment("kerf_e_wrong")).status_code == 403
            assert client.post("/login", data={"token": "wrong"}).status_code == 403
            assert lab.get("/v1/searches", "wrong").status_code == 429
            assert lab.post("/v1/agents:enrol", lab.enrolment("kerf_e_wrong")).status_code == 429
            assert client.post("/login", data={"token": "wrong"}).status_code == 429
            # A good token from the same address, behind the same router, passes.
            assert lab.get("/v1/searches").status_code == 200
            lab.close()

    @pytest.mark.parametrize("way", ["page", "metrics"])
    def test_there_is_no_way_around(self, app: FastAPI, sqlite_settings: Settings, way: str) -> None:
        """Pages and figures ask for a token as REST does, and count it as REST does."""
        changes = {"max_requests_per_minute": 2, "max_failed_sign_ins_per_minute": 3, "multi_user": True}
        app.state.settings = replace(sqlite_settings, **changes)
        with TestClient(app, follow_redirects=False) as client:
            lab = ServerLab(client, sqlite_settings)
            search_id = lab.search(lab.agent().device_id)

            def ask(token: str) -> Any:
                if way == "metrics":
                    return lab.get("/metrics", token)
                client.cookies.set(TOKEN_COOKIE, token)
                return client.get(f"/searches/{search_id}/front.json", headers={"Accept": "text/html"})

            refused = {"page": 303, "metrics": 401}[way]
            answers = [ask("kerf_u_wrong") for _ in range(4)]
            assert [answer.status_code for answer in answers] == [refused] * 3 + [429]
            assert int(answers[-1].headers["retry-after"]) > 0
            assert [ask(lab.admin).status_code for _ in range(3)] == [200] * 2 + [429]
            lab.close()


class TestHeaders:
    def test_all_answers_carry_them(self, sqlite_lab: ServerLab) -> None:
        for url in ("/healthz", "/v1/searches", "/v1/nothing", "/login", "/nothing", "/openapi.json"):
            headers = sqlite_lab.get(url).headers
            assert set(DEFAULT_HEADERS) <= {name.title() for name in headers} | set(headers), url
            assert "'unsafe-" not in headers["content-security-policy"]
            assert "strict-transport-security" not in headers

    def test_what_may_be_kept_says_so_itself(self, sqlite_lab: ServerLab) -> None:
        assert "immutable" in sqlite_lab.client.get("/static/kerf.css?v=1").headers["cache-control"]

    def test_over_tls(self, app: FastAPI, sqlite_settings: Settings) -> None:
        app.state.settings = sqlite_settings
        with TestClient(app, base_url="https://kerf.example") as client:
            assert "max-age" in client.get("/healthz").headers["strict-transport-security"]

    def test_no_page_needs_scripts_from_elsewhere(self, sqlite_lab: ServerLab) -> None:
        assert sqlite_lab.client.get("/docs").status_code == 404
        assert sqlite_lab.client.get("/openapi.json").status_code == 200


class TestBodies:
    def test_every_route_bounds_its_body(self, sqlite_settings: Settings) -> None:
        app = create_app(replace(sqlite_settings, max_body_bytes=1000, max_artifact_bytes=1000))
        with TestClient(app) as client:
            lab = ServerLab(client, sqlite_settings)
            agent, body = lab.agent().token, b" " * 1001
            tried = 0
            for method, path in operations(app):
                if "requestBody" not in app.openapi()["paths"][path][method.lower()]:
                    continue
                tried += 1
                token = agent if (method, path) in OF_AGENTS else lab.admin
                url = path.replace("{digest}", "0" * 64)
                assert lab.request(method, url, token, content=body).status_code == 413, (method, path)
            assert tried > 10
            lab.close()

    @pytest.mark.parametrize(("num_bytes", "in_thread"), [(100, False), (LARGE_BODY_BYTES + 1, True)])
    def test_nobody_waits_for_another_s_large_body(
        self, sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch, num_bytes: int, in_thread: bool
    ) -> None:
        """It is checked beside the loop that serves everybody."""
        threads: list[int] = []
        check = wire.checked

        def noted(cls: type[Any], data: object) -> Any:
            threads.append(threading.get_ident())
            return check(cls, data)

        monkeypatch.setattr(wire, "checked", noted)
        loop: int = sqlite_lab.client.portal.call(threading.get_ident)  # type: ignore[union-attr]
        answer = sqlite_lab.request("POST", "/v1/tokens", sqlite_lab.admin, content=b" " * num_bytes + b'{"name": "x"}')
        assert answer.status_code == 201
        assert [thread != loop for thread in threads] == [in_thread]
        # What is wrong is told as ever.
        answer = sqlite_lab.request("POST", "/v1/tokens", sqlite_lab.admin, content=b" " * num_bytes + b'{"name": 1}')
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "TokenRequest.name")

    def test_what_is_small_to_send_and_large_to_read(self, sqlite_lab: ServerLab) -> None:
        for body in (b"[" * (MAX_CONTAINERS + 1), b"[" + b"{}," * MAX_CONTAINERS + b"{}]"):
            answer = sqlite_lab.request("POST", "/v1/latency:query", content=body)
            assert (answer.status_code, "lists and objects" in answer.text) == (413, True)
        names = b'{"name": "x", "scopes": [' + b'"",' * (MAX_VALUES + 1) + b'""]}'
        answer = sqlite_lab.request("POST", "/v1/tokens", sqlite_lab.admin, content=names)
        assert (answer.status_code, f"more than {MAX_VALUES} values" in answer.text) == (413, True)
        twice = {"name": "x", "scopes": ["read"] * 2}
        answer = sqlite_lab.request("POST", "/v1/tokens", sqlite_lab.admin, json=twice)
        assert (answer.status_code, "twice" in answer.text) == (422, True)

    def test_without_a_token_little_is_read_and_less_is_said(self, sqlite_lab: ServerLab) -> None:
        def enrol(body: bytes) -> Any:
            return sqlite_lab.client.post("/v1/agents:enrol", content=body)

        assert enrol(b" " * (MAX_ENROLMENT_BYTES + 1)).status_code == 413
        for body in (
            b"[" + b"[]," * 80_000 + b"[]]",
            b'{"%s": 1}' % (b"k" * 200_000),
            b'{"code": {"a": 1}}' + b" " * 9,
        ):
            answer = enrol(body)
            assert answer.status_code == 422
            assert len(answer.content) < 2000
        # Nobody is sent back whatever a check says of it.
        told = problem(422, "invalid", "x" * 100_000, errors=[{"field": "f", "message": "y" * 100_000}] * 1000)
        assert len(dumps(told)) < 101 * (MAX_TEXT_CHARS + 50)


class TestForms:
    """Cookies go with every request to a host, whichever port it is for: where a form came from is looked at."""

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 303),
            ({"Origin": "http://testserver"}, 303),
            ({"Origin": "http://testserver:9999"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "same-origin", "Origin": "http://behind.a.proxy"}, 303),
            ({"Sec-Fetch-Site": "same-site"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
        ],
    )
    def test_a_form_with_a_cookie(self, sqlite_lab: ServerLab, headers: dict[str, str], status: int) -> None:
        search_id = sqlite_lab.search(sqlite_lab.agent().device_id)
        sqlite_lab.client.cookies.set(TOKEN_COOKIE, sqlite_lab.user)
        answer = sqlite_lab.client.post(f"/searches/{search_id}/cancel", headers=headers, follow_redirects=False)
        assert answer.status_code == status
        with sqlite_lab.database.read() as session:
            state = session.get_one(SearchRow, search_id).state.value
        assert state == ("cancelled" if status == 303 else "pending")
