"""YAML that a user wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from server.cli.errors import ConfigFileError


def read_yaml(path: Path, what: str) -> Any:
    """The content of a file, which errors call `what`. Raises `ConfigFileError` where it cannot be read, is no YAML, or
    has a key twice, of which YAML would take the last without a word.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigFileError(f"cannot read the {what} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigFileError(f"{path} is not valid YAML: {error}") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigFileError(f"{path} is not valid YAML: {error}") from None
    for key, first, again in _repeated_keys(root):
        raise ConfigFileError(
            f"{path}: the key {key!r} of line {first} is there again in line {again}: keep one of them"
        )
    return data


def _repeated_keys(root: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """Each key that a mapping has twice, with both lines."""
    waiting, seen = [] if root is None else [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue  # An anchor that is used again.
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, Any], int] = {}
            for key, value in node.value:
                waiting.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    yield key.value, lines[name], line
                lines[name] = line
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
