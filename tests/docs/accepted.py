"""Whether a command of the documentation would be accepted: its verb and its options exist. Nothing is run."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
import tomllib
from typing import Any

import typer

from device_agent import cli as agent_cli
from tests.docs.blocks import ROOT

#: Programs that are not ours. A name that is not here is a misspelt one, until it is.
PROGRAMS = {
    *(
        ".",
        "adb",
        "cat",
        "cc",
        "cd",
        "cp",
        "curl",
        "echo",
        "export",
        "getconf",
        "git",
        "grep",
        "jq",
        "ls",
        "mkdir",
        "openssl",
        "pkg",
        "ray",
    ),
    *(
        "install",
        "pg_dump",
        "psql",
        "systemctl",
        "systemd-run",
        "tee",
        "useradd",
        "termux-wake-lock",
        "unzip",
        "scp",
        "uptime",
        "vcgencmd",
        "./example",
    ),
}
#: The runbook's function that runs `kerf` as the service does.
AS_KERF = "as_kerf"
#: Programs that run what follows them, with how many words of their own (options not counted).
WRAPPERS = {"sudo": 0, "nohup": 0, "time": 0, "taskset": 1, "env": 0}

_EXTRAS = re.compile(r"\bkerf\[([^\]]*)\]|^\.{1,2}\[([^\]]*)\]")
KERF = typer.main.get_command(importlib.import_module("server.cli.main").app)
_RULES = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


class Refused(Exception):
    """The command would not be accepted. The text says why."""


def check_command(words: list[str]) -> None:
    """Raises `Refused` unless the command, given as its words, would be accepted."""
    program, arguments = words[0], words[1:]
    name = program.rpartition("/")[2]
    if program == AS_KERF:
        check_command(["kerf", *arguments])
        return
    if program in WRAPPERS:
        check_command(_behind_wrapper(arguments, WRAPPERS[program]))
    elif name == "kerf":
        check_kerf(arguments)
    elif name == "kerf-agent":
        _check_agent(arguments)
    elif name in ("python", "python3"):
        _check_python(arguments)
    elif name == "pip":
        _check_extras(arguments)
    elif name == "make":
        _check_rules(arguments)
    elif name == "docker":
        _check_docker(arguments)
    elif program not in PROGRAMS:
        raise Refused(f"{program!r} is not known: PROGRAMS in tests/docs/accepted.py lists what is")


def check_kerf(arguments: list[str]) -> None:
    """Parse as typer would, with the types of all values, but for the files that are not there."""
    command: Any = KERF
    name, rest = "kerf", list(arguments)
    while _has_verbs(command):
        if not rest or rest[0] in ("--help", "--version", "--install-completion", "--show-completion"):
            return
        name, *rest = rest
        found = command.commands.get(name)
        if found is None:
            raise Refused(f"there is no verb {name!r}; known are {', '.join(command.commands)}")
        command = found
    if "--help" in rest:
        return
    try:
        command.make_context(name, rest)
    except typer.TyperException as error:
        raise Refused(str(error)) from None


def check_mentioned(words: list[str]) -> None:
    """A command that prose mentions: it may leave out what it needs, but not name what is not there."""
    command: Any = KERF
    rest = list(words[1:])
    while _has_verbs(command) and rest and not rest[0].startswith("-"):
        name, *rest = rest
        # Placeholders: `kerf VERB --help`.
        if name.isupper() or name == "...":
            return
        if name not in command.commands:
            raise Refused(f"there is no verb {name!r}; known are {', '.join(command.commands)}")
        command = command.commands[name]
    known = {"--help", *(o for parameter in command.params for o in (*parameter.opts, *parameter.secondary_opts))}
    if _has_verbs(command):
        known |= {"--version", "--install-completion", "--show-completion"}
    for word in rest:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in known:
            raise Refused(f"there is no option {option}; known are {', '.join(sorted(known))}")


def _has_verbs(command: Any) -> bool:
    return hasattr(command, "commands")


def _behind_wrapper(arguments: list[str], num_own: int) -> list[str]:
    rest = arguments
    while rest and rest[0].startswith("-"):
        rest = rest[1:]
    rest = rest[num_own:]
    if not rest:
        raise Refused("nothing follows the program that runs another one")
    return rest


def _check_agent(arguments: list[str]) -> None:
    if "--help" in arguments:
        return
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            agent_cli.make_parser().parse_args(arguments)
    except SystemExit:
        raise Refused(told.getvalue().strip()) from None


def _check_python(arguments: list[str]) -> None:
    if arguments[:1] == ["-m"]:
        module, *rest = arguments[1:]
        if module == "device_agent":
            _check_agent(rest)
        elif module == "pip":
            _check_extras(rest)
        elif module != "venv":
            _check_options(_source_of(module), rest)
    elif arguments and arguments[0].endswith(".py"):
        # Scripts of ours lie in the repository or are what an export writes.
        name = arguments[0].rpartition("/")[2]
        places = [*ROOT.glob(f"examples/**/{name}"), *ROOT.glob(f"device_agent/native/deployment/{name}")]
        if not places:
            raise Refused(f"there is no {name} in examples or among what an export writes")
        _check_options(places[0].read_text(encoding="utf-8"), arguments[1:])


def _source_of(module: str) -> str:
    """The text of a module of ours, with that of the package it is the entry of."""
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec(module) is not None:
            path = ROOT / module.replace(".", "/")
            files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
            return "".join(file.read_text(encoding="utf-8") for file in files)
    raise Refused(f"there is no module {module}")


def _check_options(source: str, arguments: list[str]) -> None:
    for word in arguments:
        option = word.partition("=")[0]
        if option.startswith("--") and f'"{option}"' not in source:
            raise Refused(f"there is no option {option}")


def _check_extras(arguments: list[str]) -> None:
    for word in arguments:
        for names in _EXTRAS.findall(word):
            for extra in "".join(names).split(","):
                if extra not in _PROJECT["optional-dependencies"]:
                    raise Refused(f"there is no extra {extra!r} in pyproject.toml")


def _check_rules(arguments: list[str]) -> None:
    for word in arguments:
        if "=" not in word and word not in _RULES:
            raise Refused(f"the Makefile has no rule {word!r}")


def _check_docker(arguments: list[str]) -> None:
    if arguments[:1] != ["compose"]:
        raise Refused("only `docker compose` is used here")
    if "kerf" in arguments:
        check_kerf(arguments[arguments.index("kerf") + 1 :])
