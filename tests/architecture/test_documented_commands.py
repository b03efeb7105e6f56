"""Every command that the documentation shows or mentions would be accepted, whether a test can run it or not."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from tests.docs.accepted import Refused, check_command, check_mentioned
from tests.docs.blocks import LANGUAGES, Block, blocks, command_blocks, pages, simple_commands, tokens

BLOCKS = command_blocks()


@pytest.mark.parametrize("page", pages())
def test_every_block_says_what_it_is(page: str) -> None:
    assert [b.where for b in blocks(page) if b.language not in LANGUAGES] == []
    # Indented blocks say nothing of what they are, so nothing could look at them.
    assert [t.map for t in tokens(page) if t.type == "code_block"] == []


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_the_commands_of_a_block_would_be_accepted(block: Block) -> None:
    assert block.not_run is None or block.not_run, "a block that is not run says why"
    syntax = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert syntax.returncode == 0, syntax.stderr
    commands = list(simple_commands(block.text))
    assert commands
    for command in commands:
        try:
            check_command(command)
        except Refused as refused:
            pytest.fail(f"{block.where}: `{shlex.join(command)}`: {refused}")


@pytest.mark.parametrize("page", pages())
def test_the_commands_that_prose_mentions_exist(page: str) -> None:
    for token in tokens(page):
        for child in token.children or ():
            if child.type != "code_inline" or not re.match(r"kerf(-agent)? ", child.content):
                continue
            words = shlex.split(child.content)
            try:
                if words[0] == "kerf":
                    check_mentioned(words)
                elif not words[1].isupper() and words[1] != "...":
                    check_command([*words[:2], "--help"])
            except Refused as refused:
                pytest.fail(f"{page}: `{child.content}`: {refused}")


@pytest.mark.parametrize(
    "command",
    [
        "kerf search stop SEARCH",
        "kerf search pause SEARCH --now",
        "kerf-agent start",
        "python -m bench.kernels --fast",
        "python -m bench.nothing",
        "python gone.py",
        "pip install 'kerf[gpu]'",
        "make everything",
        "docker compose exec server kerf tokens make",
        "taskset -c 0-3 kerf-agent start",
        "krf up",
    ],
)
def test_what_is_not_there_is_found(command: str) -> None:
    with pytest.raises(Refused):
        check_command(shlex.split(command))


def test_a_script_is_its_simple_commands() -> None:
    script = """\
A=1 kerf up --host 0.0.0.0 &   # behind it
for core in 0 1; do
  echo performance | sudo tee $core/scaling_governor
done
cd out && kerf search report 'a b' \\
    -o report.html > log.txt
"""
    assert list(simple_commands(script)) == [
        ["kerf", "up", "--host", "0.0.0.0"],
        ["echo", "performance"],
        ["sudo", "tee", "$core/scaling_governor"],
        ["cd", "out"],
        ["kerf", "search", "report", "a b", "-o", "report.html"],
    ]
