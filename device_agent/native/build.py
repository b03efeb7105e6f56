"""Compiles the kernels into one shared library that holds a backend for each instruction set.

Standard library only: hatch_build.py loads this file by its path at install time, when nothing is installed yet.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCE_DIR = Path(__file__).resolve().parent / "src"
COMPILE_TIMEOUT_S = 300.0

#: No -ffast-math: results must not depend on the compiler's mood. Contraction into multiply-adds is asked for.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-Wno-psabi",
)
_LINK_FLAGS = ("-shared", "-Wl,--as-needed", "-Wl,-s")


class CompilerError(RuntimeError):
    """There is no compiler, or it failed. The text holds its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One instruction set that backend.cpp is compiled for."""

    name: str
    num_registers: int
    max_vector_length: int
    flags: tuple[str, ...] = ()


_X86_BACKENDS = (
    Backend(
        name="avx512",
        num_registers=32,
        max_vector_length=16,
        flags=("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma", "-mprefer-vector-width=512"),
    ),
    Backend(name="avx2", num_registers=16, max_vector_length=8, flags=("-mavx2", "-mfma")),
    Backend(name="sse2", num_registers=16, max_vector_length=4),
)
_ARM64_BACKENDS = (Backend(name="neon", num_registers=32, max_vector_length=4),)
_OTHER_BACKENDS = (Backend(name="baseline", num_registers=16, max_vector_length=4),)


def backends_for(machine: str) -> tuple[Backend, ...]:
    """The backends compiled for `machine` (as `platform.machine()` names it), fastest first."""
    if machine.lower() in ("x86_64", "amd64"):
        return _X86_BACKENDS
    if machine.lower() in ("aarch64", "arm64"):
        return _ARM64_BACKENDS
    return _OTHER_BACKENDS


def library_name(machine: str | None = None) -> str:
    """The file name of the library, with a hash over all that it is made from except the compiler's version."""
    machine = machine or platform.machine()
    digest = hashlib.sha256()
    for path in sorted(SOURCE_DIR.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    recipe = (machine, _FLAGS, _LINK_FLAGS, backends_for(machine), os.environ.get("CXX", ""))
    digest.update(repr(recipe).encode())
    return f"libkerf_native-{digest.hexdigest()[:16]}.so"


def find_compiler() -> str | None:
    """The path of a C++ compiler: $CXX if set, else the first of c++, g++ and clang++ on the path."""
    named = os.environ.get("CXX")
    for name in (named,) if named else ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path is not None:
            return path
    return None


def build_library(target: Path) -> None:
    """Compile into `target`, which appears complete or not at all. Raises `CompilerError`."""
    compiler = find_compiler()
    if compiler is None:
        raise CompilerError(
            "no C++ compiler: none of $CXX, c++, g++, clang++ was found. Install one (apt install g++, "
            "pkg install clang), or install a wheel that holds the library"
        )
    backends = backends_for(platform.machine())
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kerf-build-", dir=target.parent) as folder:
        work = Path(folder)
        with ThreadPoolExecutor(max_workers=max(1, min(len(backends), os.cpu_count() or 1))) as pool:
            jobs = [pool.submit(_compile_backend, compiler, backend, work) for backend in backends]
            objects = [job.result() for job in jobs]
        names = " ".join(f"X({backend.name})" for backend in backends)
        dispatch = work / "dispatch.o"
        _call([compiler, *_FLAGS, f"-DKERF_BACKENDS(X)={names}", "-c", str(SOURCE_DIR / "dispatch.cpp"),
               "-o", str(dispatch)])  # fmt: skip
        library = work / target.name
        _call([compiler, *_LINK_FLAGS, *map(str, objects), str(dispatch), "-o", str(library)])
        # A rename replaces the file at once, so that two processes that build at the same time do no harm.
        library.replace(target)


def _compile_backend(compiler: str, backend: Backend, work: Path) -> Path:
    target = work / f"{backend.name}.o"
    _call(
        [
            compiler,
            *_FLAGS,
            *backend.flags,
            f"-DKERF_BACKEND={backend.name}",
            f"-DKERF_NUM_REGISTERS={backend.num_registers}",
            f"-DKERF_MAX_VECTOR_LENGTH={backend.max_vector_length}",
            "-c",
            str(SOURCE_DIR / "backend.cpp"),
            "-o",
            str(target),
        ]
    )
    return target


def _call(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{command[0]} did not run: {error}") from None
    if done.returncode != 0:
        raise CompilerError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-4000:]}")
