"""Whole CIFAR ResNets on the native executor, by density, against the same network dense in TFLite (XNNPACK).

    python -m bench.native_network [--blocks 9] [--densities 1 .5 .3 .2 .1] [--group 4] [--rounds 60] [--json FILE]

One thread. Thread-CPU time of single runs, all variants interleaved in every round, so that a disturbance hits all of
them alike; the table shows medians, and the median over rounds of TFLite / native. Weights are random: times do not
depend on their values. Blocks = 9 is ResNet-56 (6 * blocks + 2 layers). The stem and the last layer stay dense.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from device_agent.contracts import (
    DENSE,
    NETWORK_INPUT,
    Activation,
    KernelSpec,
    NetworkPlan,
    Op,
    PlanOp,
    PruningScheme,
    WeightPruning,
)
from device_agent.formats.tflite import plan_to_tflite
from device_agent.native.executor import NativeNetwork
from device_agent.native.library import load_library
from device_agent.synthesis import synthesize_input, synthesize_weights

STAGE_CHANNELS = (16, 32, 64)
IMAGE_EXTENT = 32
NUM_CLASSES = 10


def resnet_plan(blocks_per_stage: int, pruning: WeightPruning) -> NetworkPlan:
    """A CIFAR ResNet of 6 * blocks + 2 layers with parameter-free shortcuts (He et al. 2015, arXiv 1512.03385)."""
    ops: list[PlanOp] = []

    def add(name: str, kernel: KernelSpec, source: str, residual: str | None = None) -> str:
        ops.append(PlanOp(name=name, kernel=kernel, inputs=(source,), residual=residual))
        return name

    extent, channels = IMAGE_EXTENT, STAGE_CHANNELS[0]
    current = add("conv1", _conv(3, channels, extent, 1, DENSE, seed=1), NETWORK_INPUT)
    for stage, out_channels in enumerate(STAGE_CHANNELS, start=1):
        for block in range(blocks_per_stage):
            stride = 2 if out_channels != channels else 1
            name, seed = f"layer{stage}.{block}", 1000 * stage + 2 * block
            shortcut = current
            first = add(f"{name}.conv1", _conv(channels, out_channels, extent, stride, pruning, seed=seed), current)
            if stride == 2:
                kernel = KernelSpec(
                    op=Op.SHORTCUT_PAD,
                    in_channels=channels,
                    out_channels=out_channels,
                    input_h=extent,
                    input_w=extent,
                    stride=2,
                    pad_channels_before=(out_channels - channels) // 2,
                )
                shortcut = add(f"{name}.shortcut", kernel, current)
            extent, channels = extent // stride, out_channels
            kernel = _conv(channels, channels, extent, 1, pruning, residual=True, seed=seed + 1)
            current = add(f"{name}.conv2", kernel, first, residual=shortcut)
    pool = KernelSpec(
        op=Op.GLOBAL_AVG_POOL, in_channels=channels, out_channels=channels, input_h=extent, input_w=extent
    )
    current = add("pool", pool, current)
    add("linear", KernelSpec(op=Op.FULLY_CONNECTED, in_channels=channels, out_channels=NUM_CLASSES, seed=2), current)
    return NetworkPlan(
        name=f"resnet{6 * blocks_per_stage + 2}", input_shape=(3, IMAGE_EXTENT, IMAGE_EXTENT), ops=tuple(ops)
    )


def plan_tensors(plan: NetworkPlan) -> dict[str, np.ndarray]:
    """Random weights for every operator of `plan`; residual branches are scaled down, so that sums stay moderate."""
    tensors = {}
    for op in plan.ops:
        for name, tensor in synthesize_weights(op.kernel).items():
            tensors[f"{op.name}.{name}"] = tensor * np.float32(0.3 if op.residual else 1.0)
    return tensors


class TfliteNetwork:
    """A TFLite model with XNNPACK on one thread."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=model, num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self.invoke: Callable[[], None] = self._interpreter.invoke

    def run(self, x: np.ndarray) -> np.ndarray:
        """The output, flattened, for `x` (c, h, w)."""
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(x.transpose(1, 2, 0)[None]))
        self.invoke()
        return np.asarray(self._interpreter.get_tensor(self._output)).reshape(-1)


