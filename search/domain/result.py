"""The outcome of a search: what `result.json` holds. The JSON schema stands beside this module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any

from device_agent.contracts import Source, Verdict

#: Version of the form of result.json. 1: first version. 2: figures of each device, in `devices`.
RESULT_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringEffort:
    """What a search cost its devices: measurements that it asked for, how many of them earlier or simultaneous searches
    had asked for, and the minutes that the devices measured for this search.
    """

    measurements: int
    cache_hits: int
    device_minutes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcludedChoices:
    """Of the prunings that the space offers, each layer at each shape counted by itself, those that a search left out:
    a denser one takes no longer there, on any device.
    """

    pruned: int
    excluded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFigures:
    """How far a search was after a generation. `hypervolume` is that of (error, predicted latency) below (1, latency of
    the dense network in the native executor), as a part of that rectangle; None where either was not known.
    """

    generation: int
    evaluations: int
    front: int
    hypervolume: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSummary:
    """How the front was found. `settings` is the resolved config; `seconds` is wall time in each stage."""

    id: str
    name: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    evaluations: int
    seconds: Mapping[str, float]
    #: The search whose latency table was taken instead of measuring; None if this one measured.
    latency_from: str | None = None
    #: Over all devices; None in results that were written before it was counted.
    measuring: MeasuringEffort | None = None
    #: None where the search leaves nothing out (`space.weights.exclude_unprofitable`).
    excluded_choices: ExcludedChoices | None = None
    #: The front as it grew; with active measuring, each by the latency model of its time. Empty in older results.
    history: tuple[GenerationFigures, ...] = ()
    #: What the worker ran on: package -> version. Empty in older results.
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesSummary:
    """Measurements of one provenance that a search used on one device, and how many of them have each verdict."""

    id: str
    runtime: str
    runtime_version: str
    agent_version: str
    verdicts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSummary:
    """Where it was measured. `source` is "measured", or says that the numbers are emulated or simulated."""

    id: str
    name: str
    cpu_model: str
    runtime: str
    runtime_version: str
    isa: str
    threads: int
    source: Source
    #: Kernels timed for this search's latency table, and how many of those came from earlier searches (with active
    #: measuring: of the first ones; `measuring.cache_hits` counts all).
    kernels: int
    kernels_reused: int
    #: As in `SearchSummary`, of this device alone.
    measuring: MeasuringEffort | None = None
    #: Where the search's measurements on this device stand in the latency database. Empty in older results.
    series: tuple[SeriesSummary, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineLatency:
    """The unpruned network on the same device, median of one run."""

    tflite_dense: float | None
    native_dense: float | None
    #: None too where the device does not have ncnn, which is optional.
    ncnn_dense: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBaseline:
    """The unpruned network on one device."""

    device_id: str
    latency_ms: BaselineLatency


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The unpruned network. `accuracy` is on the test set. `latency_ms` is over the devices, as the search's
    `latency_over_devices` says; None there where one device did not measure it.
    """

    accuracy: float
    latency_ms: BaselineLatency
    macs: int
    parameters: int
    model_bytes: int | None = None
    devices: tuple[DeviceBaseline, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFigures:
    """A candidate on one device; the fields mean what they do in `FrontPoint`."""

    device_id: str
    predicted_latency_ms: float
    measured_latency_ms: float | None
    uncorrected_latency_ms: float | None
    latency_ci95_ms: tuple[float, float] | None
    verdict: Verdict | None
    verdict_reasons: tuple[str, ...]
    output_max_abs_error: float | None
    failure: str | None = None


class Standing(StrEnum):
    """Of a verified candidate among the others: no other dominates it by the figures as they are; one does, but not
    beyond noise; one does beyond noise.
    """

    FRONT = "front"
    WITHIN_NOISE = "within_noise"
    DOMINATED = "dominated"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFigures:
    """One operator of a candidate as it runs, in execution order. `scheme` is written as in a config, "" for operators
    without weights; `macs` are those left at `density`. `latency_ms` is the operator's part of the predicted latency on
    each device, in the search's order; the whole network has a constant beside their sum.
    """

    name: str
    op: str
    in_channels: int
    out_channels: int
    kernel_h: int
    kernel_w: int
    stride: int
    input_h: int
    input_w: int
    scheme: str
    density: float
    macs: int
    latency_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One candidate of the front.

    `accuracy_estimate` is that of the search on held-out training data, `accuracy` that after training on the test
    set. Measured figures are of the exported packed network on the device, brought to the speed that the machine had on
    the whole during profiling, by the reference kernel that is interleaved in every measurement;
    `uncorrected_latency_ms` is the median as it was read. `output_max_abs_error` compares its outputs with torch's on
    the same inputs. None where a step has not been reached or failed (`failure` says why).

    In a search over several devices, latencies and the ends of the interval are over the devices, as its
    `latency_over_devices` says, the verdict is the worst and the error the largest. `devices` has those of each.
    """

    candidate_id: str
    accuracy_estimate: float | None
    accuracy: float | None
    predicted_latency_ms: float
    measured_latency_ms: float | None
    uncorrected_latency_ms: float | None
    latency_ci95_ms: tuple[float, float] | None
    verdict: Verdict | None
    verdict_reasons: tuple[str, ...]
    output_max_abs_error: float | None
    macs: int
    parameters: int
    #: File name inside the candidate's folder -> SHA-256.
    files: Mapping[str, str]
    decisions: Mapping[str, Any]
    failure: str | None = None
    #: Weights and biases in the packed file, as far as shapes and pruning decide; None in results of earlier versions.
    model_bytes: int | None = None
    devices: tuple[DeviceFigures, ...] = ()
    #: Binomial, on the test images; of another metric in [0, 1], whose variance can only be smaller, at least 95 %.
    accuracy_ci95: tuple[float, float] | None = None
    #: How it stands to the other candidates in measured latency and test accuracy, and which of them noise does not
    #: tell apart from it (see `search.standing`).
    standing: Standing | None = None
    tied_with: tuple[str, ...] = ()
    #: Empty in older results, and for what was measured untrained.
    layers: tuple[LayerFigures, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """What the networks of a search were trained and judged on, and what using one takes: the classes in the order of
    its outputs, and mean and standard deviation of each channel, of pixels in [0, 1].
    """

    #: What all figures called accuracy are: "accuracy", or the metric of a task of one's own, in [0, 1].
    metric: str
    #: Empty where there are no classes.
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_train: int
    num_holdout: int
    num_test: int


#: What figures are called where a result does not say it.
ACCURACY = "accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """`device` is the first of `devices`. In results of version 1, which knew one device, all `devices` are empty."""

    search: SearchSummary
    device: DeviceSummary
    baseline: Baseline
    front: tuple[FrontPoint, ...]
    devices: tuple[DeviceSummary, ...] = ()
    #: The rest of the front, where `measuring.whole_front` asked for it: measured whole, but not trained or exported.
    measured_untrained: tuple[FrontPoint, ...] = ()
    #: None in results that were written before it was kept.
    data: DataSummary | None = None
    version: int = RESULT_VERSION

    @property
    def metric(self) -> str:
        """What its figures of accuracy are."""
        return ACCURACY if self.data is None else self.data.metric


@cache
def result_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of result.json."""
    text = files("search.domain").joinpath("result.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
