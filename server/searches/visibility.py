"""Whose searches a user sees: everybody's, or with `multi_user` only those made with a token of the same name.

The latency database, devices, models and data sets are shared in both cases; `server.artifacts.visibility` tells of
artifacts. Admins see everything.
"""

from __future__ import annotations

from collections.abc import Collection

from fastapi import Request
from sqlalchemy import ColumnElement, exists, select, true
from sqlalchemy.orm import Session

from server.accounts.service import Principal, Scope
from server.context import ContextDep, PrincipalDep
from server.errors import NotFound
from server.models import SearchRow, TokenRow
from server.settings import Settings


def sees_only(settings: Settings, principal: Principal) -> str | None:
    """The user whose searches alone `principal` sees; None where it sees all."""
    return principal.name if settings.multi_user and not principal.may(Scope.ADMIN) else None


def is_of(owner: str | None) -> ColumnElement[bool]:
    """SQL: the search was submitted by `owner`, with whichever token; for None every search was."""
    if owner is None:
        return true()
    return SearchRow.created_by.in_(select(TokenRow.id).where(TokenRow.name == owner))


def visible_ids(session: Session, search_ids: Collection[str], owner: str | None) -> frozenset[str]:
    """Those of `search_ids` that `owner` may see."""
    if owner is None:
        return frozenset(search_ids)
    return frozenset(session.scalars(select(SearchRow.id).where(SearchRow.id.in_(search_ids), is_of(owner))))


def require_visible(session: Session, search_id: str, owner: str | None) -> None:
    """Raises `NotFound`, in the words of a search that is not there."""
    if owner is None or session.scalar(select(exists().where(SearchRow.id == search_id, is_of(owner)))):
        return
    raise NotFound(f"there is no search {search_id!r}: GET /v1/searches lists them")


def check_visible(request: Request, context: ContextDep, principal: PrincipalDep) -> None:
    """A dependency of all routes about one search. Raises `NotFound` for another user's."""
    owner, search_id = sees_only(context.settings, principal), request.path_params.get("search_id")
    if owner is None or search_id is None:
        return
    with context.database.read() as session:
        require_visible(session, search_id, owner)
