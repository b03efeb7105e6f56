"""Tokens from the command line work at the server, and say what they may."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.accounts.service import Scope, authenticate
from server.accounts.tokens import SecretHasher
from server.cli.config_file import ConfigFileError
from server.cli.main import app
from server.database import Database, upgrade
from server.schema import NoDatabase
from server.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("KERF_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("KERF_DATABASE_URL", raising=False)
    made = Settings.from_env()
    upgrade(made)
    return made


def test_a_token_is_valid_for_what_it_says(settings: Settings) -> None:
    done = CliRunner().invoke(app, ["tokens", "create", "--name", "ada", "--scope", "read", "--days", "1"])
    assert done.exit_code == 0
    database = Database.from_settings(settings)
    principal = authenticate(database, SecretHasher.from_settings(settings), done.output.strip())
    database.dispose()
    assert principal.name == "ada"
    assert principal.scopes == {Scope.READ}
    assert done.output.strip().encode() not in (settings.data_dir / "kerf.db").read_bytes()


def test_without_a_database_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root instead of the service's user, say: a token of a database that no server reads would be of no use."""
    monkeypatch.setenv("KERF_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("KERF_DATABASE_URL", raising=False)
    done = CliRunner().invoke(app, ["tokens", "create", "--name", "ada"])
    assert isinstance(done.exception, NoDatabase)
    assert f"{tmp_path / 'elsewhere' / 'kerf.db'}" in str(done.exception)
    checked = CliRunner().invoke(app, ["db", "check"])
    assert "there is no database at" in checked.output
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--scope", "agent"], "enrol-code"), (["--days", "0"], "must be positive")]
)
def test_impossible_tokens_are_refused(settings: Settings, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["tokens", "create", "--name", "ada", *arguments])
    assert isinstance(done.exception, ConfigFileError)
    assert words in str(done.exception)
