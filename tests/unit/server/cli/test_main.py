"""What all commands have in common: JSON, exit codes, and a page that names them."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import text
from typer.testing import CliRunner

import kerf
from device_agent.contracts import ContractError
from server.cli.exit_codes import MEANINGS, ExitCode
from server.cli.export import ExportError
from server.cli.local_stack import StackError
from server.database import NewerSchema
from tests.unit.server.server_lab import ServerLab

#: The package has a function of the same name.
MAIN = importlib.import_module("server.cli.main")
RUNNER = CliRunner()
ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")

#: Processes that run until they are stopped: they have nothing to print.
PROCESSES = {"up", "server", "worker"}


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from leaves(child, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(leaves(typer.main.get_command(MAIN.app)))


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - PROCESSES))
def test_every_command_can_print_json(name: str) -> None:
    assert "--json" in {option for parameter in COMMANDS[name].params for option in parameter.opts}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_and_is_on_the_page(name: str) -> None:
    assert COMMANDS[name].help
    assert f"`kerf {name}" in PAGE or f"\nkerf {name}" in PAGE


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_and_argument_has_help(name: str) -> None:
    texts = {parameter.name: getattr(parameter, "help", None) for parameter in COMMANDS[name].params}
    assert [parameter for parameter, text in texts.items() if not text] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_find_their_server_in_one_way(name: str) -> None:
    variables = {
        option: parameter.envvar for parameter in COMMANDS[name].params for option in parameter.opts if option[0] == "-"
    }
    if name == "auth login":
        return  # It writes down what others find; `kerf.local` reads the same variable for it.
    assert ("--server" in variables) == ("--token" in variables)
    if "--server" in variables:
        assert (variables["--server"], variables["--token"]) == ("KERF_SERVER", "KERF_TOKEN")


@pytest.mark.parametrize("line", re.findall(r"^kerf ([^`\n]+)$", PAGE, re.MULTILINE))
def test_the_commands_of_the_page_can_be_given(line: str) -> None:
    command: Any = typer.main.get_command(MAIN.app)
    name, arguments = "kerf", shlex.split(line.partition(">")[0], comments=True)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    assert not command.make_context(name, arguments).args


@pytest.mark.parametrize(
    ("words", "completed"),
    [("kerf sear", {"search"}), ("kerf search wa", {"watch"}), ("kerf export --cand", {"--candidate"})],
)
def test_a_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, completed: set[str]
) -> None:
    for name, value in (
        ("_KERF_COMPLETE", "complete_bash"),
        ("COMP_WORDS", words),
        ("COMP_CWORD", str(len(words.split()) - 1)),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        MAIN.app([], prog_name="kerf")
    assert set(capsys.readouterr().out.split()) == completed


def test_the_page_and_the_help_tell_the_exit_codes() -> None:
    told = " ".join(RUNNER.invoke(MAIN.app, ["--help"], env={"COLUMNS": "2000"}).output.split())
    for code, meaning in MEANINGS.items():
        assert f"| {code.value} | {meaning} |" in PAGE
        assert f"{code.value} {meaning}" in told


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContractError("config.name: is empty"), ExitCode.BAD_INPUT),
        (kerf.NotConfigured("no token"), ExitCode.BAD_INPUT),
        (kerf.NotFound(404, "Not Found", {}), ExitCode.BAD_INPUT),
        (ExportError("it does not fit"), ExitCode.BAD_INPUT),
        (kerf.SearchEnded("search s failed"), ExitCode.SEARCH_ENDED),
        (kerf.ServerFailed(503, "Service Unavailable", {}), ExitCode.UNAVAILABLE),
        (kerf.ServerUnavailable("cannot reach"), ExitCode.UNAVAILABLE),
        (StackError("the worker ended"), ExitCode.UNAVAILABLE),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
    ],
)
def test_errors_become_a_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: ExitCode
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(MAIN, "app", fail)
    with pytest.raises(SystemExit) as caught:
        MAIN.main()
    assert caught.value.code == code
    told = capsys.readouterr().err
    if isinstance(error, kerf.ServerUnavailable):
        assert told.startswith(f"error: {error}. ")
        assert all(words in told for words in ("kerf up", "--server", "KERF_SERVER"))
    else:
        assert told == ("" if code is ExitCode.INTERRUPTED else f"error: {error}\n")


def test_a_wrong_option_is_bad_input() -> None:
    assert RUNNER.invoke(MAIN.app, ["search", "ls", "--jsno"]).exit_code == ExitCode.BAD_INPUT


def test_a_database_without_tables_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("KERF_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("KERF_DATABASE_URL", raising=False)
    monkeypatch.setattr(sys, "argv", ["kerf", "tokens", "create", "--name", "ada"])
    with pytest.raises(SystemExit) as caught:
        MAIN.main()
    assert caught.value.code == ExitCode.UNAVAILABLE
    assert "kerf db status" in capsys.readouterr().err


def test_without_the_server_extra_it_tells_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from server.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == ExitCode.BAD_INPUT
    assert "pip install 'kerf[server]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_devices_and_tokens_are_shown_and_steered(server: ServerLab) -> None:
    agent = server.agent()
    assert "native" in run("devices", "show", agent.device_id)
    name = json.loads(run("devices", "show", agent.device_id, "--json"))["name"]
    assert json.loads(run("devices", "show", name, "--json"))["id"] == agent.device_id
    assert run("devices", "disable", name) == "disabled\n"
    assert json.loads(run("devices", "enable", agent.device_id, "--json"))["state"] != "disabled"
    code = json.loads(run("enrol-code", "--uses", "2", "--json"))
    assert (code["max_uses"], code["command"]) == (
        2,
        f"kerf-agent run --server http://testserver --code {code['code']}",
    )

    assert "admin" in run("tokens", "show")
    reader = server.user_token()
    shown = json.loads(run("tokens", "show", "--token", reader, "--json"))
    assert shown["id"] in run("tokens", "ls")
    assert "is revoked" in run("tokens", "revoke", shown["id"])
    assert isinstance(RUNNER.invoke(MAIN.app, ["tokens", "show", "--token", reader]).exception, kerf.Unauthorized)


def test_models_are_listed(server: ServerLab) -> None:
    assert "resnet20" in run("models", "ls")
    assert json.loads(run("models", "ls", "--json"))["items"] == []


def test_the_database_is_looked_at_and_copied(
    server: ServerLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERF_DATA_DIR", str(server.settings.data_dir))
    monkeypatch.delenv("KERF_DATABASE_URL", raising=False)
    assert json.loads(run("db", "status", "--json"))["is_newest"]
    assert "the newest" in run("db", "status")
    copy = tmp_path / "copy" / "kerf.db"
    copy.parent.mkdir()
    assert json.loads(run("db", "backup", str(copy), "--json"))["bytes"] == copy.stat().st_size
    assert list(copy.parent.iterdir()) == [copy]
    assert copy.stat().st_mode & 0o777 == 0o600
    nowhere = RUNNER.invoke(MAIN.app, ["db", "backup", str(tmp_path / "gone" / "kerf.db")])
    assert "gone/kerf.db cannot be written: No such file" in str(nowhere.exception)
    assert "is there" in str(RUNNER.invoke(MAIN.app, ["db", "backup", str(copy)]).exception)
    monkeypatch.setenv("KERF_DATA_DIR", str(copy.parent))
    assert json.loads(run("db", "status", "--json"))["is_newest"]
    monkeypatch.setenv("KERF_DATA_DIR", str(tmp_path / "none"))
    assert "schema none" in run("db", "status")
    assert not (tmp_path / "none").exists()
    assert "there is no database" in str(RUNNER.invoke(MAIN.app, ["db", "backup", str(tmp_path / "x")]).exception)
    monkeypatch.setenv("KERF_DATABASE_URL", "postgresql://ada:secret@nowhere/kerf")
    refused = str(RUNNER.invoke(MAIN.app, ["db", "backup", str(tmp_path / "x")]).exception)
    assert "nowhere" in refused
    assert "secret" not in refused
    monkeypatch.delenv("KERF_DATABASE_URL")
    monkeypatch.setenv("KERF_DATA_DIR", str(tmp_path / "restored"))
    assert json.loads(run("db", "restore", str(copy), "--json"))["schema"] == "0001_initial"
    assert "token.key is missing" in RUNNER.invoke(MAIN.app, ["db", "check"]).output
    shutil.copy(server.settings.key_file, tmp_path / "restored")
    assert json.loads(run("db", "check", "--json")) == {"problems": []}


def test_a_release_that_is_being_replaced_leaves_the_newer_database_alone(
    server: ServerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the units and the compose file run before each start, also while another host has upgraded already."""
    monkeypatch.setenv("KERF_DATA_DIR", str(server.settings.data_dir))
    monkeypatch.delenv("KERF_DATABASE_URL", raising=False)
    assert "at the newest schema" in run("db", "upgrade", "--unless-newer")
    with server.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999_future'"))
    assert isinstance(RUNNER.invoke(MAIN.app, ["db", "upgrade"]).exception, NewerSchema)
    assert "left as it is" in run("db", "upgrade", "--unless-newer")
    assert json.loads(run("db", "upgrade", "--unless-newer", "--json"))["schema"] == "9999_future"
    assert server.get("/readyz").status_code == 200


def run(*arguments: str) -> str:
    result = RUNNER.invoke(MAIN.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output
