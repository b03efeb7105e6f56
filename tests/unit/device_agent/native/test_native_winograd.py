"""Winograd's algorithm against torch, its own bits on every instruction set, and that hashes do not depend on it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import (
    NETWORK_INPUT,
    NETWORK_RESIDUAL,
    Activation,
    KernelSpec,
    KernelTask,
    Measurement,
    MeasuringSetup,
    NetworkFormat,
    NetworkPlan,
    NetworkTask,
    Op,
    PlanOp,
    PruningScheme,
    VerdictReason,
    WeightPruning,
)
from device_agent.formats.packed import write_packed
from device_agent.measuring.task import measure_task
from device_agent.native import steps, tuner
from device_agent.native.executor import NativeNetwork
from device_agent.native.library import Kind, Step, load_library
from device_agent.native.planner import Phase, make_program
from device_agent.native.steps import Way, is_for_winograd, winograd
from device_agent.native.steps.winograd import SIZES, transform_weights, winograd_tiles
from device_agent.native.weights import Weights
from device_agent.synthesis import kernel_inputs, kernel_plan, kernel_plan_tensors, synthesize_input, synthesize_weights
from tests.arm import output_hashes
from tests.unit.device_agent.native.native_samples import CLAMPS, conv, torch_kernel, winograd_first

LIBRARY = load_library()
BACKENDS = [backend for backend in LIBRARY.backends if backend.is_supported]
#: Times the largest output, by size of tiles: float32 has 6e-8.
TOLERANCE = {2: 3e-6, 4: 8e-6}


@st.composite
def winograd_kernels(draw: st.DrawFn) -> KernelSpec:
    """Odd extents and channels, so that tiles, vectors and blocks of output channels all have rests."""
    padding = draw(st.integers(0, 1))
    extents = st.integers(3 - 2 * padding, 23)
    return conv(
        in_channels=draw(st.integers(8, 40)),
        out_channels=draw(st.integers(8, 70)),
        input_h=draw(extents),
        input_w=draw(st.one_of(extents, st.integers(24, 70))),
        padding=padding,
        residual=draw(st.booleans()),
        activation=draw(st.sampled_from(CLAMPS)),
        pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=draw(st.floats(0.5, 1.0))),
        seed=draw(st.integers(0, 1000)),
    )


class WinogradRunner:
    """Runs every Winograd way and tile of one kernel on one backend, in parts or not."""

    def __init__(self, kernel: KernelSpec, isa: str, threads: int = 1) -> None:
        self._backend = LIBRARY.backend(isa)
        self.program = make_program(
            kernel_plan(kernel), kernel_plan_tensors(kernel), inputs_in_place=True, threads=threads
        )
        ways = [(work.phase, [way.make() for way in work.ways()]) for work in self.program.work]
        self.ways = [way for _, some in ways for way in some if way.steps[0].kind == Kind.WINOGRAD]
        self._store = [step for phase, some in ways if phase is Phase.STORE for step in some[0].steps]
        x, second = kernel_inputs(kernel)
        np.copyto(self.program.inputs[NETWORK_INPUT], x)
        if second is not None:
            np.copyto(self.program.inputs[NETWORK_RESIDUAL], second)
        for phase, some in ways:
            if phase is Phase.LOAD:
                for step in some[0].steps:
                    self._run(step)

    def outputs(self, way: Way, parts: int = 1) -> list[bytes]:
        """The output with each tile. What earlier tiles left is overwritten with NaN first."""
        (step,) = way.steps
        found = []
        tiles = winograd_tiles(step, functools.partial(LIBRARY.max_winograd_tiles, self._backend))
        assert {tile.outputs_in_lanes for tile in tiles} == {False, True}
        for tile in tiles:
            for count in {tile.tiles, max(1, tile.tiles - 1), 1}:
                replace(tile, tiles=count).set(step)
                padding = self._poison(step)
                for part in range(parts):
                    self._run(step, part, parts)
                assert not padding().any()
                for store in self._store:
                    self._run(store)
                found.append(self.program.output.tobytes())
        return found

    def _poison(self, step: Step) -> Callable[[], np.ndarray]:
        """NaN in the image and in the scratch memory. Returns what reads the padding, which must stay as it is."""
        _floats(step.scratch, step.scratch_size * step.winograd_parts)[:] = np.nan
        planes = _floats(step.output, step.outputs * step.output_plane)
        channel, y, x = np.ogrid[: step.outputs, : step.output_h, : step.output_w]
        inside = np.zeros(planes.size, bool)
        inside[channel * step.output_plane + y * step.output_row + x] = True
        planes[inside] = np.nan
        return lambda: planes[~inside]

    def _run(self, step: Step, part: int = 0, parts: int = 1) -> None:
        LIBRARY.run_part(self._backend.index, ctypes.addressof(step), part, parts)


def _floats(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(address))


@settings(max_examples=40, deadline=None)
@given(kernel=winograd_kernels())
def test_every_tile_equals_torch_and_all_instruction_sets_agree(kernel: KernelSpec) -> None:
    x, second = kernel_inputs(kernel)
    expected = torch_kernel(kernel, synthesize_weights(kernel), x, second)
    scale = float(np.abs(expected).max())
    with_fma: dict[int, set[bytes]] = {}
    for backend in BACKENDS:
        runner = WinogradRunner(kernel, backend.name)
        for way in runner.ways:
            outputs = set(runner.outputs(way))
            assert len(outputs) == 1
            output = runner.program.output
            size = way.steps[0].winograd_size
            assert float(np.abs(output - expected).max()) <= TOLERANCE[size] * scale
            if backend.has_fma:
                with_fma.setdefault(size, set()).update(outputs)
    assert all(len(outputs) == 1 for outputs in with_fma.values())


@settings(max_examples=20, deadline=None)
@given(kernel=winograd_kernels(), parts=st.integers(2, 5))
def test_parts_give_what_one_thread_gives(kernel: KernelSpec, parts: int) -> None:
    """Also where fewer parts have scratch memory than there are."""
    isa = BACKENDS[0].name
    alone = WinogradRunner(kernel, isa)
    expected = [alone.outputs(way)[0] for way in alone.ways]
    for threads in (parts, parts - 1):
        shared = WinogradRunner(kernel, isa, threads)
        assert [set(shared.outputs(way, parts)) for way in shared.ways] == [{output} for output in expected]


@pytest.mark.parametrize("size", SIZES)
def test_transformed_weights_are_blocks_of_outputs(size: int) -> None:
    """Filters whose nine weights are equal have only sums of rows of G: at point 0 of both axes, the weight itself."""
    weight = np.arange(17 * 8, dtype=np.float32).reshape(17, 8, 1, 1) * np.ones((3, 3), np.float32)
    transformed = transform_weights(Weights(weight), size)
    assert transformed.shape == (2, (size + 2) ** 2, 8, 16)
    np.testing.assert_array_equal(transformed[0, 0].T, weight[:16, :, 0, 0])
    np.testing.assert_array_equal(transformed[1, 0, :, 0], weight[16, :, 0, 0])
    assert not transformed[1, :, :, 1:].any()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"padding": 0}, True),
        ({"stride": 2}, False),
        ({"kernel_h": 5, "kernel_w": 5}, False),
        ({"in_channels": 3}, False),
        ({"pruning": WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.2)}, False),
        ({"pruning": WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.7)}, True),
    ],
)
def test_which_layers_are_for_winograd(changes: dict[str, object], expected: bool) -> None:
    kernel = conv(**changes)
    assert is_for_winograd(kernel, Weights(synthesize_weights(kernel)["weight"])) is expected


def test_small_images_have_small_tiles_for_the_sake_of_memory() -> None:
    sizes = [
        {way.steps[0].winograd_size for way in WinogradRunner(conv(64, extent), BACKENDS[0].name).ways}
        for extent in (8, 9, 20)
    ]
    assert sizes == [{2}, {2, 4}, {2, 4}]


def winograd_network() -> NetworkPlan:
    first, second = conv(32, 20, activation=Activation.RELU), conv(32, 20, residual=True, activation=Activation.RELU)
    pool = KernelSpec(op=Op.GLOBAL_AVG_POOL, in_channels=32, out_channels=32, input_h=20, input_w=20)
    ops = (
        PlanOp(name="first", kernel=first, inputs=("input",)),
        PlanOp(name="second", kernel=second, inputs=("first",), residual="input"),
        PlanOp(name="pool", kernel=pool, inputs=("second",)),
    )
    return NetworkPlan(name="winograd", input_shape=(32, 20, 20), ops=ops)


@pytest.fixture
def by_winograd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Winograd's algorithm wherever it can be, whatever would be faster here."""
    monkeypatch.setattr(tuner._Tuner, "tune", tuner._Tuner.guess)
    with winograd_first():
        yield


