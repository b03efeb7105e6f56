"""/healthz, /readyz and /v1/version."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from sqlalchemy import text

from device_agent import __version__
from device_agent.contracts import WIRE_VERSION
from server.context import Context, ContextDep
from server.errors import Unavailable
from server.schema import is_known_schema, newest_schema, schema_of
from server.wire import PROBLEMS, ContractResponse, answer

router = APIRouter(tags=["status"], responses={503: PROBLEMS[503]})

#: Less than this, and SQLite or an upload will soon fail.
MIN_FREE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """`wire` is the version of the agents' messages; agents of another one are refused."""

    version: str
    wire: int
    schema: str


@router.get("/healthz", responses=answer(Health))
async def healthz(context: ContextDep) -> Response:
    """Whether the process answers and does its regular work; the database is not asked. If not, restart it."""
    ended = [task.get_name() for task in context.background if task.done()]
    if ended and not context.stopping.is_set():
        raise Unavailable(f"{', '.join(ended)} ended: restart the server; its log has the reason", code="unhealthy")
    return ContractResponse(Health(status="ok"))


def ready(context: ContextDep) -> Context:
    """Raises `Unavailable` unless the database answers, is where it was, has the newest schema, and the disk has room;
    and while the process stops, so that no proxy sends it more.
    """
    if context.stopping.is_set():
        raise Unavailable("the server stops: ask another one, or again in a moment", code="stopping")
    if context.database.is_elsewhere():
        raise Unavailable(
            "the database's file was moved, removed or replaced while the server ran: stop it, put the right file in "
            "its place, and start it",
            code="not_ready",
        )
    found, expected = _schema(context), newest_schema()
    # A schema that this code does not know is a newer one: the upgrade is under way, and a migration keeps the release
    # before it at work.
    if found != expected and (found is None or is_known_schema(found)):
        raise Unavailable(
            f"the database has schema {found}, the code needs {expected}: run `kerf db upgrade`", code="not_ready"
        )
    free_bytes = shutil.disk_usage(context.settings.data_dir).free
    if free_bytes < MIN_FREE_BYTES:
        raise Unavailable(f"{free_bytes >> 20} MiB are free under the data directory: make room", code="disk_full")
    return context


@router.get("/readyz", responses=answer(Health))
def readyz(context: Annotated[Context, Depends(ready)]) -> Response:
    """Whether requests can be served."""
    return ContractResponse(Health(status="ready"))


@router.get("/v1/version", responses=answer(Version))
def version(context: ContextDep) -> Response:
    return ContractResponse(Version(version=__version__, wire=WIRE_VERSION, schema=_schema(context) or "none"))


def _schema(context: Context) -> str | None:
    with context.database.read() as session:
        session.execute(text("SELECT 1"))
        return schema_of(session.connection())
