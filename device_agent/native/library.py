"""Finds, builds and loads the shared library, and describes its C interface to ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.log import log_event
from device_agent.native.build import CompilerError, build_library, library_name
from device_agent.native.errors import NativeBuildError, NativeError

#: Logged before the library is compiled, which only happens where it did not come with the package.
COMPILING_EVENT = "compiling_kernels"
ABI_VERSION = 9
#: The vector lengths that a tile can have, in float32 elements.
VECTOR_LENGTHS = (16, 8, 4)
GROUP_SIZES = (4, 2, 1)
#: Scratch memory is there for this many threads.
MAX_THREADS = 16
TEAM_ALIGNMENT = 128


class Step(ctypes.Structure):
    """`KerfStep` of src/kerf_native.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "kind", "channels", "outputs", "input_h", "input_w", "input_row", "output_h", "output_w", "output_row",
            "kernel_h", "kernel_w", "stride", "padding", "positions", "num_phases", "num_groups", "group_size",
            "vector_length", "max_vectors", "block_tiles",
        )),
        *((name, ctypes.c_float) for name in ("lower", "upper", "scale")),
        ("scratch_size", ctypes.c_int32),
        ("max_parts", ctypes.c_int32),
        ("row_blocks", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("input", "second", "output", "scratch")),
        *((name, ctypes.c_int64) for name in ("input_plane", "second_plane", "output_plane")),
        *((name, ctypes.c_void_p) for name in (
            "mask", "bias", "phases", "group_channels", "group_starts", "offsets", "weights",
        )),
        *((name, ctypes.c_int32) for name in (
            "winograd_size", "winograd_rows", "winograd_outputs_in_lanes", "winograd_outputs", "winograd_tiles",
            "winograd_parts", "num_chunks", "chunk_channels", "row_vectors", "pack_rows", "pack_row", "pack_plane",
            "pack_parts", "num_copies",
        )),
        *((name, ctypes.c_void_p) for name in ("copies", "pack_mask")),
    )  # fmt: skip