@pytest.mark.usefixtures("by_winograd")
def test_an_exact_network_has_the_same_bits_with_winograd_allowed_or_not() -> None:
    plan = winograd_network()
    tensors = {f"{op.name}.{k}": v for op in plan.ops for k, v in synthesize_weights(op.kernel).items()}
    x = synthesize_input(plan.input_shape, 0)
    fast = NativeNetwork(plan, tensors)
    assert fast.winograd_ops == ("first", "second")
    exact = NativeNetwork(plan, tensors, exact=True)
    assert exact.winograd_ops == ()
    assert fast.run(x).tobytes() != exact.run(x).tobytes()
    np.testing.assert_allclose(fast.run(x), exact.run(x), rtol=1e-4, atol=1e-5)
    # Constants of the way that was not chosen are not kept, and both layers share one scratch memory.
    assert len({step.scratch for step in fast._run._array if step.kind == Kind.WINOGRAD}) == 1
    transformed_bytes, scratch_bytes = 4 * 36 * 32 * 32, max(array.nbytes for array in fast._held)
    assert fast.memory_bytes - exact.memory_bytes < 2 * transformed_bytes + scratch_bytes


@pytest.mark.usefixtures("by_winograd")
def test_the_hash_of_a_measurement_does_not_depend_on_winograd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels and networks alike; the outputs that are sent are those of what was timed."""
    plan = winograd_network()
    tensors = {f"{op.name}.{k}": v for op in plan.ops for k, v in synthesize_weights(op.kernel).items()}
    artifact = tmp_path / "network"
    artifact.write_bytes(write_packed(plan, tensors))
    setup = MeasuringSetup(
        runtime="native", min_warmup_s=0.001, min_sample_s=0.0001, samples_per_block=2, budget_s=0.05
    )
    tasks: list[tuple[KernelTask | NetworkTask, Path | None]] = [
        (KernelTask(kernel=conv(24, 13, residual=True), setup=setup), None),
        (
            NetworkTask(
                artifact_sha256=hashlib.sha256(artifact.read_bytes()).hexdigest(),
                artifact_bytes=artifact.stat().st_size,
                format=NetworkFormat.PACKED,
                input_shape=plan.input_shape,
                num_outputs=2,
                setup=setup,
            ),
            artifact,
        ),
    ]
    results: list[list[Measurement]] = []
    for allowed in (True, False):
        if not allowed:
            monkeypatch.setattr(steps, "is_for_winograd", lambda kernel, weights: False)
        measured = [measure_task(task, path) for task, path in tasks]
        assert all(isinstance(result, Measurement) for result in measured)
        results.append([result for result in measured if isinstance(result, Measurement)])
    (kernel, network), (direct_kernel, direct_network) = results
    assert kernel.output_sha256 == direct_kernel.output_sha256
    assert network.output_sha256 == direct_network.output_sha256
    assert network.outputs != direct_network.outputs
    assert VerdictReason.WRONG_OUTPUT not in (*kernel.reasons, *network.reasons)


@pytest.mark.usefixtures("by_winograd")
def test_outputs_far_from_the_exact_ones_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = winograd_network()
    tensors = {f"{op.name}.{k}": v for op in plan.ops for k, v in synthesize_weights(op.kernel).items()}
    artifact = tmp_path / "network"
    artifact.write_bytes(write_packed(plan, tensors))

    def wrongly_transformed(weights: Weights, size: int) -> np.ndarray:
        transformed = transform_weights(weights, size)
        transformed *= 1.1
        return transformed

    monkeypatch.setattr(winograd, "transform_weights", wrongly_transformed)
    task = NetworkTask(
        artifact_sha256=hashlib.sha256(artifact.read_bytes()).hexdigest(),
        artifact_bytes=artifact.stat().st_size,
        format=NetworkFormat.PACKED,
        input_shape=plan.input_shape,
        num_outputs=1,
        setup=MeasuringSetup(
            runtime="native", min_warmup_s=0.001, min_sample_s=0.0001, samples_per_block=2, budget_s=0.05
        ),
    )
    result = measure_task(task, artifact)
    assert isinstance(result, Measurement)
    assert VerdictReason.WRONG_OUTPUT in result.reasons


@pytest.mark.parametrize("isa", [backend.name for backend in BACKENDS if backend.has_fma])
def test_a_program_that_could_use_winograd_is_exact_where_it_does_not(isa: str) -> None:
    """That it might have been chosen changes no bit, not even of global pools."""
    plan = output_hashes.network()
    tensors = output_hashes.network_tensors(plan)
    x = synthesize_input(plan.input_shape, 1)
    network = NativeNetwork(plan, tensors, isa=isa, tune=False)
    exact = NativeNetwork(plan, tensors, isa=isa, tune=False, exact=True)
    assert network.winograd_ops == ()
    assert network.run(x).tobytes() == exact.run(x).tobytes()
