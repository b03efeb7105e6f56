"""Tokens and enrolment codes in SQL. Only hashes come in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, bindparam, exists, insert, or_, select, update
from sqlalchemy.orm import Session

from server.columns import now_s
from server.ids import new_id
from server.models import DeviceRow, EnrolmentCodeRow, TokenRow

#: How stale `last_used_at` may be: exact times would turn every read into a write.
LAST_USED_RESOLUTION_S = 300.0


def insert_token(
    session: Session,
    *,
    token_hash: str,
    name: str,
    scopes: Sequence[str],
    device_id: str | None = None,
    lifetime_s: float | None = None,
) -> str:
    token_id = new_id("token")
    session.execute(
        insert(TokenRow).values(
            id=token_id,
            token_hash=token_hash,
            name=name,
            scopes=list(scopes),
            device_id=device_id,
            expires_at=None if lifetime_s is None else now_s() + lifetime_s,
        )
    )
    return token_id


_IS_USABLE = and_(TokenRow.revoked_at.is_(None), or_(TokenRow.expires_at.is_(None), TokenRow.expires_at > now_s()))

#: Built once: every request asks this, and to build it takes longer than to answer it.
_FIND_TOKEN = select(
    TokenRow.id,
    TokenRow.name,
    TokenRow.scopes,
    TokenRow.device_id,
    or_(TokenRow.last_used_at.is_(None), TokenRow.last_used_at < now_s() - LAST_USED_RESOLUTION_S).label("is_use_due"),
).where(TokenRow.token_hash == bindparam("token_hash"), _IS_USABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidToken:
    """A token that may be used now, and whether its `last_used_at` is due."""

    id: str
    name: str
    scopes: tuple[str, ...]
    device_id: str | None
    is_use_due: bool


def find_token(session: Session, token_hash: str) -> ValidToken | None:
    row = session.execute(_FIND_TOKEN, {"token_hash": token_hash}).one_or_none()
    if row is None:
        return None
    return ValidToken(
        id=row.id, name=row.name, scopes=tuple(row.scopes), device_id=row.device_id, is_use_due=bool(row.is_use_due)
    )


def is_usable(session: Session, token_id: str) -> bool:
    """Whether a token that was good still is."""
    return bool(session.scalar(select(exists().where(TokenRow.id == token_id, _IS_USABLE))))


def touch_token(session: Session, token_id: str) -> None:
    session.execute(
        update(TokenRow)
        .where(TokenRow.id == token_id)
        .values(last_used_at=now_s())
        .execution_options(synchronize_session=False)
    )


def revoke_device_tokens(session: Session, device_id: str) -> None:
    """Make every token of a device useless."""
    session.execute(
        update(TokenRow)
        .where(TokenRow.device_id == device_id, TokenRow.revoked_at.is_(None))
        .values(revoked_at=now_s())
        .execution_options(synchronize_session=False)
    )


def list_tokens(session: Session, *, after: str | None, limit: int) -> Sequence[TokenRow]:
    statement = select(TokenRow).order_by(TokenRow.id).limit(limit)
    return session.scalars(statement if after is None else statement.where(TokenRow.id > after)).all()


def revoke_token(session: Session, token_id: str) -> TokenRow | None:
    """Make a token useless; one that is keeps its time. None where there is no such token."""
    session.execute(
        update(TokenRow)
        .where(TokenRow.id == token_id, TokenRow.revoked_at.is_(None))
        .values(revoked_at=now_s())
        .execution_options(synchronize_session=False)
    )
    return session.get(TokenRow, token_id)


def insert_code(session: Session, *, code_hash: str, max_uses: int, lifetime_s: float) -> tuple[str, float]:
    """Store an enrolment code; returns its identity and when it expires."""
    code_id = new_id("code")
    expires_at = session.execute(
        insert(EnrolmentCodeRow)
        .values(id=code_id, code_hash=code_hash, max_uses=max_uses, expires_at=now_s() + lifetime_s)
        .returning(EnrolmentCodeRow.expires_at)
    ).scalar_one()
    return code_id, float(expires_at)


def may_repeat(session: Session, code_hash: str, device_id: str) -> bool:
    """Whether an enrolment of a device is one whose answer got lost: the same code, and its token was never used."""
    is_unused = exists().where(
        TokenRow.device_id == device_id, TokenRow.revoked_at.is_(None), TokenRow.last_used_at.is_(None)
    )
    enrolled_with = exists().where(
        DeviceRow.id == device_id,
        DeviceRow.enrolment_code_id == EnrolmentCodeRow.id,
        EnrolmentCodeRow.code_hash == code_hash,
    )
    return bool(session.scalar(select(and_(is_unused, enrolled_with))))


def use_code(session: Session, code_hash: str) -> str | None:
    """Take one use of a code, in one statement; None if it is unknown, used up or expired, else its identity."""
    return session.execute(
        update(EnrolmentCodeRow)
        .where(
            EnrolmentCodeRow.code_hash == code_hash,
            EnrolmentCodeRow.uses < EnrolmentCodeRow.max_uses,
            EnrolmentCodeRow.expires_at > now_s(),
        )
        .values(uses=EnrolmentCodeRow.uses + 1)
        .returning(EnrolmentCodeRow.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
