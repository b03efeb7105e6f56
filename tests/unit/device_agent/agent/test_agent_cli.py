from __future__ import annotations

import json
from pathlib import Path

import pytest

from device_agent import cli
from device_agent.contracts import dumps
from device_agent.measuring.preflight import Check
from tests.unit.device_agent.agent.agent_samples import kernel, kernel_task
from tests.unit.device_agent.agent.fake_kerf_server import CODE, FakeServer


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cli.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cli, "configure_logging", lambda level: None)


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def test_enrol_stores_the_token_and_prints_no_secret(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ("--state-dir", str(tmp_path), "--simulated")
    assert run("enrol", "--server", server.url, "--code", CODE, "--name", "bench 1", *state) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"device_id": "d1", "server": server.url, "state_dir": str(tmp_path)}
    assert server.token not in printed.out + printed.err
    (enrolment,) = server.enrolments
    assert enrolment.device_name == "bench 1"
    assert [info.name for info in enrolment.runtimes] == ["simulated"]


def test_enrolling_again_is_the_same_device(server: FakeServer, tmp_path: Path) -> None:
    for _ in range(2):
        assert run("enrol", "--server", server.url, "--code", CODE, "--state-dir", str(tmp_path), "--simulated") == 0
    first, second = server.enrolments
    assert first.agent_key == second.agent_key


def test_a_lost_answer_to_the_enrolment_is_repeated(server: FakeServer, tmp_path: Path) -> None:
    server.fault(":enrol", drop="after")
    assert run("enrol", "--server", server.url, "--code", CODE, "--state-dir", str(tmp_path), "--simulated") == 0
    first, second = server.enrolments
    assert first.agent_key == second.agent_key


def test_a_wrong_code_leaves_nothing_behind(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("enrol", "--server", server.url, "--code", "kerf_e_wrong", "--state-dir", str(tmp_path))
    assert run(*arguments, "--simulated") == cli.EXIT_REFUSED
    assert "new code" in capsys.readouterr().err
    assert not (tmp_path / "credentials.json").exists()


def test_an_unreachable_server_is_given_up_on_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("enrol", "--server", "http://127.0.0.1:9", "--code", CODE, "--state-dir", str(tmp_path))
    assert run(*arguments, "--simulated", "--attempts", "2") == cli.EXIT_ERROR
    assert "cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("run",), "--server"),
        (("run", "--server", "http://127.0.0.1:9"), "--code"),
        (("run", "--server", "nonsense"), "nonsense"),
        (("run", "--max-leases", "0"), "1..64"),
    ],
)
def test_what_is_missing_is_named(
    arguments: tuple[str, ...], remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--state-dir", str(tmp_path), "--simulated") == cli.EXIT_ERROR
    assert remedy in capsys.readouterr().err


def test_probe_prints_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("probe", "--simulated") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["profile"]["simulated"] is True
    assert printed["runtimes"][0]["name"] == "simulated"


def test_bench_times_a_kernel_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kernel.json"
    path.write_text(dumps(kernel()))
    assert run("bench", str(path), "--runtime", "simulated", "--simulated") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kernel_id"].startswith("k_")
    assert printed["result"]["provenance"]["source"] == "simulated"
    assert "blocks" not in printed["result"]


def test_bench_takes_a_whole_task_with_its_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "task.json"
    path.write_text(dumps(kernel_task(0, "simulated")))
    assert run("bench", str(path), "--simulated", "--samples") == 0
    assert json.loads(capsys.readouterr().out)["result"]["blocks"]


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "not JSON"), ('{"op": "conv2d"}', "in_channels"), ('{"op": "conv3d"}', "conv3d"), (None, "cannot read")],
)
def test_bench_names_what_is_wrong_with_the_file(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kernel.json"
    if content is not None:
        path.write_text(content)
    assert run("bench", str(path), "--simulated") == cli.EXIT_ERROR
    assert said in capsys.readouterr().err


def test_a_runtime_that_the_device_does_not_have_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kernel.json"
    path.write_text(dumps(kernel()))
    assert run("bench", str(path), "--runtime", "native", "--simulated") == cli.EXIT_ERROR
    printed = json.loads(capsys.readouterr().out)
    assert printed["result"]["reason"] == "unsupported"


def test_preflight_says_what_it_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = [Check(name="battery", ok=True, found="none"), Check(name="governor", ok=None, found="not known")]
    monkeypatch.setattr(cli, "checks", lambda *_: found)
    assert run("preflight", "--seconds", "0") == 0
    found.append(Check(name="quota", ok=False, found="0.5 CPUs", remedy="raise it"))
    assert run("preflight", "--seconds", "0") == cli.EXIT_ERROR
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["bad", "quota", "0.5", "CPUs:", "raise", "it"]
    assert run("preflight", "--seconds", "0", "--json") == cli.EXIT_ERROR
    quota = json.loads(capsys.readouterr().out)[-1]
    assert quota == {"name": "quota", "ok": False, "found": "0.5 CPUs", "remedy": "raise it"}
