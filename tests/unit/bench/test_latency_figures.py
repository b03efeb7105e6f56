"""The figures on measuring: injected faults on fake kernels and a fake clock, and spreads of given numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.latency.faults import DEVICE_FAULTS, DeviceFault, Stage, StagedExecutable, StagedReference
from bench.latency.spread import Taken, convolution, spread_of, summary
from device_agent.contracts import KernelSpec, KernelTask, Measurement, MeasuringSetup, RuntimeInfo, Verdict
from device_agent.measuring.task import Surroundings, measure_task
from device_agent.native.team import available_cores
from device_agent.runtimes.reference import run_kernel
from device_agent.synthesis import kernel_inputs, synthesize_weights
from tests.unit.device_agent.measuring.measuring_fakes import FakeClock, FakeKernel


class StagedFakes:
    """A runtime of fake kernels that plays a fault while it is measured."""

    def __init__(self, stage: Stage, clock: FakeClock) -> None:
        self._stage = stage
        self._clock = clock

    def info(self) -> RuntimeInfo:
        return RuntimeInfo(name="fake", version="1")

    def load_kernel(self, kernel: KernelSpec, threads: int) -> StagedExecutable:
        fake = FakeKernel(self._clock, 40_000)
        x, _ = kernel_inputs(kernel)
        fake.output = run_kernel(kernel, synthesize_weights(kernel), [x]).reshape(-1)
        return StagedExecutable(fake, on_repeat=self._stage.candidate_runs)

    def load_network(self, *arguments: object) -> StagedExecutable:
        raise NotImplementedError


def measured(tree: str, folder: Path, fault: DeviceFault | None = None) -> Measurement:
    core = min(available_cores())
    clock = FakeClock()
    stage = Stage(tree, folder, core, {} if fault is None else fault.script)
    around = Surroundings(
        cores=(core,),
        root=stage.root,
        clock=clock,
        make_runtime=lambda _name: StagedFakes(stage, clock),
        make_reference_kernel=lambda: StagedReference(FakeKernel(clock, 20_000), stage),
    )
    task = KernelTask(kernel=convolution(4, 5), setup=MeasuringSetup(runtime="fake"))
    result = measure_task(task, surroundings=around)
    assert isinstance(result, Measurement), result
    return result


@pytest.mark.skipif(min(available_cores()) > 3, reason="the recorded devices have four cores")
@pytest.mark.parametrize("fault", DEVICE_FAULTS, ids=lambda fault: fault.name)
def test_every_fault_of_a_device_is_caught(fault: DeviceFault, tmp_path: Path) -> None:
    result = measured(fault.tree, tmp_path, fault)
    assert fault.expected & set(result.reasons)
    assert result.verdict is not Verdict.TRUSTED


@pytest.mark.parametrize("tree", sorted({fault.tree for fault in DEVICE_FAULTS}))
def test_an_undisturbed_device_raises_no_alarm(tree: str, tmp_path: Path) -> None:
    assert (measured(tree, tmp_path).verdict, measured(tree, tmp_path / "again").reasons) == (Verdict.TRUSTED, ())


def test_the_reference_takes_a_common_drift_out() -> None:
    speeds = (1.0, 1.5, 1.0, 1.2, 1.0)
    taken = [Taken(1000.0 * s, 10.0 * s, 100.0, "trusted") for s in speeds]
    rows = summary(taken)
    assert rows["raw"]["cv"] > 0.15
    assert rows["raw"]["range"] == 0.5
    assert rows["with_reference"] == {"cv": 0.0, "range": 0.0}
    assert (rows["measurements"], rows["trusted"], rows["median_ns"]) == (5, 5, 1000.0)


def test_spread_of_single_numbers() -> None:
    assert spread_of([7.0]) == {"cv": 0.0, "range": 0.0}
