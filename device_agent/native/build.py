"""Compiles the kernels into one shared library that holds a backend for each instruction set.

The library needs nothing: no other library, no symbol from outside, no thread-local storage. So one file loads under
glibc, musl and bionic, and which compiler or C library built it does not matter.

Standard library only: hatch_build.py loads this file by its path at install time, when nothing is installed yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

SOURCE_DIR = Path(__file__).resolve().parent / "src"
#: For one file. On a small board, or a machine that is busy with much else, it takes many minutes.
COMPILE_TIMEOUT_S = 3600.0
_POLL_INTERVAL_S = 0.02

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
    # Without a C library: nothing may be called that the sources do not define.
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-threadsafe-statics",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
)
#: Undefined symbols are an error, and own ones are never replaced by those of others. Newer phones have pages of 16 KB;
#: older linkers want the other hash table.
_LINK_FLAGS = (
    "-shared",
    "-nostdlib",
    # The library calls its own functions directly, and not those of the same name elsewhere in the process.
    "-Wl,-Bsymbolic",
    "-Wl,-z,defs",
    "-Wl,-z,now",
    "-Wl,-Bsymbolic",
    "-Wl,-z,max-page-size=16384",
    "-Wl,--hash-style=both",
    "-Wl,-s",
)
#: GCC's atomic operations on ARM would else be calls into its run-time library.
_MACHINE_FLAGS = {"aarch64": ("-mno-outline-atomics",)}


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
#: GCC uses NEON for float32 only when told that denormals do not matter, since the unit flushes them to zero. So this
#: backend does not promise the bits of the others.
_ARM32_BACKENDS = (
    Backend(
        name="neon",
        num_registers=16,
        max_vector_length=4,
        flags=("-funsafe-math-optimizations",),
    ),
)
_OTHER_BACKENDS = (Backend(name="baseline", num_registers=16, max_vector_length=4),)

_BACKENDS = {"x86_64": _X86_BACKENDS, "aarch64": _ARM64_BACKENDS, "armv7l": _ARM32_BACKENDS}
_MACHINE_ALIASES = {"amd64": "x86_64", "arm64": "aarch64", "armv8l": "armv7l"}
#: The processor to compile for, where a compiler's default is older than what runs the backend. Not part of the
#: backends, since zig has its own names for processors.
_PROCESSOR_FLAGS = {"armv7l": ("-mcpu=cortex-a7", "-mfpu=neon-vfpv4", "-mfloat-abi=hard")}
#: What zig calls the machines that wheels are made for. The libc in the name is never linked.
_ZIG_TARGETS = {
    "x86_64": ("-target", "x86_64-linux-gnu", "-mcpu=x86_64"),
    "aarch64": ("-target", "aarch64-linux-gnu", "-mcpu=generic"),
    "armv7l": ("-target", "arm-linux-gnueabihf", "-mcpu=cortex_a7"),
}


def this_machine() -> str:
    """The machine that this process runs on, as `platform.machine()` names it, one name for each.

    A 32-bit Python on a 64-bit kernel needs a 32-bit library.
    """
    machine = platform.machine().lower()
    machine = _MACHINE_ALIASES.get(machine, machine)
    if struct.calcsize("P") == 4:
        machine = {"aarch64": "armv7l", "x86_64": "i686"}.get(machine, machine)
    return machine


def backends_for(machine: str) -> tuple[Backend, ...]:
    """The backends compiled for `machine`, fastest first."""
    return _BACKENDS.get(machine, _OTHER_BACKENDS)


def library_name(machine: str | None = None) -> str:
    """The file name of the library, with a hash over its sources and how it is made.

    The compiler is no part of it, so that a machine without one finds the library that another machine built for it.
    """
    machine = machine or this_machine()
    digest = hashlib.sha256()
    for path in sorted(SOURCE_DIR.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    recipe = (machine, _FLAGS, _LINK_FLAGS, _MACHINE_FLAGS.get(machine, ()), backends_for(machine))
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


def cross_compiler(machine: str) -> tuple[str, ...]:
    """The command that compiles for `machine`, whatever machine this is. Raises `CompilerError`.

    For its own machine this is $CXX or g++ where it is there: its kernels were up to 18 % faster than those of zig.
    For all others it is zig, from the PyPI package ziglang.
    """
    if machine == this_machine():
        path = shutil.which(os.environ.get("CXX") or "g++")
        if path is not None:
            return (path, *_PROCESSOR_FLAGS.get(machine, ()))
    return zig_compiler(machine)


def zig_compiler(machine: str) -> tuple[str, ...]:
    """The command of the PyPI package ziglang that compiles for `machine`. Raises `CompilerError`."""
    if machine not in _ZIG_TARGETS:
        raise CompilerError(f"no cross-compilation for {machine!r}: choose one of {', '.join(_ZIG_TARGETS)}")
    if importlib.util.find_spec("ziglang") is None:
        raise CompilerError(f"nothing here compiles for {machine}: pip install 'kerf[wheels]', which brings ziglang")
    # Not `zig c++`, which begins by building a C++ library for minutes.
    return (sys.executable, "-m", "ziglang", "cc", *_ZIG_TARGETS[machine])


def build_library(target: Path, machine: str | None = None, compiler: Sequence[str] | None = None) -> None:
    """Compile into `target`, which appears complete or not at all. Raises `CompilerError`.

    `compiler` is a command that compiles for `machine`; without them, this machine's compiler for this machine.
    """
    machine = machine or this_machine()
    if compiler is None:
        path = find_compiler()
        if path is None:
            raise CompilerError(
                "no C++ compiler: none of $CXX, c++, g++, clang++ was found. Install one (apt install g++, "
                "pkg install clang), or install a wheel that holds the library"
            )
        compiler = (path, *_PROCESSOR_FLAGS.get(machine, ()))
    backends = backends_for(machine)
    names = " ".join(f"X({backend.name})" for backend in backends)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kerf-build-", dir=target.parent) as folder:
        work = Path(folder)
        common = [*compiler, *_FLAGS, *_MACHINE_FLAGS.get(machine, ())]
        shared = [*common, *backends[-1].flags, f"-DKERF_BACKENDS(X)={names}"]
        commands = {
            work / f"{backend.name}.o": [*common, *_backend_flags(backend), "-c", str(SOURCE_DIR / "backend.cpp")]
            for backend in backends
        }
        for source in sorted(SOURCE_DIR.glob("*.cpp")):
            if source.name != "backend.cpp":
                commands[work / f"shared-{source.stem}.o"] = [*shared, "-c", str(source)]
        _run_all([[*command, "-o", str(path)] for path, command in commands.items()], work)
        library = work / target.name
        _run_all([[*compiler, *backends[-1].flags, *_LINK_FLAGS, *map(str, commands), "-o", str(library)]], work)
        # A rename replaces the file at once, so that two processes that build at the same time do no harm.
        library.replace(target)


def _backend_flags(backend: Backend) -> tuple[str, ...]:
    return (
        *backend.flags,
        f"-DKERF_BACKEND={backend.name}",
        f"-DKERF_NUM_REGISTERS={backend.num_registers}",
        f"-DKERF_MAX_VECTOR_LENGTH={backend.max_vector_length}",
    )


def _run_all(commands: Sequence[Sequence[str]], work: Path) -> None:
    """Run the commands to their ends, as many at a time as there are cores. Raises `CompilerError` where one fails.

    What they print is kept in the folder `work` meanwhile.

    None is left running, also where an exception such as KeyboardInterrupt ends the wait. One thread starts and polls
    them: an interruption that meets the locks of a thread pool can leave one locked, and then nothing ever ends.
    """
    waiting = list(reversed(commands))
    running: list[_Call] = []
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                with _interruptions_wait():
                    running.append(_Call(waiting.pop(), work))
            time.sleep(_POLL_INTERVAL_S)
            running = [call for call in running if not call.has_ended()]
    finally:
        for call in running:
            call.kill()


class _Call:
    """A compiler that runs, in a process group of its own: a killed driver would leave its compiler behind."""

    def __init__(self, command: Sequence[str], work: Path) -> None:
        """Start it. Raises `CompilerError`."""
        self._command = command
        # A file, and no pipe: that fills up where nobody reads.
        self._errors = tempfile.TemporaryFile(dir=work)  # noqa: SIM115
        self._give_up_at_s = time.monotonic() + COMPILE_TIMEOUT_S
        try:
            self._process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=self._errors, start_new_session=True
            )
        except OSError as error:
            self._errors.close()
            raise CompilerError(f"{command[0]} did not run: {error}") from None

    def has_ended(self) -> bool:
        """Whether it has ended well. Raises `CompilerError` where it failed or takes too long."""
        if self._process.poll() is None:
            if time.monotonic() > self._give_up_at_s:
                raise CompilerError(f"{self._command[0]} did not end within {COMPILE_TIMEOUT_S:.0f} s")
            return False
        if self._process.returncode != 0:
            self._errors.seek(0)
            errors = self._errors.read().decode(errors="replace")
            raise CompilerError(f"{' '.join(self._command)} failed:\n{errors.strip()[-4000:]}")
        self._errors.close()
        return True

    def kill(self) -> None:
        """End it with all that it started, and wait until it has ended."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._errors.close()


@contextlib.contextmanager
def _interruptions_wait() -> Iterator[None]:
    """Ctrl-C is heeded at the end of the block: a process would else be started that nobody knows of.

    Masking the signal would not do: where the process has other threads, one of them takes it.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        # Python interrupts its main thread only, and nothing that ignores the signal.
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])
