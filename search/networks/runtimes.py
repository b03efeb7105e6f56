"""What each runtime makes of pruning: in which operators of a network zeros make it faster, and by which schemes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from device_agent.contracts import TFLITE_SPARSE_RUNTIME, ContractError, KernelSpec, Op, PruningScheme
from device_agent.formats.tflite_sparse import convolutions_inside
from search.domain.network import Axis, NetworkSpec

NATIVE = "native"
_DENSE_RUNTIMES = ("tflite", "ncnn")
_ANY = (PruningScheme.UNSTRUCTURED, PruningScheme.GROUP, PruningScheme.BLOCK_PUNCHED)
#: Those that XNNPACK finds in weights by itself.
_XNNPACK = (PruningScheme.UNSTRUCTURED, PruningScheme.GROUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInspection:
    """An operator of the fused dense network.

    `out_group` is the channel group that its outputs are, or several with commas, None where they stay: removed
    channels are less work in every runtime. `zeros` has the schemes whose zeros a runtime skips in it, for the runtimes
    that skip any.
    """

    name: str
    kernel: KernelSpec
    macs: int
    parameters: int
    out_group: str | None
    zeros: Mapping[str, tuple[PruningScheme, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInspection:
    """In how many operators of the network a runtime skips zeros, and under what condition, or why in none."""

    runtime: str
    layers_with_zeros: int
    note: str


def inspect_layers(spec: NetworkSpec) -> tuple[tuple[LayerInspection, ...], tuple[RuntimeInspection, ...]]:
    """The operators of a network, and the runtimes that it can be measured in."""
    inside, note = _sparse_path(spec)
    groups: dict[str, dict[str, None]] = {}
    for group in spec.groups:
        for member in group.members:
            if member.axis is Axis.OUT:
                groups.setdefault(member.op, {})[group.name] = None
    layers = []
    for op in spec.plan.ops:
        zeros: dict[str, tuple[PruningScheme, ...]] = {}
        if op.name in spec.prunable_ops:
            zeros[NATIVE] = _schemes_of(op.kernel)
            if op.name in inside:
                zeros[TFLITE_SPARSE_RUNTIME] = _XNNPACK
        layers.append(
            LayerInspection(
                name=op.name,
                kernel=op.kernel,
                macs=op.kernel.macs,
                parameters=op.kernel.parameters,
                out_group=", ".join(groups[op.name]) if op.name in groups else None,
                zeros=zeros,
            )
        )
    counts = {name: sum(name in layer.zeros for layer in layers) for name in (NATIVE, TFLITE_SPARSE_RUNTIME)}
    dense = "multiplies by zeros: only removed channels make it faster"
    runtimes = [
        RuntimeInspection(
            runtime=NATIVE, layers_with_zeros=counts[NATIVE], note="skips zeros at every density and by every scheme"
        ),
        RuntimeInspection(runtime=TFLITE_SPARSE_RUNTIME, layers_with_zeros=counts[TFLITE_SPARSE_RUNTIME], note=note),
        *(RuntimeInspection(runtime=name, layers_with_zeros=0, note=dense) for name in _DENSE_RUNTIMES),
    ]
    return tuple(layers), tuple(runtimes)


def _sparse_path(spec: NetworkSpec) -> tuple[frozenset[str], str]:
    """The 1x1 convolutions that XNNPACK's sparse path may take, and what it asks for."""
    try:
        inside = frozenset(convolutions_inside(spec.plan))
    except ContractError as error:
        return frozenset(), str(error)
    return inside, (
        "skips zeros of 1x1 convolutions where more than two thirds of their weights together are zero, on devices "
        "where the agent saw XNNPACK do so; all others run dense"
    )


def _schemes_of(kernel: KernelSpec) -> tuple[PruningScheme, ...]:
    if kernel.op is Op.FULLY_CONNECTED:
        return (*_ANY, PruningScheme.BLOCK)
    is_3x3 = kernel.op is Op.CONV2D and (kernel.kernel_h, kernel.kernel_w) == (3, 3)
    return (*_ANY, PruningScheme.PATTERN) if is_3x3 else _ANY
