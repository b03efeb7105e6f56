"""The agent as a board would have it: a folder to import it from, with the native library for aarch64 in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from device_agent.native import build
from tests.arm.environment import ROOT, ArmEnvironment, Unavailable

_TARGET = ("-target", "aarch64-linux-gnu.2.17")


def installed_agent(environment: ArmEnvironment) -> Path:
    """The folder with `device_agent` for `environment`, made now unless it is there. Raises `Unavailable`."""
    digest = hashlib.sha256()
    sources = sorted((ROOT / "device_agent").rglob("*.py"))
    for path in sources:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    digest.update(build.library_name("aarch64").encode())
    base = environment.folder / "agents"
    target = base / digest.hexdigest()[:16]
    base.mkdir(exist_ok=True)
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            library = base / build.library_name("aarch64")
            if not library.is_file():
                _cross_compile(library)
            with tempfile.TemporaryDirectory(prefix="making-", dir=base) as name:
                made = Path(name) / "agent"
                for path in sources:
                    copy = made / path.relative_to(ROOT)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, copy)
                shutil.copytree(build.SOURCE_DIR, made / "device_agent/native/src")
                shutil.copy2(library, made / "device_agent/native" / library.name)
                made.rename(target)
    return target


def _cross_compile(target: Path) -> None:
    try:
        import ziglang  # noqa: F401
    except ImportError:
        raise Unavailable("cross-compiling needs the package ziglang: pip install ziglang") from None
    compiler = [sys.executable, "-m", "ziglang", "c++", *_TARGET]
    (backend,) = build.backends_for("aarch64")
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        work = Path(name)
        defines = (
            f"-DKERF_BACKEND={backend.name}",
            f"-DKERF_NUM_REGISTERS={backend.num_registers}",
            f"-DKERF_MAX_VECTOR_LENGTH={backend.max_vector_length}",
        )
        units = {"backend": defines, "dispatch": (f"-DKERF_BACKENDS(X)=X({backend.name})",)}
        for unit, options in units.items():
            source = str(build.SOURCE_DIR / f"{unit}.cpp")
            _call([*compiler, *build._FLAGS, *options, "-c", source, "-o", str(work / f"{unit}.o")])
        objects = [str(work / f"{unit}.o") for unit in units]
        _call([*compiler, "-shared", "-Wl,-s", *objects, "-o", str(work / target.name)])
        (work / target.name).replace(target)


def _call(command: list[str]) -> None:
    subprocess.run(["nice", *command], check=True, env=os.environ)
