"""Databases of earlier schemas, as files in the repository: `python -m tests.migration.stored` adds the newest.

They are backups (`kerf db backup`), compressed, with rows in every table. `manifest.json` tells for each schema which
migration it came from (its SHA-256) and whether it is released. A released one is never made again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from fastapi.testclient import TestClient

from server.app import create_app
from server.backup import back_up
from server.database import migrations_dir, upgrade
from server.schema import newest_schema
from server.settings import Settings
from tests.unit.server.filled_database import fill
from tests.unit.server.server_lab import ServerLab

FOLDER = Path(__file__).parents[1] / "fixtures" / "databases"
MANIFEST = FOLDER / "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDatabase:
    """A database of the schema `schema`. `search_id` is a search in it that has measurements."""

    schema: str
    migration_sha256: str
    is_released: bool
    search_id: str

    @property
    def is_current(self) -> bool:
        """Whether the migration is what it was when the file was made."""
        return self.migration_sha256 == migration_sha256(self.schema)

    def unpack(self, target: Path) -> None:
        target.write_bytes(gzip.decompress((FOLDER / f"{self.schema}.db.gz").read_bytes()))


def stored_databases() -> list[StoredDatabase]:
    return [StoredDatabase(**item) for item in json.loads(MANIFEST.read_text(encoding="utf-8"))]


def migration_sha256(schema: str) -> str:
    return hashlib.sha256((migrations_dir() / "versions" / f"{schema}.py").read_bytes()).hexdigest()


def make(folder: Path) -> tuple[Path, str]:
    """A backup of a filled database of the newest schema in `folder`, and its search."""
    settings = Settings(data_dir=folder / "data")
    upgrade(settings)
    with TestClient(create_app(settings)) as client:
        lab = ServerLab(client, settings)
        search_id = fill(lab)
        lab.close()
    back_up(settings, folder / "backup.db")
    return folder / "backup.db", search_id


def main() -> None:
    schema = newest_schema()
    assert schema is not None
    kept = [item for item in stored_databases() if item.schema != schema] if MANIFEST.exists() else []
    if MANIFEST.exists() and any(item.schema == schema and item.is_released for item in stored_databases()):
        sys.exit(f"{schema} is released: its database is never made again")
    with tempfile.TemporaryDirectory() as folder:
        backup, search_id = make(Path(folder))
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{schema}.db.gz").write_bytes(gzip.compress(backup.read_bytes(), mtime=0))
    made = StoredDatabase(
        schema=schema, migration_sha256=migration_sha256(schema), is_released=False, search_id=search_id
    )
    MANIFEST.write_text(json.dumps([asdict(item) for item in [*kept, made]], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
