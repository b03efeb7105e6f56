"""What all resources are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Generic, TypedDict, TypeVar

from kerf.backends import finish
from kerf.operations import Prepared
from kerf.session import Session

T = TypeVar("T")

#: Items of one page of a list, as many as the server gives.
MAX_PAGE = 500
#: Items of a list unless more are asked for.
DEFAULT_LIMIT = 50


class Page(TypedDict, Generic[T]):
    """One page of a list. `next` is the `cursor` of the following one; None on the last."""

    items: list[T]
    next: str | None


class Items(list[T]):
    """The items of a list. `next` is the cursor of what comes behind them; None where that is nothing."""

    next: str | None = None


class Bound(ABC):
    """A resource of one client."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @abstractmethod
    def finish(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What a method returns whose work is `coroutine`."""


class SyncBound(Bound):
    """A resource whose methods wait."""

    def finish(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return finish(coroutine)


class AsyncBound(Bound):
    """A resource whose methods are awaited."""

    def finish(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return coroutine


async def collect(session: Session, page: Callable[..., Prepared[Page[T]]], limit: int, cursor: str | None) -> Items[T]:
    """Up to `limit` items, page by page. `page` prepares the request of one, given `limit` and `cursor`."""
    items: Items[T] = Items()
    items.next = cursor
    while True:
        part = await session.call(page(limit=min(MAX_PAGE, limit - len(items)), cursor=items.next))
        items += part["items"]
        items.next = part["next"]
        if items.next is None or len(items) >= limit:
            return items


def iterate(items: AsyncIterator[T]) -> Iterator[T]:
    """The items of an iterator that never suspends."""
    try:
        while True:
            try:
                yield finish(anext(items))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            finish(close())
