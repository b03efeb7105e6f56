"""`kerf auth`: servers by name. A token is kept for its user alone, and goes to its own server alone."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import kerf
from kerf.profiles import profiles_path, read_profiles
from server.cli import auth
from server.cli.main import app

TOKENS = {"http://one:8321": "kerf_u_one", "https://two": "kerf_u_two"}


def answer(request: httpx.Request) -> httpx.Response:
    """Servers that know one token each."""
    server = str(request.url).partition("/v1")[0]
    if request.headers["Authorization"] != f"Bearer {TOKENS[server]}":
        problem = {
            "type": "about:blank",
            "title": "Unauthorized",
            "status": 401,
            "detail": "unknown token",
            "code": "x",
        }
        return httpx.Response(401, json=problem)
    assert request.url.path == "/v1/tokens/current"
    return httpx.Response(200, json={"id": "t", "name": "ada", "scopes": ["read"]})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KERF_SERVER", "KERF_TOKEN", "KERF_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("KERF_DATA_DIR", str(tmp_path / "data"))
    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(auth, "Client", lambda *a, **k: kerf.Client(*a, **k, transport=transport))


def run(*arguments: str, **options: Any) -> str:
    result = CliRunner().invoke(app, [*arguments], **options)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def login(profile: str = "default", server: str = "http://one:8321") -> str:
    return run("auth", "login", "--server", server, "--token", TOKENS[server], "--profile", profile)


def used() -> tuple[str, str]:
    with kerf.Client() as client:
        return client.server, client._http.headers["Authorization"].removeprefix("Bearer ")


def test_a_login_is_kept_for_its_user_and_used_from_then_on() -> None:
    with pytest.raises(kerf.NotConfigured, match="no token"):
        kerf.Client()

    said = login()

    assert "signed in to http://one:8321 as ada (read); kept as 'default'" in said
    assert "kerf_u_one" not in said
    assert stat.S_IMODE(profiles_path().stat().st_mode) == 0o600
    assert list(profiles_path().parent.iterdir()) == [profiles_path()]
    assert used() == ("http://one:8321", "kerf_u_one")


def test_the_token_is_asked_for_and_not_shown() -> None:
    said = run("auth", "login", "--server", "https://two", input="kerf_u_two\n")

    assert "kerf_u_two" not in said
    assert used() == ("https://two", "kerf_u_two")


def test_profiles_are_chosen_by_command_environment_and_use(monkeypatch: pytest.MonkeyPatch) -> None:
    login("one")
    login("two", "https://two")
    assert used()[0] == "https://two"
    run("auth", "use", "one")
    assert used()[0] == "http://one:8321"
    monkeypatch.setenv("KERF_PROFILE", "two")
    assert used() == ("https://two", "kerf_u_two")
    listed = json.loads(run("--profile", "one", "auth", "status", "--json"))
    assert [(p["profile"], p["is_used"], p["name"]) for p in listed] == [("one", True, "ada"), ("two", False, "ada")]
    assert "kerf_u_" not in json.dumps(listed)


def test_options_and_variables_come_before_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    login()
    with kerf.Client("http://one:8321/", "other") as client:
        assert client._http.headers["Authorization"] == "Bearer other"
    # The token of a profile goes to its own server alone.
    with pytest.raises(kerf.NotConfigured, match="no token"):
        kerf.Client("https://two")
    monkeypatch.setenv("KERF_SERVER", "https://two")
    with pytest.raises(kerf.NotConfigured, match="no token"):
        kerf.Client()
    monkeypatch.setenv("KERF_TOKEN", "kerf_u_two")
    assert used() == ("https://two", "kerf_u_two")


def test_a_token_that_the_server_does_not_know_is_not_kept() -> None:
    with pytest.raises(kerf.ApiError, match="unknown token"):
        run("auth", "login", "--server", "http://one:8321", "--token", "wrong")
    assert read_profiles().profiles == {}


def test_status_tells_what_is_wrong_and_logout_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    login()
    monkeypatch.setitem(TOKENS, "http://one:8321", "changed")
    (item,) = json.loads(run("auth", "status", "--json"))
    assert (item["name"], item["is_used"]) == (None, True)
    assert "unknown token" in item["problem"]

    run("auth", "logout")

    assert json.loads(run("auth", "status", "--json")) == []
    assert "kerf_u_one" not in profiles_path().read_text()
    with pytest.raises(kerf.NotConfigured, match="there is no profile 'default'; there are none"):
        run("auth", "logout")


def test_bad_names_and_damaged_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    login("one")
    with pytest.raises(kerf.NotConfigured, match=r"no profile 'two'; there are one"):
        run("auth", "use", "two")
    with pytest.raises(kerf.NotConfigured, match=r"no profile 'two'; there are one"):
        run("--profile", "two", "auth", "status")
    with pytest.raises(kerf.NotConfigured, match="must be letters"):
        login("a b")
    monkeypatch.setenv("KERF_PROFILE", "none")
    with pytest.raises(kerf.NotConfigured, match=r"no profile 'none' \(KERF_PROFILE\); there are one"):
        kerf.Client()
    for content in (
        "{",
        "[]",
        '{"profiles": {}, "current": "x"}',
        '{"profiles": {"a": {"server": 1}}, "current": null}',
    ):
        profiles_path().write_text(content)
        with pytest.raises(kerf.NotConfigured, match="is damaged"):
            kerf.Client()
