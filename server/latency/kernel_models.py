"""The latency model of a series: fitted by a worker from what is stored, kept as versioned JSON, asked by REST.

As with cards, a worker fits models while it has no search, and anew when the series has grown; the server only reads.
A model may start from the figures of another series, where someone asked for that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, kernel_id
from search.errors import LatencyModelError
from search.latency.families import without_seed
from search.latency.model.kernel_model import KernelLatencyModel, fit_kernel_model
from search.latency.model.storage import MODEL_VERSION, dump_model, load_model
from search.latency.predictor import Prediction
from search.latency.table import KernelLatency
from search.normal import SIGMAS_OF_95_PERCENT
from server.columns import database_time_s
from server.database import Database
from server.errors import Conflict, Unprocessable
from server.latency.figures import QUIET_S, due_series, series_kernels
from server.latency.series import get_series
from server.models import LatencyModelRow, LatencyRow, SeriesRow
from server.upsert import upsert

#: Of more kernels a part is drawn by chance: fitting costs the third power of their number.
MAX_KERNELS = 2000
#: Seed of that part, and of those that settings are found on.
_SEED = 20_220_608
#: In place of a model's number of measurements: no series has as many.
_REQUESTED = -1
#: Models that a process keeps ready; each takes some 30 MB for 2,000 kernels.
_MODELS_READY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedLatency:
    """What a model says of a kernel. `predicted` is false where the series has the kernel measured: then the figure is
    that, and its uncertainty. `extrapolated` where the series has no kernel that runs the same kind of code: its
    uncertainty is then larger than said.
    """

    kernel_id: str
    latency_ns: float
    std_ns: float
    ci95_low_ns: float
    ci95_high_ns: float
    predicted: bool
    extrapolated: bool


def request_model(session: Session, series_id: str, from_series_id: str | None) -> None:
    """Have the model of a series fitted anew, starting from another series or from none. The model that is there stays
    until then.

    Raises `NotFound` for an unknown series, and `Unprocessable` for one without kernels or the series itself.
    """
    _check_kernels(session, "series", get_series(session, series_id))
    if from_series_id is not None:
        if from_series_id == series_id:
            raise Unprocessable(f"from_series_id: a model cannot start from its own series {series_id}: name another")
        _check_kernels(session, "from_series_id", get_series(session, from_series_id))
    row = {
        "series_id": series_id,
        "from_series_id": from_series_id,
        "num_measurements": _REQUESTED,
        "num_kernels": 0,
        "format_version": MODEL_VERSION,
        "model": None,
        "without_model": "",
        "fitted_at": None,
    }
    upsert(session, LatencyModelRow, [row], key=["series_id"], replace=["from_series_id", "num_measurements"])


def _check_kernels(session: Session, field: str, series: SeriesRow) -> None:
    if session.scalars(select(LatencyRow.kernel_id).where(LatencyRow.series_id == series.id).limit(1)).first() is None:
        raise Unprocessable(f"{field}: series {series.id} has no usable kernels: a model needs some")


def due_model(session: Session, *, quiet_s: float = QUIET_S) -> str | None:
    """A series whose model is missing, was asked for, or is of other measurements or another version of the format."""
    return due_series(session, LatencyModelRow, LatencyModelRow.format_version != MODEL_VERSION, quiet_s=quiet_s)


def refresh_model(database: Database, *, quiet_s: float = QUIET_S) -> str | None:
    """Fit one model that is due, and store it; returns the series, or None where none is due."""
    with database.snapshot() as session:
        series_id = due_model(session, quiet_s=quiet_s)
        if series_id is None:
            return None
        # The time before reading: what comes meanwhile makes the model old.
        started = database_time_s(session)
        series = get_series(session, series_id)
        num_measurements, runtime = series.num_measurements, series.runtime
        known = session.get(LatencyModelRow, series_id)
        other = None if known is None or known.from_series_id is None else get_series(session, known.from_series_id)
        kernels = series_kernels(session, series_id)
        start = None if other is None else (series_kernels(session, other.id), other.runtime)
        from_series_id = None if other is None else other.id
    text, without = None, ""
    try:
        text = dump_model(fitted(kernels, runtime, start))
    except (LatencyModelError, np.linalg.LinAlgError) as error:
        without = str(error)
    row = {
        "series_id": series_id,
        "from_series_id": from_series_id,
        "num_measurements": num_measurements,
        "num_kernels": min(len(kernels), MAX_KERNELS),
        "format_version": MODEL_VERSION,
        "model": text,
        "without_model": without,
        "fitted_at": started,
    }
    with database.write() as session:
        now = session.get(LatencyModelRow, series_id, with_for_update=True)
        # Someone asked for another start meanwhile: this model is not what they want, and the next look fits theirs.
        if now is None or now.from_series_id == from_series_id:
            upsert(session, LatencyModelRow, [row], key=["series_id"])
    return series_id


def fitted(
    kernels: Sequence[KernelLatency], runtime: str, start: tuple[Sequence[KernelLatency], str] | None
) -> KernelLatencyModel:
    """The model of a series; `start` are the kernels and the runtime of the one that it starts from.

    Raises `LatencyModelError` with too few kernels of either.
    """
    rng = np.random.default_rng(_SEED)
    prior = None
    if start is not None:
        try:
            prior = fit_kernel_model(_part(start[0], rng), start[1], rng=rng)
        except LatencyModelError as error:
            raise LatencyModelError(f"of the series to start from: {error}") from None
    return fit_kernel_model(_part(kernels, rng), runtime, rng=rng, prior=prior)


def _part(kernels: Sequence[KernelLatency], rng: np.random.Generator) -> list[KernelLatency]:
    if len(kernels) <= MAX_KERNELS:
        return list(kernels)
    return [kernels[i] for i in np.sort(rng.permutation(len(kernels))[:MAX_KERNELS]).tolist()]


def predictions(row: LatencyModelRow | None, series_id: str, kernels: Sequence[KernelSpec]) -> list[PredictedLatency]:
    """What the stored model of a series says of `kernels`, in their order. Raises `Conflict` without a model."""
    model = _ready(model_text(row, series_id))
    bare = [without_seed(kernel) for kernel in kernels]
    found = zip(bare, model.predict_each(bare), strict=True)
    return [
        _predicted(kernel, prediction, extrapolated=not prediction.exact and not model.knows_mode(kernel))
        for kernel, prediction in found
    ]


def model_text(row: LatencyModelRow | None, series_id: str) -> str:
    """The stored model as JSON text. Raises `Conflict` without a model."""
    if row is None or row.model is None or row.format_version != MODEL_VERSION:
        why = row.without_model if row is not None and row.without_model else "a worker fits it when it has no search"
        raise Conflict(f"series {series_id} has no latency model: {why}", code="no_latency_model")
    return row.model


@functools.lru_cache(maxsize=_MODELS_READY)
def _ready(text: str) -> KernelLatencyModel:
    return load_model(text)


def _predicted(kernel: KernelSpec, found: Prediction, *, extrapolated: bool) -> PredictedLatency:
    # Uncertainties of a model are of logarithms: its intervals are wider above.
    sigma = math.sqrt(math.log1p((found.std_ns / found.latency_ns) ** 2))
    factor = math.exp(SIGMAS_OF_95_PERCENT * sigma)
    return PredictedLatency(
        kernel_id=kernel_id(kernel),
        latency_ns=found.latency_ns,
        std_ns=found.std_ns,
        ci95_low_ns=found.latency_ns / factor,
        ci95_high_ns=found.latency_ns * factor,
        predicted=not found.exact,
        extrapolated=extrapolated,
    )
