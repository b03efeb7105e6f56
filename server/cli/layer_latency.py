"""The dense latency of a network's layers on a device, from the latency database of a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from device_agent.contracts import encode
from kerf import Client
from kerf.schemas import LatencyModelView, PredictedLatency, SeriesView
from search.networks.runtimes import LayerInspection
from server.cli.config_file import ConfigFileError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLatencies:
    """Latencies of layers in one series, in the order of the layers; by `model` where a layer was not measured."""

    series: SeriesView
    model: LatencyModelView
    latencies: Sequence[PredictedLatency]

    @property
    def sum_ns(self) -> float:
        """Of all layers; a whole network has a constant besides."""
        return sum(latency["latency_ns"] for latency in self.latencies)


def layer_latencies(
    client: Client,
    layers: Sequence[LayerInspection],
    *,
    device: str | None = None,
    runtime: str | None = None,
    series: str | None = None,
) -> LayerLatencies:
    """Ask the server: measured latencies, and those that the series' model predicts.

    Raises `ConfigFileError` where the device has no series or several, `kerf.ApiError` where the series has no model.
    """
    if series is None:
        series = _only_series(client, device, runtime)
    answer = client.latency.predict(series, [encode(layer.kernel) for layer in layers])
    return LayerLatencies(series=answer["model"]["series"], model=answer["model"], latencies=answer["latencies"])


def _only_series(client: Client, device: str | None, runtime: str | None) -> str:
    found = client.latency.series(device=device, runtime=runtime)
    told = f"{device!r}" if runtime is None else f"{device!r} in {runtime!r}"
    if not found:
        raise ConfigFileError(
            f"nothing was measured on {told}: `kerf latency series` lists what was, and `kerf devices ls` the devices"
        )
    if len(found) > 1:
        lines = (
            f"{s['id']} ({s['runtime']} {s['runtime_version']}, {s['threads']} threads, {s['isa']}, agent "
            f"{s['agent_version']}, {s['num_measurements']} measurements)"
            for s in found
        )
        raise ConfigFileError(
            f"{told} has {len(found)} series, which are not mixed: name one with --runtime or --series: "
            f"{'; '.join(lines)}"
        )
    return found[0]["id"]
