"""The exported folder: compiled with this machine's compiler, as its README says, it computes the executor's bits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from device_agent.cli import main
from device_agent.contracts import NetworkPlan
from device_agent.formats.packed import write_packed
from device_agent.native import build
from device_agent.native.deployment import write_deployment
from device_agent.native.deployment.amalgamation import amalgamated_source
from device_agent.native.executor import NativeNetwork
from device_agent.native.image import check_image
from device_agent.native.library import load_library
from device_agent.synthesis import synthesize_input
from tests.unit.device_agent.native import image_samples as samples
from tests.unit.device_agent.native.native_samples import winograd_first
from tests.unit.device_agent.native.test_native_network import residual_network

#: All tests of the compiled folder in one process: the compilation takes seconds.
pytestmark = pytest.mark.xdist_group("deployment")

ROOT = Path(__file__).parents[4]
BACKENDS = [backend for backend in load_library().backends if backend.is_supported]

#: Runs an image on the backend of a number and writes the output.
ON_BACKEND = r"""
#include <stdio.h>
#include <stdlib.h>
#include "kerf.h"
int main(int argc, char **argv) {
  static _Alignas(64) char image[1 << 20], memory[1 << 22];
  KerfNetwork *network;
  KerfImageInfo info;
  FILE *file = fopen(argv[1], "rb");
  size_t size = fread(image, 1, sizeof image, file);
  int32_t code = kerf_image_check(image, size, &info);
  if (!code) code = kerf_network_init(memory, sizeof memory, image, size, atoi(argv[2]), &network);
  if (code) return puts(kerf_error_message(code)), 1;
  file = fopen(argv[3], "rb");
  fread(kerf_network_input(network), 4, (size_t)info.input.channels * info.input.height * info.input.width, file);
  if (kerf_network_run(network)) return 2;
  file = fopen(argv[4], "wb");
  fwrite(kerf_network_output(network), 4, (size_t)info.output.channels * info.output.height * info.output.width, file);
  printf("%s\n", kerf_backend_name(kerf_network_backend(network)));
  return argc - argc;
}
"""


def deploy(plan: NetworkPlan, folder: Path) -> NativeNetwork:
    return write_deployment(write_packed(plan, samples.weights_of(plan)), folder, tune=False)


#: In a third of the time of -O3, as the README has it. GCC contracts into multiply-adds with the second alone.
QUICKLY = ("-O1", "-fexpensive-optimizations")


@pytest.fixture(scope="module", params=[QUICKLY, pytest.param(("-O3",), marks=pytest.mark.slow)], ids=["-O1", "-O3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployed network, and its compiled example."""
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler here")
    folder = tmp_path_factory.mktemp("deployed")
    deploy(residual_network(), folder)
    compiler = os.environ.get("CC", "cc")
    command = [compiler, *request.param, "-Wno-psabi", "example.c", "kerf_runtime.cpp", "-o", "example"]
    done = subprocess.run([*command, "-save-temps=obj"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == "", "the compiler has something to say to every user"
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["./example", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_example_gives_the_bits_of_the_executor(folder: Path) -> None:
    plan = residual_network()
    network = NativeNetwork(plan, samples.weights_of(plan), tune=False)
    x = synthesize_input(plan.input_shape, 5)
    x.tofile(folder / "input.bin")
    expected = network.run(x)
    done = run(folder, "network.kerf", "input.bin", "output.bin")
    assert done.returncode == 0, done.stderr
    assert (folder / "output.bin").read_bytes() == expected.tobytes()
    assert f"instruction set: {network.isa}, tuned for {network.isa}" in done.stdout
    assert f"top: {expected.argmax()} (" in done.stdout
    shortest, median = re.findall(r"(?:shortest|median) of 100 runs: (\d+\.\d{4}) ms", done.stdout)
    assert float(shortest) <= float(median)
    zeros = network.run(np.zeros_like(x))
    assert f"top: {zeros.argmax()} (" in run(folder, "network.kerf").stdout


def test_the_example_says_what_is_wrong(folder: Path) -> None:
    image = bytearray((folder / "network.kerf").read_bytes())
    image[-100] ^= 1
    (folder / "damaged.kerf").write_bytes(image)
    (folder / "short.bin").write_bytes(b"1234")
    for arguments, reason in (
        (("damaged.kerf",), "checksum is wrong"),
        (("example.c",), "no program image"),
        (("none.kerf",), "No such file"),
        (("network.kerf", "short.bin"), "4 bytes, but the input 3 x 32 x 32 has 12288"),
        ((), "usage"),
    ):
        done = run(folder, *arguments)
        assert done.returncode in (1, 2)
        assert reason in done.stderr


def test_every_instruction_set_of_the_single_file_gives_the_executors_bits(folder: Path, tmp_path: Path) -> None:
    """Each was compiled by pragmas in one compilation: a kernel of the wrong set would show in bits, or crash."""
    (folder / "on_backend.c").write_text(ON_BACKEND)
    # What the fixture compiled, as compiling it takes long.
    (runtime,) = folder.glob("*kerf_runtime.o")
    command = [os.environ.get("CC", "cc"), "-O3", "-w", "on_backend.c", runtime.name, "-o", "on_backend"]
    subprocess.run(command, cwd=folder, check=True)
    for plan in (residual_network(), samples.every_kind()):
        x = synthesize_input(plan.input_shape, 6)
        x.tofile(tmp_path / "input.bin")
        (tmp_path / "network.kerf").write_bytes(samples.image_of(plan))
        for backend in BACKENDS:
            arguments = ["network.kerf", str(backend.index), "input.bin", "output.bin"]
            done = subprocess.run(
                [folder / "on_backend", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.stdout == f"{backend.name}\n"
            with winograd_first():
                network = NativeNetwork(plan, samples.weights_of(plan), isa=backend.name, tune=False)
            expected = network.run(x)
            if backend.has_fma:
                assert (tmp_path / "output.bin").read_bytes() == expected.tobytes()
            else:
                np.testing.assert_allclose(
                    np.fromfile(tmp_path / "output.bin", np.float32), expected.ravel(), rtol=1e-4, atol=1e-5
                )


def test_the_python_snippet_runs(folder: Path) -> None:
    plan = residual_network()
    x = synthesize_input(plan.input_shape, 5)
    np.save(folder / "input.npy", x)
    done = subprocess.run(
        [sys.executable, "run.py", "input.npy"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = NativeNetwork(plan, samples.weights_of(plan), tune=False).run(x)
    assert f"top: {expected.argmax()} (" in done.stdout


def test_the_folder_is_complete_and_the_image_comes_last(tmp_path: Path) -> None:
    plan = samples.every_kind()
    packed = write_packed(plan, samples.weights_of(plan))
    write_deployment(packed, tmp_path / "new", tune=False)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "network.kerf", "network.kerfnet", "network.tflite", "kerf.h", "kerf_runtime.cpp", "example.c", "run.py",
        "README.txt",
    }  # fmt: skip
    assert (tmp_path / "new" / "network.kerfnet").read_bytes() == packed
    assert check_image((tmp_path / "new" / "network.kerf").read_bytes()).name == b"every kind"


def test_every_source_is_in_the_single_file_once() -> None:
    text = amalgamated_source()
    for path in build.SOURCE_DIR.glob("*.cpp"):
        expected = 0 if path.name in ("memory.cpp", "arm32.cpp") else 1
        assert text.count(f"// --- {path.name}\n") == expected, path.name
    assert text.count("// --- conv.h\n") == 1


def test_the_command_of_the_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = samples.every_kind()
    (tmp_path / "network.kerfnet").write_bytes(write_packed(plan, samples.weights_of(plan)))
    command = ["deploy", str(tmp_path / "network.kerfnet"), "--output", str(tmp_path / "out"), "--no-tune"]
    assert main(command) == 0
    assert (tmp_path / "out" / "network.kerf").is_file()
    assert f'"isa": "{BACKENDS[0].name}"' in capsys.readouterr().out
    for bad, reason in (
        (["deploy", str(tmp_path / "none"), "--output", "x"], "cannot read"),
        (["deploy", str(tmp_path / "out" / "example.c"), "--output", "x"], "does not fit a file"),
        ([*command, "--isa", "avx1024"], "no backend 'avx1024'"),
        (["deploy", command[1], "--output", str(tmp_path / "network.kerfnet")], "cannot write"),
    ):
        assert main(bad) == 1
        assert reason in capsys.readouterr().err
