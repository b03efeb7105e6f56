"""Small networks around one sparse 1x1 convolution: what XNNPACK's sparse path can be timed and proved with.

The path exists inside whole networks only (`formats.tflite_sparse`), so a kernel's time is the difference of two
networks that differ in nothing but how often they hold it. A witness is a network whose output is finite only where
zeros are skipped: no clock takes part in telling the paths apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from device_agent.contracts.codec import ContractError
from device_agent.contracts.kernel import DENSE, Activation, KernelSpec, Op
from device_agent.contracts.network import NETWORK_INPUT, NetworkPlan, PlanOp
from device_agent.formats.tflite_sparse import convolutions_inside
from device_agent.runtimes.reference import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, run_network
from device_agent.synthesis import FloatArray, synthesize_input, synthesize_weights

#: Copies of the kernel in the longer and the shorter network: their difference is six kernels.
MORE_COPIES = 8
FEWER_COPIES = 2

_STEM, _BASE, _MEAN = "stem", "base", "mean"

#: Whose bias the witness makes infinite.
_WITNESS_CHANNEL = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """A plan and its tensors, named as in `NetworkPlan`."""

    plan: NetworkPlan
    tensors: dict[str, FloatArray]


def kernel_chain(kernel: KernelSpec, copies: int, sums: int) -> Network:
    """A network of the sparse path with `copies` of a 1x1 convolution, all on the same tensor, and `sums` additions.

    A 3x3 convolution makes the kernel's input from an image; the copies' results are added up, the last one again and
    again where there are more sums than copies; a mean over h and w ends it. So two networks with equal `sums` differ
    in copies of the kernel alone. What a kernel with a residual adds is the result of one more convolution.

    The copies' weights are those of the kernel's seed, each scaled a little differently: no two operators are equal.
    """
    tensors: dict[str, FloatArray] = {}
    stem = KernelSpec(
        op=Op.CONV2D,
        in_channels=3,
        out_channels=kernel.in_channels,
        input_h=2 * kernel.input_h,
        input_w=2 * kernel.input_w,
        kernel_h=3,
        kernel_w=3,
        stride=2,
        padding=1,
        seed=kernel.seed,
    )
    _add_tensors(tensors, _STEM, synthesize_weights(stem), 1.0)
    ops = [PlanOp(name=_STEM, kernel=stem, inputs=(NETWORK_INPUT,))]
    weights = synthesize_weights(kernel)
    if kernel.residual:
        base = dataclasses.replace(kernel, residual=False, activation=Activation.NONE)
        ops.append(PlanOp(name=_BASE, kernel=base, inputs=(_STEM,)))
        _add_tensors(tensors, _BASE, weights, 1.0)
    add = _same(kernel, Op.ADD)
    total = ""
    for i in range(sums + 1):
        name = f"copy{min(i, copies - 1)}"
        if i < copies:
            ops.append(PlanOp(name=name, kernel=kernel, inputs=(_STEM,), residual=_BASE if kernel.residual else None))
            _add_tensors(tensors, name, weights, 1.0 - (i + 1) / 64)
        if i > 0:
            ops.append(PlanOp(name=f"sum{i}", kernel=add, inputs=(total, name)))
        total = name if i == 0 else f"sum{i}"
    ops.append(PlanOp(name=_MEAN, kernel=_same(kernel, Op.GLOBAL_AVG_POOL), inputs=(total,)))
    plan = NetworkPlan(name="chain", input_shape=(3, stem.input_h, stem.input_w), ops=tuple(ops))
    return Network(plan=plan, tensors=tensors)


def chain_input(network: Network) -> FloatArray:
    """The image that a chain is run on, (3, h, w)."""
    return synthesize_input(network.plan.input_shape, network.plan.ops[0].kernel.seed)


def chain_agrees(network: Network, x: FloatArray, output: FloatArray, max_channels: int = 8) -> bool:
    """Whether `output`, the mean of each channel, is what the chain must give, looked at in a few channels."""
    out_channels = network.plan.output_shape[0]
    if output.size != out_channels:
        return False
    channels = np.unique(np.linspace(0, out_channels - 1, max_channels).round().astype(int))
    narrow = _narrowed(network, channels)
    expected = run_network(narrow.plan, narrow.tensors, x).reshape(-1)
    got = output.reshape(-1)[channels]
    tolerance = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * float(np.abs(expected).max())
    return bool(np.isfinite(got).all() and np.abs(got - expected).max() <= tolerance)


def witness(plan: NetworkPlan, tensors: Mapping[str, FloatArray], *, poisoned: bool) -> Network:
    """The network changed so that its output tells whether zeros are skipped.

    One channel of a tensor that only 1x1 convolutions read has no weight in any of them. With `poisoned` it is
    infinite: a convolution that multiplies by zero turns it to NaN, and all of the output with it; one that skips zeros
    never looks, and the output is that of the network that is not poisoned. Activations are left out, as clamping may
    hide a NaN; the rules of the sparse path do not depend on them.

    Raises `ContractError` where the network breaks the path's rules, or has no such tensor.
    """
    inside = set(convolutions_inside(plan))
    for op in plan.ops:
        readers = [other for other in plan.ops if op.name in (*other.inputs, other.residual)]
        if not op.kernel.op.has_weights or not readers:
            continue
        if all(r.name in inside and r.residual != op.name for r in readers):
            break
    else:
        raise ContractError(
            f"no tensor of {plan.name!r} is read by 1x1 convolutions alone, so whether their zeros are skipped cannot "
            "be told"
        )
    changed = dict(tensors)
    bias = changed[f"{op.name}.bias"].copy()
    bias[_WITNESS_CHANNEL] = np.inf if poisoned else 0.0
    changed[f"{op.name}.bias"] = bias
    for reader in readers:
        weight = changed[f"{reader.name}.weight"].copy()
        weight[:, _WITNESS_CHANNEL] = 0.0
        changed[f"{reader.name}.weight"] = weight
    ops = tuple(
        dataclasses.replace(op, kernel=dataclasses.replace(op.kernel, activation=Activation.NONE)) for op in plan.ops
    )
    return Network(plan=dataclasses.replace(plan, ops=ops), tensors=changed)


def _add_tensors(tensors: dict[str, FloatArray], name: str, own: Mapping[str, FloatArray], scale: float) -> None:
    tensors[f"{name}.weight"] = own["weight"] * np.float32(scale)
    tensors[f"{name}.bias"] = own["bias"]


def _same(kernel: KernelSpec, op: Op) -> KernelSpec:
    return KernelSpec(
        op=op,
        in_channels=kernel.out_channels,
        out_channels=kernel.out_channels,
        input_h=kernel.output_h,
        input_w=kernel.output_w,
    )


def _narrowed(network: Network, channels: np.ndarray) -> Network:
    """The chain with these output channels of its kernel only: a reference that costs in proportion."""
    count = len(channels)
    ops, tensors = [], dict(network.tensors)
    for op in network.plan.ops:
        kernel = op.kernel
        if op.name != _STEM and kernel.op is Op.CONV2D:
            kernel = dataclasses.replace(kernel, out_channels=count, pruning=DENSE)
            for name in (f"{op.name}.weight", f"{op.name}.bias"):
                tensors[name] = tensors[name][channels]
        elif op.name != _STEM:
            kernel = dataclasses.replace(kernel, in_channels=count, out_channels=count)
        ops.append(dataclasses.replace(op, kernel=kernel))
    return Network(plan=dataclasses.replace(network.plan, ops=tuple(ops)), tensors=tensors)
