"""Copies of a SQLite database that is in use."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import make_url

from server.database import BUSY_TIMEOUT_S, sqlite_module
from server.settings import Settings


def back_up(settings: Settings, target: Path) -> None:
    """Write the database as it is at one moment into `target`, which appears when it is whole.

    Raises `ValueError` for PostgreSQL, which has its own means, and `OSError` where there is nothing to copy, or
    `target` is there.
    """
    url = make_url(settings.url)
    if url.get_backend_name() != "sqlite":
        raise ValueError(
            f"{url.render_as_string(hide_password=True)} is no SQLite file: back PostgreSQL up with pg_dump"
        )
    source = Path(url.database or "")
    if not source.is_file():
        raise FileNotFoundError(f"there is no database {source}: see KERF_DATA_DIR and KERF_DATABASE_URL")
    if target.exists():
        raise FileExistsError(f"{target} is there: name another file")
    partial = target.with_name(target.name + ".part")
    partial.unlink(missing_ok=True)
    connection = sqlite_module().connect(f"file:{source}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
    try:
        # A read transaction (https://sqlite.org/lang_vacuum.html#vacuuminto): writers go on meanwhile.
        connection.execute("VACUUM INTO ?", (str(partial),))
    finally:
        connection.close()
    partial.replace(target)
