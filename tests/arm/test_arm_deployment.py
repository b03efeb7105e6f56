"""The exported folder, cross-compiled as its README says, on emulated aarch64 processors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from device_agent.formats.packed import write_packed
from device_agent.native.deployment import write_deployment
from device_agent.native.executor import NativeNetwork
from device_agent.native.library import load_library
from device_agent.synthesis import kernel_plan, synthesize_input
from tests.arm.environment import CPUS, ArmEnvironment
from tests.unit.device_agent.native import image_samples as samples
from tests.unit.device_agent.native import test_native_strips as strips
from tests.unit.device_agent.native.test_native_network import residual_network

pytestmark = pytest.mark.xdist_group("arm")


#: As the README says, for which zig compiles a C library first; and in a third of the time.
AS_TOLD = ("-target", "aarch64-linux-musl", "-static", "-O3")
QUICKLY = ("-target", "aarch64-linux-gnu", "-O1")


@pytest.fixture(scope="module", params=[QUICKLY, pytest.param(AS_TOLD, marks=pytest.mark.slow)], ids=["-O1", "as told"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ziglang", reason="ziglang compiles for aarch64")
    folder = tmp_path_factory.mktemp("deployed")
    plan = residual_network()
    write_deployment(write_packed(plan, samples.weights_of(plan)), folder, tune=False)
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "cc", *request.param),
            *("-Wno-psabi", "example.c", "kerf_runtime.cpp", "-o", "example"),
        ],
        cwd=folder,
        check=True,
    )
    return folder


def emulator(arm: ArmEnvironment, cpu: str) -> list[str]:
    return [str(arm.folder / "qemu-aarch64"), "-cpu", cpu, "-L", str(arm.folder / "root")]


@pytest.mark.parametrize("cpu", CPUS)
def test_the_example_gives_the_bits_of_this_machine(cpu: str, folder: Path, arm: ArmEnvironment) -> None:
    if not load_library().backend().has_fma:
        pytest.skip("this machine has no fused multiply-add: its outputs are rounded differently")
    plan = residual_network()
    x = synthesize_input(plan.input_shape, 5)
    x.tofile(folder / "input.bin")
    done = subprocess.run(
        [*emulator(arm, cpu), "./example", "network.kerf", "input.bin", "output.bin"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "instruction set: neon, tuned for" in done.stdout
    expected = NativeNetwork(plan, samples.weights_of(plan), tune=False).run(x)
    assert (folder / "output.bin").read_bytes() == expected.tobytes()


@strips.needs_strips
def test_strips_give_the_bits_of_this_machine(folder: Path, arm: ArmEnvironment) -> None:
    """They are offered on AVX-512 only, but an image that was tuned there runs here, too."""
    plan = kernel_plan(strips.unstructured((13, 30), (3, 3), (11, 5)))
    x = synthesize_input(plan.input_shape, 5)
    x.tofile(folder / "in.bin")
    for index in (0, 9):
        with strips.only(index):
            network = NativeNetwork(plan, samples.weights_of(plan), isa=strips.ISAS[0], tune=False, exact=True)
        image = network.image()
        assert any(step.row_blocks for step in samples.steps(image))
        (folder / "strips.kerf").write_bytes(image)
        done = subprocess.run(
            [*emulator(arm, CPUS[0]), "./example", "strips.kerf", "in.bin", "out.bin"],
            cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (folder / "out.bin").read_bytes() == network.run(x).tobytes()
