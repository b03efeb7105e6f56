"""Operations of the REST interface as data, and methods made of them, for both kinds of clients.

An operation says what to send and how to read the answer; a procedure is a coroutine that takes several of them. Both
are written once. On a resource of the asynchronous client they are methods to await; on one of the synchronous client
the same coroutine runs to its end at once, since nothing in it ever suspends (see `kerf.backends`).
"""

from __future__ import annotations

import functools
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload
from urllib.parse import quote

import httpx

from kerf.errors import error_of
from kerf.files import Download

if TYPE_CHECKING:
    from kerf.resources.base import AsyncBound, Bound, SyncBound

P = ParamSpec("P")
T = TypeVar("T")

#: Repeating these is harmless by what they mean (RFC 9110, section 9.2.2).
_IDEMPOTENT = ("GET", "HEAD", "PUT", "DELETE")


def read_json(response: httpx.Response) -> Any:
    """The body as JSON data."""
    return response.json()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[T]):
    """What differs from one call of an operation to the next.

    Attributes:
        path: Values of the places in the operation's path.
        query: Parameters; those that are None are left out.
        json: The body, unless `upload` is one.
        upload: A file that is the body.
        download: Takes the body of the answer.
        accept: Statuses of 400 and above that are answers and no errors.
        timeout_s: Instead of the client's.
        max_attempts: Instead of the client's, where it is less.
        is_repeatable: Instead of what the operation says.
        read: Makes the result from the answer.
    """

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    upload: Path | None = None
    download: Download | None = None
    accept: tuple[int, ...] = ()
    timeout_s: float | None = None
    max_attempts: int | None = None
    is_repeatable: bool | None = None
    read: Callable[[httpx.Response], T] = read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Generic[T]):
    """A request with its address: all that a session needs."""

    method: str
    url: str
    request: Request[T]
    is_repeatable: bool

    def result(self, response: httpx.Response) -> T:
        """What the operation returns. Raises `ApiError` where the server refused it."""
        if response.status_code >= 400 and response.status_code not in self.request.accept:
            raise error_of(response)
        if self.request.download is not None:
            self.request.download.commit()
        return self.request.read(response)


class _Bindable(ABC, Generic[P, T]):
    """A descriptor: on a resource, a method; on the class, itself."""

    def __init__(self, written: Callable[..., Any]) -> None:
        @functools.wraps(written)
        def method(instance: Bound, *args: Any, **kwargs: Any) -> Any:
            return instance.finish(self.start(instance, *args, **kwargs))

        self.__doc__ = written.__doc__
        self._method = method

    @abstractmethod
    def start(self, instance: Bound, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        """The coroutine that does the work of one call."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: SyncBound, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, instance: AsyncBound, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else types.MethodType(self._method, instance)


class Operation(_Bindable[P, T]):
    """One operation of the REST interface; see `operation`."""

    def __init__(self, method: str, path: str, written: Callable[..., Request[T]], *, is_repeatable: bool) -> None:
        super().__init__(written)
        self.method, self.path = method, path
        self._written = written
        self._is_repeatable = is_repeatable

    def prepare(self, *args: P.args, **kwargs: P.kwargs) -> Prepared[T]:
        """The request of one call."""
        request = self._written(None, *args, **kwargs)
        known = request.is_repeatable
        return Prepared(
            method=self.method,
            url=self.path.format(**{name: quote(value, safe="") for name, value in request.path.items()}),
            request=request,
            is_repeatable=self._is_repeatable if known is None else known,
        )

    def start(self, instance: Bound, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return instance.session.call(self.prepare(*args, **kwargs))


class Procedure(_Bindable[P, T]):
    """Several operations under one name; see `procedure`."""

    def __init__(self, written: Callable[..., Coroutine[Any, Any, T]]) -> None:
        super().__init__(written)
        self._written = written

    def start(self, instance: Bound, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._written(instance, *args, **kwargs)


def operation(
    method: str, path: str, *, is_repeatable: bool | None = None
) -> Callable[[Callable[Concatenate[Any, P], Request[T]]], Operation[P, T]]:
    """Make an operation of a function that fills in its request.

    `path` is that of the OpenAPI document. GET, HEAD and PUT are repeatable unless `is_repeatable` says otherwise.
    """
    repeatable = method in _IDEMPOTENT if is_repeatable is None else is_repeatable

    def decorate(written: Callable[Concatenate[Any, P], Request[T]]) -> Operation[P, T]:
        return Operation(method, path, written, is_repeatable=repeatable)

    return decorate


def procedure(written: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Procedure[P, T]:
    """Make a method of both kinds of clients of a coroutine function that awaits nothing but its session."""
    return Procedure(written)
