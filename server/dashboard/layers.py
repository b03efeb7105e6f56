"""The layers of a candidate as pages show them."""

from __future__ import annotations

from collections.abc import Sequence

from device_agent.contracts import Op
from search.domain.result import LayerFigures
from server.dashboard.candidate_pages import LayerRow, LayerTime
from server.dashboard.wording import OP_NAMES


def layer_rows(layers: Sequence[LayerFigures]) -> tuple[LayerRow, ...]:
    """In execution order. Bars compare the layers of one candidate on one device."""
    slowest = [max(times) for times in zip(*(layer.latency_ms for layer in layers), strict=True)]
    return tuple(
        LayerRow(
            name=layer.name,
            op=_operator(layer),
            channels=_channels(layer),
            extent=f"{layer.input_h}×{layer.input_w}",
            scheme=layer.scheme,
            density=layer.density if layer.scheme else None,
            macs=layer.macs,
            times=tuple(
                LayerTime(latency_ms=ms, share=ms / most if most else 0.0)
                for ms, most in zip(layer.latency_ms, slowest, strict=True)
            ),
        )
        for layer in layers
    )


def _operator(layer: LayerFigures) -> str:
    words = OP_NAMES[Op(layer.op)]
    if (layer.kernel_h, layer.kernel_w) != (1, 1) or layer.op == Op.CONV2D:
        words += f" {layer.kernel_h}×{layer.kernel_w}"
    return words if layer.stride == 1 else f"{words}, stride {layer.stride}"


def _channels(layer: LayerFigures) -> str:
    if layer.in_channels == layer.out_channels:
        return str(layer.out_channels)
    return f"{layer.in_channels} → {layer.out_channels}"
