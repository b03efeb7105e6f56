"""`kerf search ls` and `kerf devices ls` against a running server."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from server.cli.local_stack import LocalStack
from server.cli.main import app

pytestmark = pytest.mark.xdist_group("stack")


def listed(stack: LocalStack, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--server", stack.url, "--token", stack.token])
    assert done.exit_code == 0, done.output
    return done.output


def test_devices_as_a_table_and_as_json(simulated_stack: LocalStack) -> None:
    table = listed(simulated_stack, "devices", "ls")
    assert "local" in table
    assert "simulated" in table
    (device,) = json.loads(listed(simulated_stack, "devices", "ls", "--json"))
    assert device["name"] == "local"
    assert device["id"] in table


def test_searches_as_a_table_and_as_json(simulated_stack: LocalStack) -> None:
    items = json.loads(listed(simulated_stack, "search", "ls", "--json"))
    table = listed(simulated_stack, "search", "ls")
    assert table.split()[:5] == ["id", "name", "method", "state", "stage"]
    assert all(item["id"] in table for item in items)


def test_an_enrolment_code_comes_with_its_command(simulated_stack: LocalStack) -> None:
    assert f"kerf-agent run --server {simulated_stack.url} --code " in listed(simulated_stack, "enrol-code")
