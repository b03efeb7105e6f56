"""Builds bench/src/image_harness.cpp with the whole library under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from device_agent.native.build import SOURCE_DIR, backends_for, this_machine

SOURCE = Path(__file__).parent / "src" / "image_harness.cpp"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_FLAGS = (
    "-std=c++17",
    "-O1",
    "-g1",
    "-fno-omit-frame-pointer",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-Wno-psabi",
)
#: The harness has a C library, which the sanitizers watch.
_LEFT_OUT = ("backend.cpp", "memory.cpp", "arm32.cpp")


def build_harness(
    target: Path,
    compiler: Sequence[str],
    flags: Sequence[str] = SANITIZERS,
    kernel_flags: Sequence[str] = SANITIZERS,
    link_flags: Sequence[str] = SANITIZERS,
) -> None:
    """Compile into `target`, two files at a time; the kernels with `kernel_flags`, all else with `flags`.

    Raises `RuntimeError` with the compiler's words.
    """
    backends = backends_for(this_machine())
    names = " ".join(f"X({backend.name})" for backend in backends)
    common = [*compiler, *_FLAGS, f"-I{SOURCE_DIR}"]
    work = target.parent
    commands = {
        work / f"{backend.name}.o": [
            *common,
            *kernel_flags,
            *backend.flags,
            f"-DKERF_BACKEND={backend.name}",
            f"-DKERF_NUM_REGISTERS={backend.num_registers}",
            f"-DKERF_MAX_VECTOR_LENGTH={backend.max_vector_length}",
            "-c",
            str(SOURCE_DIR / "backend.cpp"),
        ]
        for backend in backends
    }
    for source in (*(path for path in SOURCE_DIR.glob("*.cpp") if path.name not in _LEFT_OUT), SOURCE):
        commands[work / f"{source.stem}.o"] = [*common, *flags, f"-DKERF_BACKENDS(X)={names}", "-c", str(source)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda item: _call([*item[1], "-o", str(item[0])]), commands.items()))
    _call([*compiler, *link_flags, *map(str, commands), "-o", str(target)])


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(["nice", *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
