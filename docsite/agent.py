"""The reference of `kerf-agent`: the help of each of its commands."""

from __future__ import annotations

import argparse
import os

from device_agent.cli import make_parser

_INTRODUCTION = """\
# kerf-agent

The command line of a device. [Devices](../devices.md) says how to set one up.
"""


def page() -> str:
    """The page as Markdown."""
    os.environ["COLUMNS"] = "100"  # argparse breaks lines by it
    parser = make_parser()
    parts = [_INTRODUCTION, _help(parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parts += [f"## kerf-agent {name}\n\n{_help(command)}" for name, command in action.choices.items()]
    return "\n".join(parts)


def _help(parser: argparse.ArgumentParser) -> str:
    return f"```text\n{parser.format_help().rstrip()}\n```\n"
