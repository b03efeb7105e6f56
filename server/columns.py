"""Column types and SQL expressions that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

import zlib
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Double, Enum, Integer, LargeBinary, MetaData, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

#: 64 bits on PostgreSQL; SQLite's INTEGER has 64 anyway, and only INTEGER can be its rowid.
BigInt = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """All tables. Constraints have names from the first migration on, so that later ones can drop them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class now_s(FunctionElement[float]):
    """The database's clock in seconds since 1970: the only clock that decides about expiry."""

    type = Double()
    inherit_cache = True


@compiles(now_s, "sqlite")
def _now_sqlite(element: now_s, compiler: SQLCompiler, **kw: Any) -> str:
    # julianday has a resolution of 40 us here; unixepoch('subsec') is younger than the oldest SQLite we run on.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now_s, "postgresql")
def _now_postgresql(element: now_s, compiler: SQLCompiler, **kw: Any) -> str:
    # now() stands still within a transaction, and clock_timestamp() is volatile, which keeps indices out of use.
    return "CAST(extract(epoch FROM statement_timestamp()) AS double precision)"


def database_time_s(session: Session) -> float:
    """The time by the clock that writes all times: ages are told by it."""
    return float(session.execute(select(now_s())).scalar_one())


class CompressedText(TypeDecorator[str]):
    """Text that is stored deflated: raw samples shrink to a fourth."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> bytes | None:
        return None if value is None else zlib.compress(value.encode(), 6)

    def process_result_value(self, value: bytes | None, dialect: Any) -> str | None:
        return None if value is None else zlib.decompress(value).decode()


def enum_column(cls: type[StrEnum]) -> Enum:
    """A closed set stored as its values.

    No CHECK constraint: changing one passes on SQLite and fails on PostgreSQL (DuplicateObject).
    """
    return Enum(
        cls,
        native_enum=False,
        create_constraint=False,
        length=32,
        values_callable=lambda members: [m.value for m in members],
    )
