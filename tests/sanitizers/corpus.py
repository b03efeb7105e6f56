"""A seeded corpus of program images: sound ones of all kinds of steps, and damaged and hostile ones made from them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import HealthCheck, given, settings

from device_agent.contracts import KernelSpec, NetworkPlan, Op, PruningScheme, WeightPruning
from device_agent.native.executor import NativeNetwork
from device_agent.native.image import with_checksum
from device_agent.native.library import Step, load_library
from device_agent.synthesis import kernel_plan
from tests.unit.device_agent.native import image_samples as samples
from tests.unit.device_agent.native.native_samples import convolutions, each_tiling, other_kernels, winograd_first
from tests.unit.device_agent.native.test_native_network import networks, residual_network

_HOSTILE_NUMBERS = (0, 1, -1, 2, 7, 15, 16, 17, 255, 1 << 20, 1 << 28, (1 << 31) - 1, -(1 << 31))
_HOSTILE_LONGS = (*_HOSTILE_NUMBERS, 1 << 32, 1 << 40, 1 << 62, -(1 << 63))


def plans(num_networks: int, num_kernels: int) -> list[NetworkPlan]:
    """The same every time: hypothesis without its random source."""
    found = [samples.every_kind(), residual_network()]

    def collect(examples: int) -> settings:
        return settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )

    @collect(num_networks)
    @given(plan=networks())
    def add_network(plan: NetworkPlan) -> None:
        found.append(plan)

    @collect(num_kernels)
    @given(kernel=convolutions() | other_kernels())
    def add_kernel(kernel: KernelSpec) -> None:
        plan = kernel_plan(kernel)
        if plan.residual_shape is None:
            found.append(plan)

    add_network()
    add_kernel()
    return found


def sound_images(num_networks: int = 60, num_kernels: int = 100) -> Iterator[bytes]:
    """Images of `plans` for the fastest backend, as planned first and with Winograd's algorithm first."""
    for plan in plans(num_networks, num_kernels):
        image = NativeNetwork(plan, samples.weights_of(plan), tune=False).image()
        yield image
        with winograd_first():
            other = NativeNetwork(plan, samples.weights_of(plan), tune=False).image()
        if other != image:
            yield other


def tiling_images(most: int = 60) -> Iterator[bytes]:
    """Convolutions on every tiling that the tuner would choose from, of every backend."""
    pruning = WeightPruning(scheme=PruningScheme.GROUP, block_filters=7, density=0.5)
    for backend in load_library().backends:
        if not backend.is_supported:
            continue
        for extent in (7, 9, 16):
            for stride in (1, 2, 3):
                kernel = KernelSpec(
                    op=Op.CONV2D, in_channels=7, out_channels=7, input_h=extent, input_w=extent, kernel_h=3, kernel_w=3,
                    padding=1, stride=stride, pruning=pruning,
                )  # fmt: skip
                plan = kernel_plan(kernel)
                for _ in each_tiling(most):
                    yield NativeNetwork(plan, samples.weights_of(plan), isa=backend.name, tune=False).image()


def hostile_images(image: bytes) -> Iterator[bytes]:
    """Every field of every step of `image` with numbers from the borders of its range."""
    for index in range(samples.header(image, "num_steps")):
        original = samples.steps(image)[index]
        for name, c_type in Step._fields_:
            if c_type.__name__ == "c_float" or name == "kind":
                continue
            value = getattr(original, name) or 0
            numbers = _HOSTILE_LONGS if c_type.__name__ not in ("c_int", "c_float") else _HOSTILE_NUMBERS
            for number in {*numbers, value + 1, value - 1, value * 2, value // 2, value + 4, value + 64}:
                if number != value and -(1 << 31) <= number < 1 << (31 if numbers is _HOSTILE_NUMBERS else 62):
                    yield samples.with_step(image, index, **{name: number})


def damaged_images(image: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`image` with a few random bytes changed, mostly in its tables, and the checksum right again."""
    rng = random.Random(seed)
    records = samples.HEADER_BYTES + 16 * samples.header(image, "num_regions")
    end = records + samples.STEP_BYTES * samples.header(image, "num_steps")
    for _ in range(count):
        damaged = bytearray(image)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            offset = rng.randrange(32, end) if rng.random() < 0.9 else rng.randrange(32, len(image))
            damaged[offset] = rng.choice((damaged[offset] ^ 1 << rng.randrange(8), 0, 1, 0xFF, rng.randrange(256)))
        yield with_checksum(damaged)
