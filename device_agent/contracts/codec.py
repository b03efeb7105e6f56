"""Contracts to and from JSON, and the one canonical form that every identity is hashed from.

The wire types are plain frozen dataclasses; this module is all the serialisation they need, so that
an agent has no dependency for it. Unknown keys are refused on decoding: a newer peer must not be
half understood. Only in what a server answers (`loads_answer`) they are passed over, as servers are upgraded first.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]


#: How errors show a value: whole where it is short, and of a large one no more than the beginning.
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200
_SHOWN.maxlist = _SHOWN.maxdict = _SHOWN.maxtuple = 10
_SHOWN.maxlevel = 3


class ContractError(ValueError):
    """A message or a value does not satisfy its contract. The text names the field, the value and the remedy."""


def encode(value: object) -> Any:
    """A contract value as JSON-compatible data. Non-finite floats raise `ContractError`: JSON has none."""
    if value is None or isinstance(value, bool | int):
        return value if not isinstance(value, Enum) else value.value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ContractError(f"{value!r} cannot be sent as JSON: use None for an undefined number")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [encode(v) for v in value]
    raise ContractError(f"{type(value).__name__} is no contract type")


def decode(cls: type[T], data: object, where: str = "") -> T:
    """Build `cls` from JSON data, checking types and names on the way.

    Raises `ContractError` naming the path of the first thing that does not fit.
    """
    return typing.cast(T, _decode(cls, data, where or getattr(cls, "__name__", str(cls))))


def dumps(value: object) -> str:
    """`value` as compact JSON text."""
    return json.dumps(encode(value), separators=(",", ":"), allow_nan=False)


def loads(cls: type[T], text: str | bytes) -> T:
    """Decode JSON text into `cls`; malformed text is a `ContractError` as well."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ContractError(f"not valid JSON: {error}") from None
    return decode(cls, data)


def loads_answer(cls: type[T], text: str | bytes) -> T:
    """As `loads`, for the answer of a server that may be newer: fields that this version does not have are left out."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ContractError(f"not valid JSON: {error}") from None
    return decode(cls, _known_part(cls, data))


def _known_part(hint: Any, data: object) -> object:
    """`data` without the fields that the dataclasses in `hint` do not have."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis and isinstance(data, list):
        return [_known_part(arguments[0], item) for item in data]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(data, Mapping):
        hints = _hints(hint)
        return {name: _known_part(hints[name], value) for name, value in data.items() if name in hints}
    return data


def canonical_json(value: object) -> str:
    """Canonical JSON: keys sorted, no spaces, and fields that equal their default left out.

    Leaving defaults out lets a later version add an optional field without changing any old identity.
    """
    return json.dumps(_without_defaults(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_id(prefix: str, value: object) -> str:
    """The identity of a contract value: `prefix_` and 128 bits of SHA-256 over its canonical JSON, in hex."""
    digest = hashlib.sha256(canonical_json(value).encode()).hexdigest()
    return f"{prefix}_{digest[:32]}"


def _without_defaults(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.default is not dataclasses.MISSING and item == field.default:
                continue
            if field.default_factory is not dataclasses.MISSING and item == field.default_factory():
                continue
            kept[field.name] = _without_defaults(item)
        return kept
    if isinstance(value, Mapping):
        return {str(k): _without_defaults(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_defaults(v) for v in value]
    return encode(value)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(hint: Any, data: object, where: str) -> object:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _decode(typing.get_args(hint)[0], data, where)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(hint), data, where)
    if origin is tuple:
        args = typing.get_args(hint)
        if not isinstance(data, list | tuple):
            raise ContractError(f"{where}: expected a list, got {_SHOWN.repr(data)}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(data))
        if len(args) != len(data):
            raise ContractError(f"{where}: expected {len(args)} items, got {len(data)}")
        return tuple(_decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, data, strict=True)))
    if origin in (dict, Mapping):
        if not isinstance(data, Mapping):
            raise ContractError(f"{where}: expected an object, got {_SHOWN.repr(data)}")
        item = typing.get_args(hint)[1]
        return {str(k): _decode(item, v, f"{where}.{k}") for k, v in data.items()}
    if hint is Any or hint is object:
        return data
    if isinstance(hint, type):
        return _decode_class(hint, data, where)
    raise ContractError(f"{where}: {hint!r} is no contract type")


def _decode_union(options: tuple[Any, ...], data: object, where: str) -> object:
    if data is None and type(None) in options:
        return None
    choices = [o for o in options if o is not type(None)]
    if len(choices) == 1:
        return _decode(choices[0], data, where)
    errors = []
    for option in choices:
        try:
            return _decode(option, data, where)
        except ContractError as error:
            errors.append((_num_shared_names(option, data), str(error)))
    # What is wrong is told of the alternative that was meant.
    most = max(shared for shared, _ in errors)
    meant = [text for shared, text in errors if shared == most]
    raise ContractError(meant[0] if len(meant) == 1 else f"{where}: no alternative fits: {'; '.join(meant)}")


def _num_shared_names(option: Any, data: object) -> int:
    if not (dataclasses.is_dataclass(option) and isinstance(data, Mapping)):
        return 0
    return len({f.name for f in dataclasses.fields(option)} & set(data))


def _decode_class(cls: type, data: object, where: str) -> object:
    if isinstance(data, cls) and not dataclasses.is_dataclass(cls):
        if isinstance(data, bool) and cls is not bool:
            raise ContractError(f"{where}: expected {cls.__name__}, got {_SHOWN.repr(data)}")
        if isinstance(data, float) and not math.isfinite(data):
            raise ContractError(f"{where}: {_SHOWN.repr(data)} is not a finite number")
        return data
    if issubclass(cls, Enum):
        try:
            return cls(data)
        except ValueError:
            known = ", ".join(repr(m.value) for m in cls)
            raise ContractError(f"{where}: {_SHOWN.repr(data)} is not one of {known}") from None
    if dataclasses.is_dataclass(cls):
        return _decode_dataclass(cls, data, where)
    if cls is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    raise ContractError(f"{where}: expected {cls.__name__}, got {_SHOWN.repr(data)}")


def _decode_dataclass(cls: type, data: object, where: str) -> object:
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise ContractError(f"{where}: expected an object, got {_SHOWN.repr(data)}")
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    unknown = sorted(str(k) for k in data if k not in fields)
    if unknown:
        raise ContractError(f"{where}: unknown field {_SHOWN.repr(unknown[0])}; known are {', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _decode(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ContractError(f"{where}: the field {name!r} is missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise ContractError(f"{where}: {error}") from None
