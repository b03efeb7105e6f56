"""/v1/tokens: who may use the server."""

from __future__ import annotations

from collections.abc import Sequence

from kerf.operations import Request, operation, procedure
from kerf.resources.base import MAX_PAGE, AsyncBound, Bound, Items, Page, SyncBound, collect
from kerf.schemas import NewToken, Scope, TokenView


class TokenOperations(Bound):
    """Tokens of users and agents. All but `current` need the scope "admin"."""

    @operation("GET", "/v1/tokens/current")
    def current(self) -> Request[TokenView]:
        """The token of this client: whose it is, what it allows, and until when."""
        return Request()

    @operation("GET", "/v1/tokens")
    def page(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Request[Page[TokenView]]:
        """One page of the tokens."""
        return Request(query={"limit": limit, "cursor": cursor})

    @procedure
    async def list(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Items[TokenView]:
        """Up to `limit` tokens, revoked and expired ones included, in the order of their making."""
        return await collect(self.session, TokenOperations.page.prepare, limit, cursor)

    @operation("POST", "/v1/tokens")
    def create(
        self,
        name: str,
        *,
        scopes: Sequence[Scope] = ("read", "searches:write", "artifacts:write"),
        lifetime_s: float | None = None,
    ) -> Request[NewToken]:
        """A token for the user `name`. Its `secret` is shown once."""
        return Request(json={"name": name, "scopes": [*scopes], "lifetime_s": lifetime_s})

    @operation("POST", "/v1/tokens/{token_id}:revoke", is_repeatable=True)
    def revoke(self, token_id: str) -> Request[TokenView]:
        """Make a token useless, for good."""
        return Request(path={"token_id": token_id})


class Tokens(TokenOperations, SyncBound):
    pass


class AsyncTokens(TokenOperations, AsyncBound):
    pass
