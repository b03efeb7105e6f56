"""What profiling found out: the latency table of each device of a search, and the models fitted on them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_agent.contracts import NetworkPlan, decode, encode
from search.domain.objective import LatencyOverDevices
from search.latency.card import model_card
from search.latency.fleet import FleetLatencyModel, over_devices
from search.latency.model.kernel_model import KernelLatencyModel, fit_kernel_model
from search.latency.network import NetworkLatencyModel, fit_correction, fit_network_model
from search.latency.predictor import LatencyPredictor
from search.latency.table import LatencyTable

_NS_PER_MS = 1e6

#: Of the seeds of a search, the one that models are fitted with.
_FITTING = 20_110_802

#: In a stored summary of several devices: those of all but the first, by device.
_OTHERS = "others"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSummary:
    """What a finished profile says about a device and the dense networks. Latencies in ns.

    `usual_references` holds the time of each reference kernel, by name, at the speed to which all latencies of the
    search are brought (`search.latency.drift`).
    """

    isa: str
    threads: int
    kernels_reused: int
    tflite_dense_ns: float | None
    native_dense_ns: float | None
    usual_references: Mapping[str, float]
    ncnn_dense_ns: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLatency:
    """The unpruned network in each runtime, in ms. None where it was not measured."""

    tflite_ms: float | None
    native_ms: float | None
    ncnn_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceLatencies:
    """Latencies of one device of a search."""

    device_id: str
    table: LatencyTable
    model: NetworkLatencyModel
    summary: ProfileSummary

    @property
    def dense(self) -> DenseLatency:
        found = self.summary
        return DenseLatency(
            tflite_ms=_ms(found.tflite_dense_ns), native_ms=_ms(found.native_dense_ns), ncnn_ms=_ms(found.ncnn_dense_ns)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile:
    """Latencies of all devices of a search, in the order of its config."""

    devices: tuple[DeviceLatencies, ...]
    over: LatencyOverDevices

    @property
    def fleet(self) -> FleetLatencyModel:
        return FleetLatencyModel({device.device_id: device.model for device in self.devices}, self.over)

    @property
    def dense(self) -> DenseLatency:
        """The unpruned network over the devices; None where one of them did not measure it."""
        found = [device.dense for device in self.devices]
        return DenseLatency(
            tflite_ms=self.over_devices([d.tflite_ms for d in found]),
            native_ms=self.over_devices([d.native_ms for d in found]),
            ncnn_ms=self.over_devices([d.ncnn_ms for d in found]),
        )

    def predict_ms(self, plan: NetworkPlan) -> float:
        """The whole network's latency over the devices, in ms. Raises `KernelNotMeasured` outside of a table."""
        return self.fleet.latency_ms(plan)

    def over_devices(self, latencies: Sequence[float | None]) -> float | None:
        """One latency of those on each device; None where one is unknown."""
        known = [latency for latency in latencies if latency is not None]
        return float(over_devices(known, self.over)) if len(known) == len(latencies) else None


def fitted(device_id: str, table: LatencyTable, summary: ProfileSummary) -> DeviceLatencies:
    return DeviceLatencies(device_id=device_id, table=table, model=fit_network_model(table), summary=summary)


def fitted_by_model(device_id: str, table: LatencyTable, summary: ProfileSummary, seed: int) -> DeviceLatencies:
    """The same from a model of kernels that need not be a grid. Equal tables and seeds give equal models.

    Raises `LatencyModelError` where there are too few kernels or networks.
    """
    rng = np.random.default_rng([seed, _FITTING])
    predictor = fit_kernel_model(table.kernels, table.runtime, rng=rng)
    model = NetworkLatencyModel(predictor, predictor, fit_correction(predictor, predictor, table.networks))
    return DeviceLatencies(device_id=device_id, table=table, model=model, summary=summary)


def refitted(device: DeviceLatencies, table: LatencyTable, seed: int) -> DeviceLatencies:
    """`device` with a model of the kernels in another table."""
    return fitted_by_model(device.device_id, table, device.summary, seed)


def card_of(device: DeviceLatencies) -> str:
    """The card of the device's model as JSON."""
    predictor = device.model.predictor
    assert isinstance(predictor, LatencyPredictor | KernelLatencyModel)
    card = model_card(predictor.held_out_by_family(), device.model.correction, len(device.table.kernels))
    data: dict[str, Any] = dataclasses.asdict(card)
    return json.dumps(data, sort_keys=True)


def summaries_to_json(summaries: Sequence[tuple[str, ProfileSummary]]) -> dict[str, Any]:
    """Summaries by device: the first one's own figures, and those of further devices below."""
    (_, first), *others = summaries
    data: dict[str, Any] = encode(first)
    return {**data, _OTHERS: {device_id: encode(s) for device_id, s in others}} if others else data


def summaries_from_json(data: Mapping[str, Any], device_ids: Sequence[str]) -> dict[str, ProfileSummary]:
    """What `summaries_to_json` wrote of the devices `device_ids`, in their order."""
    first = {key: value for key, value in data.items() if key != _OTHERS}
    return {device_ids[0]: decode(ProfileSummary, first)} | {
        device_id: decode(ProfileSummary, found) for device_id, found in data.get(_OTHERS, {}).items()
    }


def _ms(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / _NS_PER_MS
