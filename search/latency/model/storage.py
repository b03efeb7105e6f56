"""Latency models as versioned JSON: prices, settings and the measurements, never pickles.

Everything else is worked out again from these when a model is read. Version history:
    1  first version
    2  a model made by transfer has prices of its own, too
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from device_agent.contracts import ContractError, encode
from device_agent.contracts.codec import decode
from search.latency.model.features import TERMS, WINOGRAD_TERMS
from search.latency.model.kernel_model import KernelLatencyModel, Transfer
from search.latency.model.physical import PhysicalModel, Prices
from search.latency.model.residual import Settings
from search.latency.table import KernelLatency
from search.pareto import FloatArray

MODEL_VERSION = 2


def dump_model(model: KernelLatencyModel) -> str:
    """The model as JSON text, equal for equal models. A model made by transfer has its prior's in it."""
    return json.dumps(_model(model), sort_keys=True, separators=(",", ":"), allow_nan=False)


def load_model(text: str | bytes) -> KernelLatencyModel:
    """Read what `dump_model` wrote: it predicts the same. Raises `ContractError` where it is no valid model."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ContractError(f"a latency model is not valid JSON: {error}") from None
    try:
        return _read(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ContractError(f"a latency model lacks a field or has a wrong one: {error!r}: refit it") from None


def _model(model: KernelLatencyModel) -> dict[str, Any]:
    base: dict[str, Any]
    if isinstance(model.base, PhysicalModel):
        base = _physical(model.base)
    else:
        base = {
            "prior": _model(model.base.prior),
            "common_log_factor": model.base.common_log_factor,
            "log_factors": dict(model.base.log_factors),
            "own": _physical(model.base.own),
            "weight": model.base.weight,
        }
    settings = model.settings
    return {
        "version": MODEL_VERSION,
        "runtime": model.runtime,
        "base": base,
        "settings": {
            "shift": settings.shift.tolist(),
            "scale": settings.scale.tolist(),
            "lengths": settings.lengths.tolist(),
            "variance": settings.variance,
            "noise": settings.noise,
            "between_modes": settings.between_modes,
        },
        "entries": encode(model.entries),
    }


def _physical(model: PhysicalModel) -> dict[str, Any]:
    winograd = model.winograd
    return {"direct": _prices(model.direct), "winograd": None if winograd is None else _prices(winograd)}


def _prices(prices: Prices) -> dict[str, Any]:
    return {
        "common": prices.common.tolist(),
        "by_mode": {mode: values.tolist() for mode, values in prices.by_mode.items()},
    }


def _read(document: dict[str, Any]) -> KernelLatencyModel:
    if document["version"] != MODEL_VERSION:
        raise ContractError(f"latency model version {document['version']!r} is not {MODEL_VERSION}: refit it")
    base, settings = document["base"], document["settings"]
    made: PhysicalModel | Transfer
    if "prior" in base:
        made = Transfer(
            prior=_read(base["prior"]),
            runtime=str(document["runtime"]),
            common_log_factor=float(base["common_log_factor"]),
            log_factors={str(mode): float(value) for mode, value in base["log_factors"].items()},
            own=_read_physical(base["own"]),
            weight=float(base["weight"]),
        )
    else:
        made = _read_physical(base)
    size = len(settings["shift"])
    return KernelLatencyModel(
        str(document["runtime"]),
        decode(tuple[KernelLatency, ...], document["entries"]),
        made,
        Settings(
            shift=_array(settings["shift"], size),
            scale=_array(settings["scale"], size),
            lengths=_array(settings["lengths"], size),
            variance=float(settings["variance"]),
            noise=float(settings["noise"]),
            between_modes=float(settings["between_modes"]),
        ),
    )


def _read_physical(document: dict[str, Any]) -> PhysicalModel:
    winograd = document["winograd"]
    return PhysicalModel(
        direct=_read_prices(document["direct"], len(TERMS)),
        winograd=None if winograd is None else _read_prices(winograd, len(WINOGRAD_TERMS)),
    )


def _read_prices(document: dict[str, Any], size: int) -> Prices:
    return Prices(
        common=_array(document["common"], size),
        by_mode={str(mode): _array(values, size) for mode, values in document["by_mode"].items()},
    )


def _array(values: Any, size: int) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (size,) or not np.isfinite(array).all():
        raise ContractError(
            f"a latency model has an array of shape {array.shape} where ({size},) finite numbers belong"
        )
    return array
