"""/v1/tokens: who may use the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from device_agent.contracts import ContractError
from server.accounts import repository
from server.accounts.service import DEFAULT_USER_SCOPES, Scope, mint_user_token
from server.context import Admin, ContextDep, PrincipalDep
from server.errors import NotFound, Unprocessable
from server.models import TokenRow
from server.wire import (
    DEFAULT_PAGE,
    PROBLEMS,
    ContractResponse,
    Limit,
    Page,
    answer,
    body_of,
    body_schema,
    decode_cursor,
    iso,
    page,
    page_answer,
)

router = APIRouter(prefix="/v1/tokens", tags=["tokens"], responses=PROBLEMS)

MAX_NAME_CHARS = 200
MAX_LIFETIME_S = 10 * 366 * 24 * 3600.0


#: One that is over before its maker has it is of no use.
MIN_LIFETIME_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """A token for the user `name`. It expires after `lifetime_s`; None is never."""

    name: str
    scopes: tuple[Scope, ...] = DEFAULT_USER_SCOPES
    lifetime_s: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= MAX_NAME_CHARS:
            raise ContractError(f"name must have 1 to {MAX_NAME_CHARS} characters, not {len(self.name)}")
        if not self.scopes:
            raise ContractError("scopes is empty: name what the token allows")
        if len(set(self.scopes)) < len(self.scopes):
            raise ContractError("scopes names one twice: name each once")
        if Scope.AGENT in self.scopes:
            raise ContractError("scopes: 'agent' belongs to devices: make an enrolment code instead")
        if self.lifetime_s is not None and not MIN_LIFETIME_S <= self.lifetime_s <= MAX_LIFETIME_S:
            raise ContractError(
                f"lifetime_s {self.lifetime_s!r} is not between {MIN_LIFETIME_S:g} and {MAX_LIFETIME_S:g}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A token without its secret. `device_id` is set for the token of an agent."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    device_id: str | None
    created_at: str | None
    last_used_at: str | None
    expires_at: str | None
    revoked_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """`secret` is shown once: it is stored hashed."""

    secret: str
    token: TokenView


@router.get("/current", responses=answer(TokenView))
def get_current_token(context: ContextDep, principal: PrincipalDep) -> Response:
    """The token of this request: whose it is, what it allows, and until when."""
    with context.database.read() as session:
        return ContractResponse(_view(session.get_one(TokenRow, principal.token_id)))


@router.get("", responses=page_answer(TokenView))
def list_tokens(
    context: ContextDep, principal: Admin, cursor: str | None = None, limit: Limit = DEFAULT_PAGE
) -> Response:
    """All tokens, revoked and expired ones included, in the order of their making."""
    with context.database.read() as session:
        rows = repository.list_tokens(session, after=decode_cursor(cursor), limit=limit + 1)
    part = page(rows, limit, key=lambda row: row.id)
    return ContractResponse(Page(items=tuple(_view(row) for row in part.items), next=part.next))


@router.post("", status_code=201, openapi_extra=body_schema("TokenRequest"), responses=answer(NewToken, status=201))
def create_token(
    context: ContextDep, principal: Admin, body: Annotated[TokenRequest, Depends(body_of(TokenRequest))]
) -> Response:
    """Make a token for a user. Its secret is in this answer and nowhere else."""
    with context.database.write() as session:
        secret = mint_user_token(
            session, context.hasher, name=body.name, scopes=body.scopes, lifetime_s=body.lifetime_s
        )
        found = repository.find_token(session, context.hasher.hash(secret))
        assert found is not None
        view = _view(session.get_one(TokenRow, found.id))
    return ContractResponse(NewToken(secret=secret, token=view), status_code=201)


@router.post("/{token_id}:revoke", responses=answer(TokenView))
def revoke_token(token_id: str, context: ContextDep, principal: Admin) -> Response:
    """Make a token useless, for good. The token of this request cannot revoke itself."""
    if token_id == principal.token_id:
        raise Unprocessable(f"{token_id} is the token of this request: revoke it with another one")
    with context.database.write() as session:
        row = repository.revoke_token(session, token_id)
        if row is None:
            raise NotFound(f"there is no token {token_id!r}: GET /v1/tokens lists them")
        return ContractResponse(_view(row))


def _view(row: TokenRow) -> TokenView:
    return TokenView(
        id=row.id,
        name=row.name,
        scopes=tuple(Scope(scope) for scope in row.scopes),
        device_id=row.device_id,
        created_at=iso(row.created_at),
        last_used_at=iso(row.last_used_at),
        expires_at=iso(row.expires_at),
        revoked_at=iso(row.revoked_at),
    )
