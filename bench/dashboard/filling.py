"""A large latency database: devices, series and kernels by the product's own functions, measurements and their roll-up
by one statement for thousands of rows.

Rows are those that agents' reports leave behind, without samples and tasks, which no list reads. The source of all is
`simulated`: medians follow the kernel's work, and tell nothing about hardware.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session

from bench.dashboard.kernels import kernels
from device_agent.contracts import (
    Conditions,
    CpuCluster,
    DeviceProfile,
    EnrolmentRequest,
    KernelSpec,
    MeasuringSetup,
    PruningScheme,
    RuntimeInfo,
    Source,
    dumps,
    kernel_id,
    profile_id,
    setup_id,
)
from server.database import Database, migration_engine
from server.fleet.repository import insert_device
from server.latency.repository import ensure_kernels, ensure_setups
from server.latency.series import SeriesKey, ensure_series, series_id
from server.models import LatencyRow, MeasurementRow

NUM_DEVICES = 12
#: (runtime, version): each device has a series of each.
RUNTIMES = (("native", "0.1.0"), ("native", "0.2.0"), ("tflite", "2.3.0"), ("ncnn", "1.0.20260101"))
AGENT_VERSION = "0.1.0"
#: Measurements of each kernel in a series.
REPEATS = 3
#: Measurements for each kernel that there is, over all series.
MEASUREMENTS_PER_KERNEL = 50
#: Kernels that one statement takes.
_CHUNK = 4000
#: How unevenly measurements are spread: the i-th series has a share of 1 / (i + 2) ** this.
_SPREAD = 0.7
#: When the first was measured, and how much later each next one: some four months in all.
_BEGAN_S, _INTERVAL_S = 1_780_000_000.0, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What is in the database."""

    measurements: int
    kernels: int
    latencies: int
    series: tuple[str, ...]
    seconds: float


