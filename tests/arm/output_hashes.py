"""What the native library computes for a fixed set of kernels and one network, as hashes. Runs on any machine.

    python output_hashes.py          prints {backend: {name: sha256}} of every backend here that has FMA

Every way that the library offers for a kernel is run, also those that it would choose on other shapes only. Needs
nothing but the agent, so that an emulated Python runs it with the installed agent alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import Activation, KernelSpec, NetworkPlan, Op, PlanOp, PruningScheme, WeightPruning
from device_agent.native import tuner
from device_agent.native.executor import NativeKernel, NativeNetwork
from device_agent.native.library import load_library
from device_agent.native.steps import Way, Ways
from device_agent.synthesis import kernel_inputs, synthesize_input, synthesize_weights

PRUNINGS = (
    WeightPruning(),
    WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.2),
    # Groups of 7 filters occur as 4 + 2 + 1.
    *(WeightPruning(scheme=PruningScheme.GROUP, density=0.3, block_filters=n) for n in (2, 4, 7)),
    WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, density=0.4, block_filters=8, block_channels=4),
    WeightPruning(scheme=PruningScheme.PATTERN, density=0.3, block_filters=4, pattern_entries=4),
)


def kernels() -> Iterator[KernelSpec]:
    """Every operator, scheme, group size, stride and activation, on extents that no vector length divides."""
    activations = itertools.cycle(Activation)
    for (height, width), stride, pruning in itertools.product(((1, 1), (3, 3), (5, 5)), (1, 2), PRUNINGS):
        if pruning.scheme is not PruningScheme.PATTERN or height == 3:
            yield KernelSpec(
                op=Op.CONV2D, in_channels=11, out_channels=18, input_h=13, input_w=15, kernel_h=height, kernel_w=width,
                stride=stride, padding=height // 2, residual=stride == 1, activation=next(activations), pruning=pruning,
            )  # fmt: skip
    # Rests of tiles and of blocks of 16 channels for Winograd's algorithm, without padding.
    yield KernelSpec(
        op=Op.CONV2D, in_channels=19, out_channels=37, input_h=7, input_w=33, kernel_h=3, kernel_w=3, residual=True
    )
    common = {"input_h": 14, "input_w": 17}
    for (height, width), stride in (((7, 7), 2), ((1, 7), 1), ((3, 3), 3), ((2, 2), 2)):
        yield KernelSpec(
            op=Op.CONV2D, in_channels=3, out_channels=8, kernel_h=height, kernel_w=width, stride=stride,
            padding=min(height, width) // 2, **common,
        )  # fmt: skip
    for size, stride, pruning in itertools.product((3, 5), (1, 2), PRUNINGS[:3]):
        yield KernelSpec(
            op=Op.DEPTHWISE_CONV2D, in_channels=18, out_channels=18, kernel_h=size, kernel_w=size, stride=stride,
            padding=size // 2, activation=next(activations), pruning=pruning, **common,
        )  # fmt: skip
    for pruning in PRUNINGS[:-1]:
        yield KernelSpec(op=Op.FULLY_CONNECTED, in_channels=67, out_channels=21, pruning=pruning)
    for op, size, stride in ((Op.MAX_POOL, 3, 2), (Op.AVG_POOL, 2, 2), (Op.AVG_POOL, 3, 1)):
        yield KernelSpec(
            op=op, in_channels=9, out_channels=9, kernel_h=size, kernel_w=size, stride=stride, padding=size // 3,
            **common,
        )  # fmt: skip
    yield KernelSpec(op=Op.GLOBAL_AVG_POOL, in_channels=9, out_channels=9, **common)
    yield KernelSpec(op=Op.ADD, in_channels=9, out_channels=9, activation=Activation.RELU, **common)
    yield KernelSpec(op=Op.SHORTCUT_PAD, in_channels=9, out_channels=18, stride=2, pad_channels_before=4, **common)


def network() -> NetworkPlan:
    """A residual network with a branch, a depthwise layer, pools and a classifier."""

    def conv(inputs: int, outputs: int, size: int, **changes: object) -> KernelSpec:
        kernel: dict[str, object] = {"op": Op.CONV2D, "in_channels": inputs, "out_channels": outputs, "input_h": size,
                                     "input_w": size, "kernel_h": 3, "kernel_w": 3, "padding": 1,
                                     "activation": Activation.RELU}  # fmt: skip
        return KernelSpec(**(kernel | changes))  # type: ignore[arg-type]

    sparse, plain = {"pruning": PRUNINGS[3]}, {"activation": Activation.NONE}
    flat = {"op": Op.FULLY_CONNECTED, "kernel_h": 1, "kernel_w": 1, "padding": 0}
    ops = (
        PlanOp(name="stem", kernel=conv(3, 16, 32), inputs=("input",)),
        PlanOp(name="pool", kernel=conv(16, 16, 32, op=Op.MAX_POOL, stride=2, **plain), inputs=("stem",)),
        PlanOp(name="a", kernel=conv(16, 16, 16, **sparse), inputs=("pool",)),
        PlanOp(name="b", kernel=conv(16, 16, 16, residual=True, **sparse), inputs=("a",), residual="pool"),
        PlanOp(name="depthwise", kernel=conv(16, 16, 16, op=Op.DEPTHWISE_CONV2D, stride=2), inputs=("b",)),
        PlanOp(
            name="shortcut",
            kernel=conv(16, 32, 16, op=Op.SHORTCUT_PAD, stride=2, kernel_h=1, kernel_w=1, padding=0, **plain),
            inputs=("b",),
        ),
        PlanOp(name="wide", kernel=conv(16, 32, 8, **sparse, **plain), inputs=("depthwise",)),
        PlanOp(
            name="sum",
            kernel=conv(32, 32, 8, op=Op.ADD, kernel_h=1, kernel_w=1, padding=0),
            inputs=("wide", "shortcut"),
        ),
        PlanOp(
            name="mean",
            kernel=conv(32, 32, 8, op=Op.GLOBAL_AVG_POOL, kernel_h=1, kernel_w=1, padding=0, **plain),
            inputs=("sum",),
        ),
        PlanOp(name="classes", kernel=conv(32, 10, 1, **flat, **plain), inputs=("mean",)),
    )
    return NetworkPlan(name="small", input_shape=(3, 32, 32), ops=ops)


def network_tensors(plan: NetworkPlan) -> dict[str, NDArray[np.float32]]:
    """The weights and biases that the seeds of the operators stand for."""
    return {f"{op.name}.{name}": t for op in plan.ops for name, t in synthesize_weights(op.kernel).items()}


def describe(kernel: KernelSpec) -> str:
    """A name that tells the kernels of this file apart."""
    pruning = kernel.pruning
    return (
        f"{kernel.op} {kernel.kernel_h}x{kernel.kernel_w}/{kernel.stride} {kernel.in_channels}-{kernel.out_channels} "
        f"{pruning.scheme} {pruning.block_filters}x{pruning.block_channels}"
    )


@contextmanager
def way_taken(wanted: int) -> Iterator[list[int]]:
    """Untuned kernels take the way `wanted`, or the last one of those that have fewer; yields their numbers of ways."""
    counts: list[int] = []
    guess = tuner._Tuner.guess

    def pick(self: tuner._Tuner, ways: Ways) -> tuple[Way, tuner._Choice]:
        counts.append(len(ways))
        return guess(self, (ways[min(wanted, len(ways) - 1)],))

    tuner._Tuner.guess = pick  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        tuner._Tuner.guess = guess  # type: ignore[method-assign]


def output_hashes(isa: str) -> dict[str, str]:
    """The SHA-256 of the output of each kernel, in each way, and of the network on the backend `isa`."""
    hashes = {}
    for kernel in kernels():
        way, num_ways = 0, 1
        while way < num_ways:
            with way_taken(way) as counts:
                output = NativeKernel(kernel, isa=isa, tune=False).run(*kernel_inputs(kernel))
            hashes[f"{describe(kernel)} way {way}"] = hashlib.sha256(output.tobytes()).hexdigest()
            way, num_ways = way + 1, max(counts)
    plan = network()
    x = synthesize_input(plan.input_shape, 1)
    for threads in (1, 3):
        prepared = NativeNetwork(plan, network_tensors(plan), isa=isa, tune=False, threads=threads)
        # More than once, so that threads also sleep and wake.
        output = [prepared.run(x) for _ in range(threads)][-1]
        hashes[f"network on {threads} threads"] = hashlib.sha256(output.tobytes()).hexdigest()
        prepared.close()
    if hashes["network on 1 threads"] != hashes["network on 3 threads"]:
        raise SystemExit(f"{isa}: threads change the output")
    return hashes


def all_hashes() -> dict[str, dict[str, str]]:
    """`output_hashes` of every backend with FMA that this machine can run."""
    usable = [b.name for b in load_library().backends if b.is_supported and b.has_fma]
    return {isa: output_hashes(isa) for isa in usable}


if __name__ == "__main__":
    json.dump(all_hashes(), sys.stdout)
