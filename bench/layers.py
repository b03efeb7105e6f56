"""The single layers that benchmarks time: every distinct layer of the zoo, by a short name, and how they are pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from bench.zoo import NETWORKS
from device_agent.contracts import DENSE, KernelSpec, Op, PruningScheme, WeightPruning

#: Output channels that share a mask, of GROUP and PATTERN.
GROUP_FILTERS = 4
PATTERN_ENTRIES = 4

_SHORT_OPS = MappingProxyType(
    {
        Op.DEPTHWISE_CONV2D: "dw",
        Op.FULLY_CONNECTED: "fc",
        Op.MAX_POOL: "maxpool",
        Op.GLOBAL_AVG_POOL: "avgpool",
        Op.SHORTCUT_PAD: "shortcut",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A dense kernel of the zoo. `is_prunable` says that the benchmark networks prune it."""

    name: str
    kernel: KernelSpec
    is_prunable: bool

    def pruned(self, pruning: WeightPruning) -> KernelSpec:
        return replace(self.kernel, pruning=pruning)


def zoo_layers(networks: Sequence[str] = tuple(NETWORKS)) -> tuple[Layer, ...]:
    """The layers of `networks`, each once, in the order of first use. Residuals are left out; activations stay.

    A name tells the window (3x3 where it tells none), the channels, the input's extent and the stride: `128@28`,
    `64-128@56s2`, `1x1 256-512@14s2`, `dw 32@112`.
    """
    marker = WeightPruning(scheme=PruningScheme.GROUP, density=0.5, block_filters=GROUP_FILTERS)
    layers: dict[str, Layer] = {}
    for network in networks:
        for kernel in NETWORKS[network](marker).kernels:
            name = layer_name(kernel)
            if name not in layers:
                dense = replace(kernel, pruning=DENSE, residual=False, seed=1)
                layers[name] = Layer(name=name, kernel=dense, is_prunable=kernel.pruning is marker)
    return tuple(layers.values())


def layer_name(kernel: KernelSpec) -> str:
    """See `zoo_layers`."""
    prefix = _SHORT_OPS.get(kernel.op, "")
    if kernel.op is Op.CONV2D and (kernel.kernel_h, kernel.kernel_w) != (3, 3):
        prefix = f"{kernel.kernel_h}x{kernel.kernel_w}"
    same = kernel.in_channels == kernel.out_channels
    channels = f"{kernel.in_channels}" if same else f"{kernel.in_channels}-{kernel.out_channels}"
    stride = f"s{kernel.stride}" if kernel.stride != 1 else ""
    return f"{prefix} {channels}@{kernel.input_w}{stride}".strip()


def prunings(layer: Layer, densities: Mapping[PruningScheme, Sequence[float]]) -> tuple[WeightPruning, ...]:
    """The ways in which `layer` is timed: dense, and what `densities` asks for where the layer is prunable."""
    found = [DENSE] if PruningScheme.DENSE in densities else []
    if not layer.is_prunable:
        return tuple(found)
    for scheme, wanted in densities.items():
        for density in wanted:
            if scheme is PruningScheme.GROUP:
                found.append(WeightPruning(scheme=scheme, density=density, block_filters=GROUP_FILTERS))
            elif scheme is PruningScheme.UNSTRUCTURED:
                found.append(WeightPruning(scheme=scheme, density=density))
            elif scheme is PruningScheme.PATTERN and (layer.kernel.kernel_h, layer.kernel.kernel_w) == (3, 3):
                found.append(
                    WeightPruning(
                        scheme=scheme,
                        density=PATTERN_ENTRIES / 9,
                        pattern_entries=PATTERN_ENTRIES,
                        block_filters=GROUP_FILTERS,
                    )
                )
    return tuple(found)


def direct_bound(kernel: KernelSpec, num_weights: int) -> float:
    """The part of the peak that a direct convolution can reach at most, in any layout.

    Beside the multiply-adds of the `num_weights` that are not zero, each output vector takes one operation on the same
    units, its activation. Loads and stores are taken as free, so the true bound can be lower, and much lower for
    operators that use each weight or input once.
    """
    depth = num_weights / kernel.out_channels
    return depth / (depth + 1)
