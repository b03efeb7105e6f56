"""Who may see the pages."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from server.accounts.service import mint_agent_token
from server.app import create_app
from server.context import TOKEN_COOKIE, Context
from server.dashboard.session import local_path
from server.settings import Settings
from tests.unit.server.dashboard.conftest import FAR_CLIENT, LOCAL, LOCAL_CLIENT, MakeClient
from tests.unit.server.dashboard.seed import Seeded

HTML = {"Accept": "text/html"}


def sign_in(client: TestClient, token: str, target: str = "/") -> None:
    answer = client.post("/login", data={"token": token, "next": target})
    assert answer.status_code == 303
    assert answer.headers["location"] == target


class TestOpenOnTheOwnMachine:
    def test_a_browser_here_needs_no_token(self, make_client: MakeClient) -> None:
        for base_url in (LOCAL, "http://localhost:8321", "http://[::1]:8321"):
            answer = make_client(base_url=base_url).get("/", headers=HTML)
            assert answer.status_code == 200
            assert "Sign out" not in answer.text

    @pytest.mark.parametrize(
        ("base_url", "client", "headers"),
        [
            (LOCAL, FAR_CLIENT, {}),
            ("http://rebound.example:8321", LOCAL_CLIENT, {}),
            (LOCAL, LOCAL_CLIENT, {"X-Forwarded-For": "127.0.0.1"}),
            (LOCAL, LOCAL_CLIENT, {"Forwarded": "for=127.0.0.1"}),
        ],
        ids=["another machine", "dns rebinding", "a proxy", "a standard proxy"],
    )
    def test_others_are_asked_to_sign_in(
        self, make_client: MakeClient, base_url: str, client: tuple[str, int], headers: dict[str, str]
    ) -> None:
        answer = make_client(base_url=base_url, client=client).get("/devices/x", headers=HTML | headers)
        assert answer.status_code == 303
        assert answer.headers["location"] == "/login?next=%2Fdevices%2Fx"

    def test_a_token_that_has_ended_is_no_attempt_to_get_in(self, make_client: MakeClient) -> None:
        browser = make_client(base_url=LOCAL)
        browser.cookies.set(TOKEN_COOKIE, "kerf_u_of_a_database_that_is_gone")
        assert {browser.get("/fragments/overview").status_code for _ in range(70)} == {200}

    def test_closed_where_the_setting_is_off(self, dashboard_settings: Settings, seeded: Seeded) -> None:
        settings = Settings(data_dir=dashboard_settings.data_dir)
        with TestClient(create_app(settings), base_url=LOCAL, client=LOCAL_CLIENT, follow_redirects=False) as client:
            assert client.get("/", headers=HTML).status_code == 303
            for path in (
                "/fragments/overview", "/live", f"/searches/{seeded.running.search_id}/front.json",
                f"/files/{'0' * 64}/x",
            ):  # fmt: skip
                answer = client.get(path, headers={"HX-Request": "true"})
                assert answer.status_code == 401
                assert answer.headers["hx-redirect"] == "/login"
                assert not answer.content


class TestSignIn:
    def test_a_user_token_opens_the_pages(self, make_client: MakeClient, user_token: str) -> None:
        browser = make_client(client=FAR_CLIENT)
        sign_in(browser, user_token, "/devices/x")
        page = browser.get("/", headers=HTML)
        assert page.status_code == 200
        assert "ada" in page.text
        assert "Sign out" in page.text
        assert user_token not in page.text

    def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(
        self, make_client: MakeClient, user_token: str
    ) -> None:
        for base_url, is_secure in ((LOCAL, False), ("https://kerf.example", True)):
            answer = make_client(base_url=base_url, client=FAR_CLIENT).post("/login", data={"token": user_token})
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith(f"{TOKEN_COOKIE}=")
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
            assert ("Secure" in cookie) == is_secure

    @pytest.mark.parametrize("token", ["", "nonsense", "kerf_u_" + "a" * 38])
    def test_a_wrong_token_is_refused(self, make_client: MakeClient, token: str) -> None:
        answer = make_client(client=FAR_CLIENT).post("/login", data={"token": token})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
        assert 'role="alert"' in answer.text
        assert token == "" or token not in answer.text

    def test_an_agent_token_is_refused(self, make_client: MakeClient, context: Context, seeded: Seeded) -> None:
        with context.database.write() as session:
            token = mint_agent_token(session, context.hasher, device_id=seeded.device_id, name="agent")
        browser = make_client(client=FAR_CLIENT)
        assert browser.post("/login", data={"token": token}).status_code == 403
        browser.cookies.set(TOKEN_COOKIE, token)
        assert browser.get("/", headers=HTML).status_code == 303

    def test_signing_out_forgets_the_token(self, make_client: MakeClient, user_token: str) -> None:
        browser = make_client(client=FAR_CLIENT)
        sign_in(browser, user_token)
        answer = browser.post("/logout")
        assert answer.headers["location"] == "/login"
        assert browser.get("/", headers=HTML).status_code == 303

    def test_forms_of_other_sites_are_refused(self, make_client: MakeClient, user_token: str) -> None:
        browser = make_client(client=FAR_CLIENT)
        for path in ("/login", "/logout"):
            answer = browser.post(path, data={"token": user_token}, headers={"Sec-Fetch-Site": "cross-site"})
            assert answer.status_code == 403
            assert "set-cookie" not in answer.headers

    def test_a_huge_form_is_refused(self, make_client: MakeClient) -> None:
        assert make_client(client=FAR_CLIENT).post("/login", data={"token": "a" * 10_000}).status_code == 413

    def test_the_page_one_came_from_is_kept_in_the_form(self, make_client: MakeClient) -> None:
        page = make_client(client=FAR_CLIENT).get("/login?next=%2Fdevices%2Fx").text
        assert re.search(r'name="next" value="/devices/x"', page)


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "", "/a\nb"]
)
def test_nobody_is_sent_elsewhere(target: str) -> None:
    assert local_path(target) == "/"


def test_own_paths_are_kept() -> None:
    assert local_path("/searches/search_1") == "/searches/search_1"