def time_interleaved(variants: Sequence[Callable[[], None]], rounds: int) -> np.ndarray:
    """Thread-CPU ns of one run of each variant in each round, (rounds, variants)."""
    times_ns = np.zeros((rounds, len(variants)))
    for round_index in range(rounds):
        for index, invoke in enumerate(variants):
            invoke()
            start = time.thread_time_ns()
            invoke()
            times_ns[round_index, index] = time.thread_time_ns() - start
    return times_ns


def _conv(
    in_channels: int,
    out_channels: int,
    extent: int,
    stride: int,
    pruning: WeightPruning,
    *,
    residual: bool = False,
    seed: int,
) -> KernelSpec:
    return KernelSpec(
        op=Op.CONV2D,
        in_channels=in_channels,
        out_channels=out_channels,
        input_h=extent,
        input_w=extent,
        kernel_h=3,
        kernel_w=3,
        stride=stride,
        padding=1,
        residual=residual,
        activation=Activation.RELU,
        pruning=pruning,
        seed=seed,
    )


def _pruning(density: float, group: int) -> WeightPruning:
    if density == 1.0:
        return DENSE
    return WeightPruning(scheme=PruningScheme.GROUP, density=density, block_filters=group)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=9, help="residual blocks of each stage")
    parser.add_argument("--densities", type=float, nargs="+", default=[1.0, 0.5, 0.3, 0.2, 0.1])
    parser.add_argument("--group", type=int, default=4, help="output channels that share a mask")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--isa", help="native backend, instead of the fastest")
    parser.add_argument("--json", type=Path, help="write the result here as well")
    arguments = parser.parse_args()

    plans = [resnet_plan(arguments.blocks, _pruning(density, arguments.group)) for density in arguments.densities]
    x = synthesize_input(plans[0].input_shape, seed=0)
    networks, prepare_s, errors = [], [], []
    for plan in plans:
        tensors = plan_tensors(plan)
        start = time.perf_counter()
        network = NativeNetwork(plan, tensors, isa=arguments.isa)
        prepare_s.append(time.perf_counter() - start)
        expected = TfliteNetwork(plan_to_tflite(plan, tensors)).run(x)
        output = network.run(x).reshape(-1)
        errors.append(float(np.abs(output - expected).max() / np.abs(expected).max()))
        networks.append(network)
    dense = resnet_plan(arguments.blocks, DENSE)
    tflite = TfliteNetwork(plan_to_tflite(dense, plan_tensors(dense)))
    tflite.run(x)
    times_ns = time_interleaved([tflite.invoke, *(network.invoke for network in networks)], arguments.rounds)

    library = load_library()
    rows = []
    print(f"{dense.name}, {networks[0].isa}, {platform.machine()}, compiler {library.compiler}")
    print(f"TFLite dense: {np.median(times_ns[:, 0]) / 1e6:.3f} ms")
    print(f"{'density':>8} {'ms':>8} {'speed-up':>9} {'of ops':>7} {'prepare s':>10} {'MiB':>6} {'rel. error':>11}")
    for index, (density, network) in enumerate(zip(arguments.densities, networks, strict=True)):
        median_ms = float(np.median(times_ns[:, index + 1])) / 1e6
        speed_up = statistics.median(times_ns[:, 0] / times_ns[:, index + 1])
        op_share = sum(network.op_ns(rounds=arguments.rounds)) / 1e6 / median_ms
        row = {
            "density": density,
            "median_ms": median_ms,
            "speed_up_over_tflite_dense": speed_up,
            "sum_of_ops_over_whole": op_share,
            "prepare_s": prepare_s[index],
            "memory_bytes": network.memory_bytes,
            "relative_error": errors[index],
        }
        rows.append(row)
        print(
            f"{density:8.2f} {median_ms:8.3f} {speed_up:9.2f} {op_share:7.2f} {prepare_s[index]:10.2f} "
            f"{network.memory_bytes / 2**20:6.2f} {errors[index]:11.1e}"
        )
    if arguments.json is not None:
        result = {
            "network": dense.name,
            "isa": networks[0].isa,
            "machine": platform.machine(),
            "group": arguments.group,
            "rounds": arguments.rounds,
            "tflite_dense_ms": float(np.median(times_ns[:, 0])) / 1e6,
            "native": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