class Region(ctypes.Structure):
    """`KerfRegion` of src/kerf_native.h, field by field."""

    _fields_ = (("address", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("is_writable", ctypes.c_int32))


class Shape(ctypes.Structure):
    """`KerfShape` of src/kerf.h."""

    _fields_ = (("channels", ctypes.c_int32), ("height", ctypes.c_int32), ("width", ctypes.c_int32))


class ImageInfo(ctypes.Structure):
    """`KerfImageInfo` of src/kerf.h."""

    _fields_ = (
        ("memory_bytes", ctypes.c_uint64),
        ("input", Shape),
        ("output", Shape),
        ("num_steps", ctypes.c_int32),
        ("failed_step", ctypes.c_int32),
        ("isa", ctypes.c_char * 16),
        ("name", ctypes.c_char * 64),
    )


class Kind:
    """`KerfKind` of src/kerf_native.h."""

    CONV = 0
    SPLIT = 1
    ELEMENTWISE = 2
    MAX_POOL = 3
    AVG_POOL = 4
    GLOBAL_AVG_POOL = 5
    DENSE_MATVEC = 6
    SPARSE_MATVEC = 7
    ZERO = 8
    DEPTHWISE = 9
    WINOGRAD = 10
    MULTIPLY = 11
    SIGMOID = 12
    SILU = 13
    HARDSIGMOID = 14
    HARDSWISH = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """One backend of the library. Outputs are bit-identical among all backends with FMA."""

    index: int
    name: str
    has_fma: bool
    is_supported: bool


class Library:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._dll = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeError(f"{path} cannot be loaded: {error}") from None
        _declare(self._dll)
        if self._dll.kerf_abi_version() != ABI_VERSION or self._dll.kerf_step_fields().decode() != _step_fields():
            raise NativeError(f"{path} has another interface than this version of Kerf: delete it to have it rebuilt")
        self.backends = tuple(
            BackendInfo(
                index=index,
                name=self._dll.kerf_backend_name(index).decode(),
                has_fma=bool(self._dll.kerf_backend_has_fma(index)),
                is_supported=bool(self._dll.kerf_backend_is_supported(index)),
            )
            for index in range(self._dll.kerf_num_backends())
        )
        #: kerf_run itself, for callers that prepare its arguments: see `check` for its result.
        self.run = self._dll.kerf_run
        self.image_check = self._dll.kerf_image_check
        self.image_checksum = self._dll.kerf_image_checksum
        self.network_init = self._dll.kerf_network_init
        self.network_input = self._dll.kerf_network_input
        self.network_output = self._dll.kerf_network_output
        self.network_run = self._dll.kerf_network_run

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of the binary, which is part of every measurement's provenance."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def compiler(self) -> str:
        """The version of the compiler that built it."""
        return str(self._dll.kerf_compiler().decode())

    def backend(self, isa: str | None = None) -> BackendInfo:
        """The backend called `isa`, or the fastest that this machine runs. Raises `NativeError`."""
        usable = [backend for backend in self.backends if backend.is_supported]
        if isa is None:
            return usable[0]
        for backend in usable:
            if backend.name == isa:
                return backend
        raise NativeError(f"no backend {isa!r} on this machine: it has {', '.join(b.name for b in usable)}")

    def time(self, backend: int, steps: int, num_steps: int, repeats: int, team: int = 0) -> int:
        """Wall time of `repeats` runs of the steps at the address `steps`, in ns. Raises `NativeError`.

        `team` is the address of a team of threads; without one, the caller's thread runs them alone.
        """
        return self._time(backend, steps, num_steps, repeats, team, time.CLOCK_MONOTONIC)

    def thread_cpu_time(self, backend: int, steps: int, num_steps: int, repeats: int) -> int:
        """CPU time of the calling thread for `repeats` runs without others, in ns: what other processes take does not
        count. Raises `NativeError`.
        """
        return self._time(backend, steps, num_steps, repeats, 0, time.CLOCK_THREAD_CPUTIME_ID)

    def _time(self, backend: int, steps: int, num_steps: int, repeats: int, team: int, clock_id: int) -> int:
        time_ns = ctypes.c_int64()
        result = self._dll.kerf_time(
            backend, steps, num_steps, repeats, team, _clock_gettime(), clock_id, ctypes.byref(time_ns)
        )
        self.check(result, num_steps)
        return time_ns.value

    def profile(self, backend: int, steps: int, num_steps: int, rounds: int, team: int = 0) -> NDArray[np.int64]:
        """Wall time of each step in each round, in ns (rounds, num_steps). Raises `NativeError`."""
        times_ns = np.zeros((rounds, num_steps), dtype=np.int64)
        result = self._dll.kerf_profile(
            backend, steps, num_steps, rounds, team, _clock_gettime(), time.CLOCK_MONOTONIC, times_ns.ctypes.data
        )
        self.check(result, num_steps)
        return times_ns

    def check_steps(self, steps: Sequence[Step], regions: ctypes.Array[Region]) -> None:
        """Raise `NativeError` for the first of `steps` that could touch memory outside of `regions`."""
        failed = ctypes.c_int32(-1)
        array = (Step * len(steps))(*steps)
        code = self._dll.kerf_check_steps(array, len(steps), regions, len(regions), ctypes.byref(failed))
        if code:
            kind = steps[failed.value].kind if failed.value >= 0 else None
            raise NativeError(f"step {failed.value} of {len(steps)}, kind {kind}: {self.error_message(code)}")

    def run_part(self, backend: int, step: int, part: int, parts: int) -> None:
        """Do share `part` of `parts` of the step at the address `step`. Raises `NativeError`."""
        self.check(self._dll.kerf_run_part(backend, step, part, parts), 1)

    def team_bytes(self, num_threads: int) -> int:
        """The memory of a team; 0 where there is no team of so many threads."""
        return int(self._dll.kerf_team_bytes(num_threads))

    def team_init(self, team: int, num_threads: int) -> None:
        """Prepare the memory at `team`, a multiple of `TEAM_ALIGNMENT`. Raises `NativeError`."""
        self.check(self._dll.kerf_team_init(team, num_threads), 0)

    def team_work(self, team: int, thread: int) -> None:
        """Be thread `thread` of a team until it is stopped. Raises `NativeError`."""
        self.check(self._dll.kerf_team_work(team, thread), 0)

    def team_stop(self, team: int) -> None:
        """Send the threads of a team back."""
        self._dll.kerf_team_stop(team)

    def check(self, result: int, num_steps: int) -> None:
        """Raise `NativeError` with the library's words unless `result`, that of a function for steps, is 0."""
        if result > 0:
            raise NativeError(f"step {result - 1} of {num_steps} was refused: {self.error_message(result)}")
        if result < 0:
            raise NativeError(self.error_message(result))

    def error_message(self, code: int) -> str:
        """What a result of the C interface means."""
        return str(self._dll.kerf_error_message(code).decode())

    def max_vectors(self, backend: BackendInfo, vector_length: int, group_size: int) -> int:
        """The widest tile of `backend`, in vectors; 0 where it has none of this vector length."""
        return int(self._dll.kerf_max_vectors(backend.index, vector_length, group_size))

    def max_winograd_tiles(self, backend: BackendInfo, outputs: int, outputs_in_lanes: bool) -> int:
        """The most tiles (outputs in lanes) or vectors of tiles in a product of `backend`; 0 where there is none."""
        return int(self._dll.kerf_max_winograd_tiles(backend.index, outputs, outputs_in_lanes))


@functools.cache
def load_library() -> Library:
    """The library from the package, from the user's cache, or built now. Raises `NativeBuildError`, `NativeError`."""
    name = library_name()
    folders = (Path(__file__).resolve().parent, cache_dir())
    for folder in folders:
        if (folder / name).is_file():
            return Library(folder / name)
    reasons = []
    # Minutes on a slow machine: whoever waits should know for what.
    log_event(logging.getLogger(__name__), logging.INFO, COMPILING_EVENT, library=name)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            build_library(folder / name)
        except CompilerError as error:
            raise NativeBuildError(str(error)) from None
        except OSError as error:
            reasons.append(f"{folder}: {error}")
            continue
        return Library(folder / name)
    raise NativeBuildError(f"no folder can hold the library: {'; '.join(reasons)}")


@functools.cache
def _clock_gettime() -> int:
    """The address of the C library's clock_gettime.

    The kernels have no clock, as they know no C library. Reading it from C costs a tenth of a call from Python.
    """
    clock_gettime = getattr(ctypes.CDLL(None), "clock_gettime")  # noqa: B009, not an attribute that mypy can know
    address = ctypes.cast(clock_gettime, ctypes.c_void_p).value
    assert address is not None
    return address


def cache_dir() -> Path:
    """The user's cache folder, which may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kerf"


def _step_fields() -> str:
    """`Step` as kerf_step_fields() describes it."""
    types = {ctypes.c_int32: "I", ctypes.c_float: "F", ctypes.c_int64: "L", ctypes.c_void_p: "P"}
    return "".join(f"{types[field[1]]} {field[0]}\n" for field in Step._fields_)


def _declare(dll: ctypes.CDLL) -> None:
    int32, uint64, pointer = ctypes.c_int32, ctypes.c_uint64, ctypes.c_void_p
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "kerf_abi_version": (int32, ()),
        "kerf_step_fields": (ctypes.c_char_p, ()),
        "kerf_check_steps": (int32, (pointer, int32, pointer, int32, pointer)),
        "kerf_image_check": (int32, (pointer, uint64, pointer)),
        "kerf_image_checksum": (uint64, (pointer, uint64)),
        "kerf_network_init": (int32, (pointer, uint64, pointer, uint64, int32, pointer)),
        "kerf_network_input": (pointer, (pointer,)),
        "kerf_network_output": (pointer, (pointer,)),
        "kerf_network_run": (int32, (pointer,)),
        "kerf_network_run_on_team": (int32, (pointer, pointer)),
        "kerf_compiler": (ctypes.c_char_p, ()),
        "kerf_num_backends": (int32, ()),
        "kerf_backend_name": (ctypes.c_char_p, (int32,)),
        "kerf_backend_has_fma": (int32, (int32,)),
        "kerf_backend_is_supported": (int32, (int32,)),
        "kerf_max_vectors": (int32, (int32, int32, int32)),
        "kerf_max_winograd_tiles": (int32, (int32, int32, int32)),
        "kerf_run_part": (int32, (int32, pointer, int32, int32)),
        "kerf_run": (int32, (int32, pointer, int32, pointer)),
        "kerf_time": (int32, (int32, pointer, int32, int32, pointer, pointer, int32, pointer)),
        "kerf_profile": (int32, (int32, pointer, int32, int32, pointer, pointer, int32, pointer)),
        "kerf_team_bytes": (ctypes.c_int64, (int32,)),
        "kerf_team_init": (int32, (pointer, int32)),
        "kerf_team_work": (int32, (pointer, int32)),
        "kerf_team_stop": (None, (pointer,)),
        "kerf_error_message": (ctypes.c_char_p, (int32,)),
    }
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(dll, name)
        except AttributeError:
            raise NativeError(f"the library has no function {name}: delete it to have it rebuilt") from None
        function.restype = result
        function.argtypes = arguments
