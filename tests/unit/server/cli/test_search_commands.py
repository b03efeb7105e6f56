"""`kerf search` against a running server: what it prints, and what --wait waits for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml
from sqlalchemy import update
from typer.testing import CliRunner

import kerf
from kerf.profiles import Profile, Profiles, write_profiles
from search.domain.config import parse_config
from server.cli import searches, waiting
from server.cli.config_file import ConfigFileError
from server.cli.main import app
from server.models import SearchRow
from server.searches.config_schema import config_schema
from server.states import JobState
from tests.unit.server.server_lab import ServerLab, search_config

RUNNER = CliRunner()
EXAMPLES = Path(__file__).parents[4] / "examples"


def run(*arguments: str | Path) -> str:
    result = RUNNER.invoke(app, ["search", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(search_config()))
    return path


@pytest.fixture
def search_id(server: ServerLab, config: Path) -> str:
    server.agent()
    return run("submit", "--config", config).strip()


def put(lab: ServerLab, search_id: str, state: JobState) -> None:
    with lab.database.write() as session:
        session.execute(update(SearchRow).where(SearchRow.id == search_id).values(state=state))


def test_a_config_is_checked_and_spelled_out(config: Path, tmp_path: Path) -> None:
    assert run("validate", "--config", config) == f"{config}: ok\n"
    resolved = json.loads(run("validate", "--config", config, "--json"))
    assert resolved["method"]["name"] == "jcw"
    assert parse_config(resolved) == parse_config(search_config())
    config.write_text(yaml.safe_dump(search_config(method={"populaton": 9})))
    with pytest.raises(ConfigFileError, match=r"config\.method: unknown key 'populaton'; did you mean 'population'\?"):
        RUNNER.invoke(app, ["search", "validate", "--config", str(config)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "profile", "went"),
    [
        ((), None, "here"),
        (("--server", "http://lab:8321"), None, "http://lab:8321"),
        ((), "http://profile:8321", "http://profile:8321"),
        (("--simulated",), "http://profile:8321", "here"),
    ],
)
def test_a_search_runs_where_other_commands_go_if_that_is_named(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    profile: str | None,
    went: str,
) -> None:
    for name in ("KERF_SERVER", "KERF_TOKEN", "KERF_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if profile is not None:
        write_profiles(Profiles().with_profile("lab", Profile(server=profile, token="kerf_u_lab")))
    asked = []

    @contextlib.contextmanager
    def stack(options: Any) -> Iterator[Any]:
        with kerf.Client("http://here", "kerf_u_here") as client:
            yield SimpleNamespace(url="here", client=lambda: client)

    monkeypatch.setattr(searches, "running_stack", stack)
    monkeypatch.setattr(searches, "run_search", lambda client, *_: asked.append(client.server))
    monkeypatch.setattr(searches, "connect", lambda server, _: kerf.Client(server, "kerf_u_lab" if server else None))
    run("run", "--config", config, *arguments)
    assert asked == ["http://here" if went == "here" else went]


def test_a_search_does_not_run_in_two_places(config: Path, tmp_path: Path) -> None:
    for option in (("--simulated",), ("--state", str(tmp_path))):
        arguments = ["search", "run", "--config", str(config), "--server", "http://lab:8321", *option]
        with pytest.raises(ConfigFileError, match=r"http://lab:8321 is named \(--server, KERF_SERVER\)"):
            RUNNER.invoke(app, arguments, catch_exceptions=False)


def test_the_schema_takes_every_example_and_no_unknown_key() -> None:
    schema = json.loads(run("schema"))
    assert schema == config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for path in EXAMPLES.glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema)
    for wrong in ({"spcae": {}}, {"method": {"populaton": 9}}, {"method": {"name": "annealing"}}, {"name": 3}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**search_config(), **wrong}, schema)


def test_a_search_is_submitted_listed_and_shown(server: ServerLab, search_id: str, config: Path) -> None:
    assert json.loads(run("submit", "--config", config, "--json"))["state"] == "pending"
    assert len(json.loads(run("ls", "--json"))) == 2
    assert len(json.loads(run("ls", "--limit", "1", "--json"))) == 1
    shown = run("status", search_id)
    assert "pending" in shown
    assert "digits" in shown
    stored = json.loads(run("status", search_id, "--json"))["config"]
    assert parse_config(stored).method == parse_config(search_config()).method


def test_an_empty_list_says_so(server: ServerLab) -> None:
    assert run("ls") == "there are none\n"
    assert json.loads(run("ls", "--json")) == []


def test_a_name_may_hold_what_looks_like_markup(server: ServerLab, tmp_path: Path) -> None:
    server.agent()
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump({**search_config(), "name": "a [/b] [x] :fire:"}))
    identity = run("submit", "--config", path).strip()
    assert "a [/b] [x] :fire:" in run("ls")
    assert "a [/b] [x] :fire:" in run("status", identity)


def test_pausing_waits_until_the_search_rests(
    server: ServerLab, search_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server, search_id, JobState.RUNNING)
    assert run("pause", search_id) == "pausing\n"
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            put(server, search_id, JobState.PAUSED)

    monkeypatch.setattr(waiting.time, "sleep", sleep)
    assert run("pause", search_id, "--wait") == "paused\n"
    assert len(waits) == 3
    assert run("resume", search_id) == "pending\n"
    assert json.loads(run("cancel", search_id, "--wait", "--json"))["state"] == "cancelled"


def test_waiting_for_the_end_tells_how_it_ended(server: ServerLab, search_id: str) -> None:
    put(server, search_id, JobState.FAILED)
    result: Any = RUNNER.invoke(app, ["search", "watch", search_id, "--json"])
    assert isinstance(result.exception, kerf.SearchEnded)
    assert "failed" in str(result.exception)
    put(server, search_id, JobState.COMPLETED)
    for line in run("watch", search_id, "--json").splitlines():
        assert json.loads(line)["kind"]
