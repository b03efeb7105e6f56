from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from server.accounts.service import Scope, mint_user_token
from server.app import create_app
from server.context import Context
from server.database import upgrade
from server.settings import Settings
from tests.unit.server.dashboard import seed

LOCAL = "http://127.0.0.1:8321"
LOCAL_CLIENT = ("127.0.0.1", 50123)
FAR_CLIENT = ("192.0.2.7", 50123)

MakeClient = Callable[..., TestClient]


@pytest.fixture(scope="module")
def dashboard_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A server that opens its pages to its own machine, on a new database."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("dashboard"), open_dashboard=True)
    upgrade(settings)
    return settings


@pytest.fixture(scope="module")
def local(dashboard_settings: Settings) -> Iterator[TestClient]:
    """A browser on the server's machine."""
    with TestClient(create_app(dashboard_settings), base_url=LOCAL, client=LOCAL_CLIENT) as client:
        yield client


@pytest.fixture(scope="module")
def context(local: TestClient) -> Context:
    found: Context = local.app.state.context  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def seeded(context: Context) -> seed.Seeded:
    return seed.seed(context)


@pytest.fixture
def make_client(local: TestClient) -> MakeClient:
    """Another browser for the same running server."""

    def make(*, base_url: str = LOCAL, client: tuple[str, int] = LOCAL_CLIENT) -> TestClient:
        return TestClient(local.app, base_url=base_url, client=client, follow_redirects=False)

    return make


@pytest.fixture
def user_token(context: Context) -> str:
    with context.database.write() as session:
        return mint_user_token(session, context.hasher, name="ada", scopes=(Scope.READ,))


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[TestClient]:
    """The pages of a server that nobody has used yet."""
    settings = Settings(data_dir=tmp_path, open_dashboard=True)
    upgrade(settings)
    with TestClient(create_app(settings), base_url=LOCAL, client=LOCAL_CLIENT) as client:
        yield client
