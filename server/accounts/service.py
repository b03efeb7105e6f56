"""Who may do what, and how secrets are given out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.orm import Session

from server.accounts import repository
from server.accounts.tokens import SecretHasher, SecretKind, is_well_formed, make_secret, write_private
from server.database import Database
from server.errors import Unauthorized
from server.settings import Settings

#: An enrolment code is typed into a board's terminal within a day, or made again.
DEFAULT_CODE_LIFETIME_S = 24 * 3600.0


class Scope(StrEnum):
    """What a token allows. ADMIN includes all but AGENT, which only an enrolled device has."""

    READ = "read"
    SEARCHES_WRITE = "searches:write"
    ARTIFACTS_WRITE = "artifacts:write"
    ADMIN = "admin"
    AGENT = "agent"


#: What a user's token allows unless something else is asked for: reading, and running searches.
DEFAULT_USER_SCOPES = (Scope.READ, Scope.SEARCHES_WRITE, Scope.ARTIFACTS_WRITE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who makes a request. `device_id` is set for an agent."""

    token_id: str
    name: str
    scopes: frozenset[Scope]
    device_id: str | None = None

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or (Scope.ADMIN in self.scopes and scope is not Scope.AGENT)


def mint_user_token(
    session: Session,
    hasher: SecretHasher,
    *,
    name: str,
    scopes: Iterable[Scope] = DEFAULT_USER_SCOPES,
    lifetime_s: float | None = None,
) -> str:
    """Make a user's token. It cannot be shown again."""
    token = make_secret(SecretKind.USER)
    repository.insert_token(
        session,
        token_hash=hasher.hash(token),
        name=name,
        scopes=sorted(s.value for s in scopes),
        lifetime_s=lifetime_s,
    )
    return token


def mint_agent_token(session: Session, hasher: SecretHasher, *, device_id: str, name: str) -> str:
    """Make the token of a device, which ends its earlier ones."""
    repository.revoke_device_tokens(session, device_id)
    token = make_secret(SecretKind.AGENT)
    repository.insert_token(
        session, token_hash=hasher.hash(token), name=name, scopes=[Scope.AGENT.value], device_id=device_id
    )
    return token


def mint_enrolment_code(
    session: Session, hasher: SecretHasher, *, max_uses: int = 1, lifetime_s: float = DEFAULT_CODE_LIFETIME_S
) -> tuple[str, float]:
    """Make a code that lets `max_uses` agents enrol; returns it and when it expires."""
    code = make_secret(SecretKind.ENROLMENT)
    _, expires_at = repository.insert_code(
        session, code_hash=hasher.hash(code), max_uses=max_uses, lifetime_s=lifetime_s
    )
    return code, expires_at


def authenticate(database: Database, hasher: SecretHasher, token: str) -> Principal:
    """Whose token this is. Raises `Unauthorized`."""
    if not is_well_formed(token):
        raise Unauthorized("this is no Kerf token: copy it again, whole", headers={"WWW-Authenticate": "Bearer"})
    with database.read() as session:
        found = repository.find_token(session, hasher.hash(token))
    if found is None:
        raise Unauthorized(
            "the token is unknown, expired or revoked: ask for a new one", headers={"WWW-Authenticate": "Bearer"}
        )
    if found.is_use_due:
        with database.write_one() as session:
            repository.touch_token(session, found.id)
    return Principal(
        token_id=found.id,
        name=found.name,
        scopes=frozenset(Scope(s) for s in found.scopes),
        device_id=found.device_id,
    )


def ensure_local_admin_token(database: Database, settings: Settings) -> str:
    """The token for this machine's user in the embedded mode, kept in `settings.local_token_file`.

    Made anew where the file is missing or its token is not valid in this database.
    """
    hasher = SecretHasher.from_settings(settings)
    path = settings.local_token_file
    if path.exists():
        token = path.read_text(encoding="ascii").strip()
        try:
            authenticate(database, hasher, token)
        except Unauthorized:
            pass
        else:
            return token
    with database.write() as session:
        token = mint_user_token(session, hasher, name="local user", scopes=(Scope.ADMIN,))
    write_private(path, token)
    return token
