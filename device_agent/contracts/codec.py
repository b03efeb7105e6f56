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
from collections.abc import Callable, Mapping, Sequence
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


#: What JSON has as it is. Exact types: an enumeration may be a number or a text as well.
_PLAIN: frozenset[type] = frozenset({type(None), bool, int, str})


def encode(value: object) -> Any:
    """A contract value as JSON-compatible data. Non-finite floats raise `ContractError`: JSON has none."""
    kind: Any = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ContractError(f"{value!r} cannot be sent as JSON: use None for an undefined number")
        return value
    if kind is tuple or kind is list:
        return [encode(item) for item in typing.cast(Sequence[object], value)]
    if isinstance(value, Enum):
        return value.value
    if (names := _field_names(kind)) is not None:
        return {name: encode(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray | str):
        return [encode(item) for item in value]
    if isinstance(value, int | str):
        return value
    raise ContractError(f"{kind.__name__} is no contract type")


@functools.cache
def _field_names(kind: Any) -> tuple[str, ...] | None:
    """The fields of a dataclass; None for any other class."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def decode(cls: type[T], data: object, where: str = "") -> T:
    """Build `cls` from JSON data, checking types and names on the way.

    Raises `ContractError` naming the path of the first thing that does not fit.
    """
    hint: Any = cls
    try:
        return typing.cast(T, _decoder(hint)(data))
    except _Misfit as misfit:
        raise ContractError(misfit.text(where or getattr(cls, "__name__", str(cls)))) from None


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


#: Builds a value from JSON data, or raises `_Misfit`.
_Decoder = Callable[[Any], Any]


class _Misfit(Exception):
    """What does not fit, and below which path. The path grows on the way out: nothing is spent on it where all fits."""

    def __init__(self, message: str, alternatives: Sequence[_Misfit] = ()) -> None:
        super().__init__(message)
        self._message = message
        self._alternatives = alternatives
        self._path = ""

    def under(self, step: str) -> _Misfit:
        self._path = step + self._path
        return self

    def text(self, where: str) -> str:
        place = where + self._path
        if self._alternatives:
            return f"{place}: no alternative fits: {'; '.join(found.text(place) for found in self._alternatives)}"
        return f"{place}: {self._message}"


def _decoder(hint: Any) -> _Decoder:
    """How to build what a type hint says."""
    if hint is Any:
        return _as_it_is
    if isinstance(hint, type) and not typing.get_args(hint):
        return _class_decoder(hint)
    # Not kept by hint: `int | float` equals `float | int`, but is tried in another order.
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _decoder(args[0])
    if origin in (typing.Union, types.UnionType):
        return _union_decoder(args)
    if origin is tuple:
        return _list_decoder(_decoder(args[0])) if args[1:] == (Ellipsis,) else _items_decoder(args)
    if origin in (dict, Mapping):
        return _mapping_decoder(_decoder(args[1]))
    raise ContractError(f"{hint!r} is no contract type")


@functools.cache
def _class_decoder(cls: Any) -> _Decoder:
    if cls is object:
        return _as_it_is
    if cls is float:
        return _float
    if dataclasses.is_dataclass(cls):
        return _dataclass_decoder(cls)
    return _enum_decoder(cls) if issubclass(cls, Enum) else _value_decoder(cls)


def _as_it_is(data: Any) -> Any:
    return data


def _float(data: Any) -> float:
    if not isinstance(data, int | float) or isinstance(data, bool):
        raise _Misfit(f"expected float, got {_SHOWN.repr(data)}")
    try:
        value = data if isinstance(data, float) else float(data)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise _Misfit(f"{_SHOWN.repr(data)} is not a finite number")
    return value


def _value_decoder(cls: type) -> _Decoder:
    def value(data: Any) -> Any:
        if not isinstance(data, cls) or (isinstance(data, bool) and cls is not bool):
            raise _Misfit(f"expected {cls.__name__}, got {_SHOWN.repr(data)}")
        return data

    return value


def _enum_decoder(cls: type[Enum]) -> _Decoder:
    def member(data: Any) -> Enum:
        try:
            return cls(data)
        except ValueError:
            known = ", ".join(repr(m.value) for m in cls)
            raise _Misfit(f"{_SHOWN.repr(data)} is not one of {known}") from None

    return member


def _list_decoder(item: _Decoder) -> _Decoder:
    def items(data: Any) -> tuple[Any, ...]:
        if not isinstance(data, list | tuple):
            raise _Misfit(f"expected a list, got {_SHOWN.repr(data)}")
        found: list[Any] = []
        try:
            for value in data:
                found.append(item(value))
        except _Misfit as misfit:
            raise misfit.under(f"[{len(found)}]") from None
        return tuple(found)

    return items


def _items_decoder(hints: tuple[Any, ...]) -> _Decoder:
    """A list of as many items, each of its own type."""
    decoders = [_decoder(hint) for hint in hints]

    def items(data: Any) -> tuple[Any, ...]:
        if not isinstance(data, list | tuple):
            raise _Misfit(f"expected a list, got {_SHOWN.repr(data)}")
        if len(decoders) != len(data):
            raise _Misfit(f"expected {len(decoders)} items, got {len(data)}")
        found: list[Any] = []
        try:
            for decoder, value in zip(decoders, data, strict=True):
                found.append(decoder(value))
        except _Misfit as misfit:
            raise misfit.under(f"[{len(found)}]") from None
        return tuple(found)

    return items


def _mapping_decoder(item: _Decoder) -> _Decoder:
    def mapping(data: Any) -> dict[str, Any]:
        if not isinstance(data, Mapping):
            raise _Misfit(f"expected an object, got {_SHOWN.repr(data)}")
        found = {}
        for key, value in data.items():
            try:
                found[str(key)] = item(value)
            except _Misfit as misfit:
                raise misfit.under(f".{key}") from None
        return found

    return mapping


def _union_decoder(options: tuple[Any, ...]) -> _Decoder:
    choices = [(option, _decoder(option)) for option in options if option is not type(None)]
    takes_none = len(choices) < len(options)

    def union(data: Any) -> Any:
        if data is None and takes_none:
            return None
        if len(choices) == 1:
            return choices[0][1](data)
        misfits = []
        for option, decoder in choices:
            try:
                return decoder(data)
            except _Misfit as misfit:
                misfits.append((_num_shared_names(option, data), misfit))
        # What is wrong is told of the alternative that was meant.
        most = max(shared for shared, _ in misfits)
        meant = [misfit for shared, misfit in misfits if shared == most]
        raise meant[0] if len(meant) == 1 else _Misfit("no alternative fits", meant)

    return union


def _num_shared_names(option: Any, data: object) -> int:
    if not (dataclasses.is_dataclass(option) and isinstance(data, Mapping)):
        return 0
    return len({f.name for f in dataclasses.fields(option)} & set(data))


def _dataclass_decoder(cls: Any) -> _Decoder:
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def instance(data: Any) -> Any:
        if isinstance(data, cls):
            return data
        if type(data) is not dict and not isinstance(data, Mapping):
            raise _Misfit(f"expected an object, got {_SHOWN.repr(data)}")
        if unknown := sorted(str(key) for key in data.keys() - fields.keys()):
            raise _Misfit(f"unknown field {_SHOWN.repr(unknown[0])}; known are {', '.join(fields)}")
        values = {}
        for name, decoder in _field_decoders(cls):
            if name in data:
                try:
                    values[name] = decoder(data[name])
                except _Misfit as misfit:
                    raise misfit.under(f".{name}") from None
            elif name in required:
                raise _Misfit(f"the field {name!r} is missing")
        try:
            return cls(**values)
        except ValueError as error:
            raise _Misfit(str(error)) from None

    return instance


@functools.cache
def _field_decoders(cls: Any) -> tuple[tuple[str, _Decoder], ...]:
    """Only asked for once an instance is built: a class may have fields of its own type."""
    hints = _hints(cls)
    return tuple((f.name, _decoder(hints[f.name])) for f in dataclasses.fields(cls) if f.init)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)
