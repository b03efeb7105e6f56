"""What registering models and data sets has in common: names, and artifacts that must be there."""

from __future__ import annotations

from device_agent.contracts import ContractError
from server.accounts.service import Principal
from server.artifacts.visibility import is_visible
from server.context import Context
from server.errors import Unprocessable
from server.searches.visibility import sees_only

MAX_NAME_CHARS = 200


def check_name(name: str) -> None:
    """Raise `ContractError` where a name is too short or too long."""
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise ContractError(f"name must have 1 to {MAX_NAME_CHARS} characters, not {len(name)}")


def check_stored(context: Context, principal: Principal, field: str, sha256: str) -> None:
    """Raise `Unprocessable` where there is no such artifact that `principal` sees."""
    owner = sees_only(context.settings, principal)
    with context.database.read() as session:
        if not context.store.has(sha256) or not is_visible(session, sha256, owner):
            raise refused(field, f"no artifact {sha256} is stored: upload it to /v1/artifacts/sha256/{sha256} first")


def refused(field: str, message: str) -> Unprocessable:
    """A 422 that names the field."""
    return Unprocessable(f"{field}: {message}", errors=[{"field": field, "message": message}])