def fill(database: Database, num_measurements: int, *, seed: int = 0) -> Filled:
    """Fill an empty database with about `num_measurements`, at least as many. PostgreSQL must be asked as superuser."""
    began = time.monotonic()
    rng = np.random.default_rng(seed)
    specs = list(kernels(max(200, num_measurements // MEASUREMENTS_PER_KERNEL), rng=rng))
    with database.write() as session:
        found = _series(session)
    # SQLite leaves its journal only where nobody else has the file open.
    database.dispose()
    engine = migration_engine(database.url)
    try:
        with _without_journal(engine), _without_indexes(engine), engine.begin() as connection:
            _fast(connection)
            _number(connection, specs, found, num_measurements)
            for first in range(0, len(specs), _CHUNK):
                _measure(connection, first, min(first + _CHUNK, len(specs)), len(specs))
            _count(connection)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if engine.dialect.name == "postgresql":
                # What autovacuum does in its own time.
                connection.execute(text("VACUUM ANALYZE"))
        with engine.connect() as connection:
            counts = [
                connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()
                for name in ("measurement", "latency")
            ]
    finally:
        engine.dispose()
    return Filled(
        measurements=counts[0],
        kernels=len(specs),
        latencies=counts[1],
        series=tuple(identity for identity, _ in found),
        seconds=time.monotonic() - began,
    )


def _series(session: Session) -> list[tuple[str, float]]:
    """The series of all devices, and how fast each is: ns for each multiply-accumulate of a dense kernel."""
    keys = []
    for number in range(NUM_DEVICES):
        cpu = f"Cortex-A{53 + number}"
        profile = DeviceProfile(
            machine="aarch64",
            system="Linux 6.6.20",
            os_build="Debian 12",
            cpu_model=cpu,
            clusters=(CpuCluster(model=cpu, core_ids=(0, 1, 2, 3), max_frequency_hz=2_000_000_000),),
            isa_features=("asimd", "fp16"),
            memory_bytes=4 << 30,
            governors=("performance", "schedutil"),
            simulated=True,
        )
        runtimes = tuple(
            RuntimeInfo(name=name, version=version, binary_sha256="5f" * 32, isa="neon") for name, version in RUNTIMES
        )
        request = EnrolmentRequest(
            code="none",
            agent_key=f"agent-{number}",
            device_name=f"board {number + 1}",
            profile=profile,
            runtimes=tuple({info.name: info for info in runtimes}.values()),
            agent_version=AGENT_VERSION,
        )
        device_id = insert_device(session, request, f"{number:064x}")
        for name, version in RUNTIMES:
            setup = MeasuringSetup(runtime=name)
            ensure_setups(session, [setup])
            key = SeriesKey(
                device_id=device_id,
                profile_id=profile_id(profile),
                setup_id=setup_id(setup),
                runtime=name,
                runtime_version=version,
                runtime_sha256="5f" * 32,
                isa="neon",
                threads=1,
                affinity=(3,),
                governor="performance",
                agent_version=AGENT_VERSION,
                source=Source.SIMULATED,
            )
            keys.append((key, 0.05 * (1 + number) * {"native": 1.0, "tflite": 1.2, "ncnn": 0.9}[name]))
    ensure_series(session, [key for key, _ in keys])
    return [(series_id(key), speed) for key, speed in keys]


@contextmanager
def _without_indexes(engine: Engine) -> Iterator[None]:
    """Indexes are made when all is in: sorted, that is many times faster."""
    indexes = [index for table in (MeasurementRow, LatencyRow) for index in table.__table__.indexes]  # type: ignore[attr-defined]
    with engine.begin() as connection:
        for index in indexes:
            index.drop(connection)
    yield
    with engine.begin() as connection:
        for index in indexes:
            index.create(connection)


@contextmanager
def _without_journal(engine: Engine) -> Iterator[None]:
    """SQLite: write each page once, as nothing has to survive a power cut. The one connection is kept meanwhile."""

    def pragmas(*values: str) -> None:
        if engine.dialect.name == "sqlite":
            connection = engine.raw_connection()
            for value in values:
                connection.cursor().execute(f"PRAGMA {value}").fetchall()
            connection.close()

    pragmas("journal_mode=OFF", "synchronous=OFF", "cache_size=-1000000")
    yield
    pragmas("journal_mode=WAL")


def _fast(connection: Connection) -> None:
    """All references are right by the way in which rows are made."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET session_replication_role = replica"))
        connection.execute(text("SET synchronous_commit = off"))
        connection.execute(text("SET work_mem = '256MB'"))


def _number(
    connection: Connection, specs: Sequence[KernelSpec], found: Sequence[tuple[str, float]], num_measurements: int
) -> None:
    """Store the kernels, and number them and the series in temporary tables to join with."""
    session = Session(connection, join_transaction_mode="create_savepoint")
    for first in range(0, len(specs), 2000):
        ensure_kernels(session, specs[first : first + 2000])
    session.commit()
    connection.execute(text("CREATE TEMP TABLE bench_kernel (no INTEGER PRIMARY KEY, id TEXT, work DOUBLE PRECISION)"))
    connection.execute(
        text("INSERT INTO bench_kernel VALUES (:no, :id, :work)"),
        [{"no": no, "id": kernel_id(spec), "work": _work(spec)} for no, spec in enumerate(specs)],
    )
    connection.execute(
        text("CREATE TEMP TABLE bench_series (no INTEGER PRIMARY KEY, id TEXT, speed DOUBLE PRECISION, share INTEGER)")
    )
    weights = np.array([1.0 / (place + 2) ** _SPREAD for place in range(len(found))])
    # In parts of 1,000 of all kernels; a little more than asked, as parts are whole.
    shares = np.ceil(1000 * num_measurements / REPEATS / len(specs) * weights / weights.sum()).astype(int)
    connection.execute(
        text("INSERT INTO bench_series VALUES (:no, :id, :speed, :share)"),
        [
            {"no": no, "id": identity, "speed": speed, "share": int(min(1000, share))}
            for no, ((identity, speed), share) in enumerate(zip(found, shares, strict=True))
        ],
    )


def _work(spec: KernelSpec) -> float:
    """Multiply-accumulates of the weights that are kept, and the price of skipping the others."""
    price = 1.0 if spec.pruning.scheme is PruningScheme.DENSE else 1.6
    return 2000.0 + spec.macs * spec.pruning.density * price


#: Of each repeat of the kernels from :first to :last, in every series that has them. `n` numbers measurements in time,
#: and the noise is a hash of it.
_SAMPLES = """
SELECT s.id AS series_id, k.id AS kernel_id, k.work * s.speed AS usual_ns, r.no AS repeat, r.no = {last} AS is_last,
       (r.no * {kernels} + k.no) * {series} + s.no AS n,
       (((r.no * {kernels} + k.no) * {series} + s.no) * 7919) % 10007 AS noise
FROM bench_kernel k CROSS JOIN ({repeats}) r CROSS JOIN bench_series s
WHERE k.no >= :first AND k.no < :last AND (k.no * 7919 + s.no * 271) % 1000 < s.share
"""

_MEASUREMENTS = """
INSERT INTO measurement (
    result_key, task_id, series_id, import_id, import_key, device_id, profile_id, kernel_id, artifact_sha256, setup_id,
    status, source, runtime, runtime_version, runtime_sha256, isa, threads, mode, governor, affinity, agent_version,
    verdict, reasons, median_ns, ci95_low_ns, ci95_high_ns, statistics, before, after, output_sha256, memory_bytes,
    duration_s, created_at)
SELECT {key}, NULL, s.id, NULL, NULL, s.device_id, s.profile_id, m.kernel_id, NULL, s.setup_id,
    'accepted', s.source, s.runtime, s.runtime_version, s.runtime_sha256, s.isa, s.threads, m.mode, s.governor,
    s.affinity, s.agent_version, m.verdict, {reasons}, m.median_ns, 0.99 * m.median_ns, 1.01 * m.median_ns,
    {statistics}, {conditions}, {conditions}, '{output}', 1048576, 0.31, {created}
FROM bench_sample m JOIN latency_series s ON s.id = m.series_id ORDER BY m.n
"""

_ROLL_UP = """
INSERT INTO latency (
    series_id, kernel_id, mode, result_key, verdict, median_ns, ci95_low_ns, ci95_high_ns, num_measurements,
    min_median_ns, max_median_ns, updated_at)
SELECT m.series_id, m.kernel_id, m.mode, {key}, m.verdict, m.median_ns, 0.99 * m.median_ns, 1.01 * m.median_ns,
    a.num, a.least, a.most, {created}
FROM bench_sample m JOIN (
    SELECT series_id, kernel_id, max(n) AS n, count(*) AS num, min(median_ns) AS least, max(median_ns) AS most
    FROM bench_sample WHERE verdict <> 'rejected' GROUP BY series_id, kernel_id
) a ON a.n = m.n
ORDER BY m.series_id, m.kernel_id
"""


def _measure(connection: Connection, first: int, last: int, num_kernels: int) -> None:
    """Three measurements of each kernel in its series, and their roll-up."""
    is_sqlite = connection.dialect.name == "sqlite"
    # PostgreSQL's 32-bit integers would overflow in the hash.
    repeats = " UNION ALL ".join(f"SELECT CAST({no} AS BIGINT) AS no" for no in range(REPEATS))
    samples = _SAMPLES.format(
        kernels=num_kernels, series=NUM_DEVICES * len(RUNTIMES), last=REPEATS - 1, repeats=repeats
    )
    connection.execute(text("DROP TABLE IF EXISTS bench_sample"))
    # The sparse mode is that of all kernels with zeros, as the native runtime has it.
    connection.execute(
        text(
            "CREATE TEMP TABLE bench_sample AS SELECT q.series_id, q.kernel_id, q.n, "
            "CASE WHEN k.scheme = 'dense' THEN 'dense' ELSE 'sparse' END AS mode, "
            "q.usual_ns * (1.0 + 0.04 * (q.noise / 10007.0 - 0.5)) AS median_ns, "
            "CASE WHEN q.noise % 50 = 0 THEN 'rejected' WHEN q.noise % 10 = 1 THEN 'noisy' ELSE 'trusted' END "
            "AS verdict "
            f"FROM ({samples}) q JOIN kernel k ON k.id = q.kernel_id"
        ),
        {"first": first, "last": last},
    )
    number = "printf('%012x', m.n)" if is_sqlite else "lpad(to_hex(m.n), 12, '0')"
    names = ("median", "mean", "min", "p5", "p10", "p90", "p95", "trimmed_mean")
    figures = "".join(f"\"{name}_ns\":' || m.median_ns || '," for name in names)
    statistics = (
        "'{"
        + figures
        + "\"ci95_low_ns\":' || (0.99 * m.median_ns) || ',\"ci95_high_ns\":' || (1.01 * m.median_ns) || '"
        ',"mad_ns":10.0,"num_samples":60,"num_blocks":6,"reference_ns":5000.0,"reference_name":"reference",'
        "\"reference_ratio\":' || (m.median_ns / 5000.0) || '}'"
    )
    reasons = "CASE m.verdict WHEN 'trusted' THEN '[]' WHEN 'noisy' THEN '[\"ci_too_wide\"]' ELSE '[\"throttled\"]' END"
    conditions = Conditions(frequency_hz=2_000_000_000, governor="performance", temperature_celsius=51.2, load_1min=0.3)
    cast = (lambda sql: sql) if is_sqlite else (lambda sql: f"({sql})::json")
    parts = {
        "key": f"'01900000-0000-7000-8000-' || {number}",
        "created": f"{_BEGAN_S} + {_INTERVAL_S} * m.n",
        "reasons": cast(reasons),
        "statistics": cast(statistics),
        "conditions": cast(f"'{dumps(conditions)}'"),
        "output": "00" * 32,
    }
    for statement in (_MEASUREMENTS, _ROLL_UP):
        # Colons of JSON are no parameters.
        connection.exec_driver_sql(statement.format(**parts).replace("%", "%" if is_sqlite else "%%"))


def _count(connection: Connection) -> None:
    """What each series has, as the transactions of reports would have kept it."""
    connection.execute(
        text(
            "CREATE TEMP TABLE bench_count AS SELECT series_id, count(*) AS num, min(created_at) AS first_at, "
            "max(created_at) AS last_at FROM measurement GROUP BY series_id"
        )
    )
    columns = ("num_measurements", "num"), ("first_at", "first_at"), ("last_at", "last_at")
    values = ", ".join(
        f"{column} = (SELECT {name} FROM bench_count c WHERE c.series_id = latency_series.id)"
        for column, name in columns
    )
    connection.execute(text(f"UPDATE latency_series SET {values} WHERE id IN (SELECT series_id FROM bench_count)"))
