"""`kerf doctor`: what is wrong with server, agent and devices, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from device_agent.contracts import encode
from kerf import NotConfigured
from server.cli.connection import ServerOption, TokenOption, connect
from server.cli.console import JsonOption, make_console, print_json
from server.cli.diagnosis.finding import Finding, Level, broken
from server.cli.diagnosis.machine import machine_findings
from server.cli.diagnosis.service import service_findings
from server.settings import Settings

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.BROKEN: "red", Level.UNKNOWN: "dim"}

#: Of the columns in front of what was found: those of the longest level and of nearly the longest name.
_WIDTHS = (8, 21)


class SomethingIsBroken(Exception):
    """The doctor found something that does not work. Everything was told already."""


def doctor(
    machine: Annotated[bool, typer.Option(help="Look at this machine too, not only at the server.")] = True,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at this machine, the server and its devices, and say what is wrong and what to do.

    Exit code 5 where something is broken; warnings alone are 0.
    """
    console = make_console()
    findings = []
    for finding in _findings(server, token, machine=machine):
        findings.append(finding)
        if not as_json:
            print_finding(finding, console)
    num_broken = sum(finding.level is Level.BROKEN for finding in findings)
    num_warnings = sum(finding.level is Level.WARNING for finding in findings)
    if as_json:
        print_json({"findings": encode(findings), "broken": num_broken, "warnings": num_warnings})
    else:
        console.print(f"\n{num_broken} broken, {num_warnings} warnings")
    if num_broken:
        raise SomethingIsBroken


def _findings(server: str | None, token: str | None, *, machine: bool) -> Iterator[Finding]:
    if machine:
        yield from machine_findings(Settings.from_env())
    try:
        client = connect(server, token)
    except NotConfigured as error:
        yield broken("token", str(error), "`kerf up` starts a server here; another server's admin makes a token")
        return
    with client:
        yield from service_findings(client)


def print_finding(finding: Finding, console: Console) -> None:
    # A table of its own for each, as they come one by one; what is long goes on below its beginning.
    table = Table.grid(padding=(0, 1))
    for width in _WIDTHS:
        table.add_column(min_width=width)
    table.add_column(overflow="fold")
    table.add_row(Text(finding.level.value, _STYLES[finding.level]), finding.name, finding.found)
    if finding.remedy and finding.level is not Level.OK:
        table.add_row("", "", f"-> {finding.remedy}")
    console.print(table)
