"""/v1/tokens: who may use the server, and what nobody gets to see twice."""

from __future__ import annotations

import pytest

from server.accounts.service import Scope
from tests.unit.server.server_lab import ServerLab


def test_a_token_tells_about_itself(lab: ServerLab) -> None:
    reader = lab.user_token(Scope.READ)
    found = lab.get("/v1/tokens/current", token=reader).json()
    assert found["scopes"] == ["read"]
    assert found["revoked_at"] is None
    assert lab.agent().token not in str(found)
    agent = lab.agent()
    assert lab.get("/v1/tokens/current", token=agent.token).json()["device_id"] == agent.device_id


def test_an_admin_makes_lists_and_revokes_tokens(lab: ServerLab) -> None:
    admin = lab.user_token(Scope.ADMIN)
    answer = lab.post("/v1/tokens", {"name": "ada", "scopes": ["read"], "lifetime_s": 60.0}, token=admin)
    assert answer.status_code == 201
    made = answer.json()
    secret, token_id = made["secret"], made["token"]["id"]
    assert lab.get("/v1/searches", token=secret).status_code == 200
    assert lab.post("/v1/searches", {}, token=secret).status_code == 403

    first = lab.get("/v1/tokens?limit=1", token=admin).json()
    rest = lab.get(f"/v1/tokens?cursor={first['next']}", token=admin).json()
    tokens = {token["id"]: token for token in first["items"] + rest["items"]}
    assert tokens[token_id]["name"] == "ada"
    assert tokens[token_id]["expires_at"] is not None
    assert secret not in str(tokens)

    revoked = lab.post(f"/v1/tokens/{token_id}:revoke", token=admin).json()
    assert revoked["revoked_at"] is not None
    assert lab.post(f"/v1/tokens/{token_id}:revoke", token=admin).json() == revoked
    assert lab.get("/v1/searches", token=secret).status_code == 401


def test_tokens_are_the_business_of_admins(lab: ServerLab) -> None:
    user = lab.user_token(Scope.READ, Scope.SEARCHES_WRITE, Scope.ARTIFACTS_WRITE)
    assert lab.get("/v1/tokens", token=user).status_code == 403
    assert lab.post("/v1/tokens", {"name": "me", "scopes": ["admin"]}, token=user).status_code == 403
    own = lab.get("/v1/tokens/current", token=user).json()["id"]
    assert lab.post(f"/v1/tokens/{own}:revoke", token=user).status_code == 403
    admin = lab.user_token(Scope.ADMIN)
    own = lab.get("/v1/tokens/current", token=admin).json()["id"]
    answer = lab.post(f"/v1/tokens/{own}:revoke", token=admin)
    assert answer.status_code == 422
    assert "another one" in answer.json()["detail"]
    assert lab.post("/v1/tokens/token_none:revoke", token=admin).status_code == 404


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "1 to 200 characters"),
        ({"scopes": []}, "scopes is empty"),
        ({"scopes": ["agent"]}, "enrolment code"),
        ({"scopes": ["root"]}, "root"),
        ({"lifetime_s": 0.0}, "lifetime_s 0.0"),
        ({"lifetime_s": 1e-09}, "lifetime_s 1e-09"),
        ({"life": 1}, "life"),
    ],
)
def test_impossible_tokens_are_refused(lab: ServerLab, change: dict[str, object], words: str) -> None:
    answer = lab.post("/v1/tokens", {"name": "ada", **change}, token=lab.user_token(Scope.ADMIN))
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
