"""An aarch64 Linux with Python in a folder, run by qemu's user mode: what the tests of the ARM path need.

Made from nothing in some 20 s, without root: qemu and the packages of an arm64 Debian come from the mirror that this
machine's own apt is configured for, unpacked and never installed; the Python packages are wheels from pip. Nothing on
the host changes. It shows that programs work on aarch64; it tells nothing about their speed there.

    python -m tests.arm.environment          make it, and print its folder
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The first release that shows an ARM guest the /proc/cpuinfo of the processor it plays; 7.2 shows the host's.
MIN_QEMU_VERSION = 10
#: A processor with NEON alone, as on a Raspberry Pi 4, and one with half precision and dot products.
CPUS = ("cortex-a72", "neoverse-n1")
#: The release that was seen to run under qemu; a board may have another.
_TFLITE = "ai-edge-litert==2.3.0"
_ROOT_PACKAGES = ("python3", "libstdc++6", "libgcc-s1")
#: Raised with a change of how things are put together, so that folders made before are not used any more.
_VERSION = 1
_GLIBC_TAGS = ("2_34", "2_31", "2_28", "2_27", "2_17")
_DOWNLOAD_TIMEOUT_S = 600.0
_PYTHON_WRAPPER = """#!/bin/sh
# The guest's sys.executable is this script (-0), so that its child processes are emulated as well.
here=${0%/*}/..
ulimit -c 0
exec "$here/qemu-aarch64" -cpu "${KERF_ARM_CPU:-cortex-a72}" -L "$here/root" -0 "$0" "$here/root/usr/bin/python3" "$@"
"""


class Unavailable(Exception):
    """This machine lacks something that the emulated environment is made from. The text names it."""


@dataclass(frozen=True, slots=True)
class ArmEnvironment:
    """A finished environment."""

    folder: Path

    @property
    def python(self) -> Path:
        """An aarch64 Python, to be started like any other program."""
        return self.folder / "bin" / "python3"

    @property
    def site_packages(self) -> Path:
        """Where the agent's dependencies lie."""
        return self.folder / "site-packages"

    @property
    def python_version(self) -> str:
        """Such as "3.11"."""
        (library,) = (self.folder / "root/usr/lib").glob("python3.*")
        return library.name.removeprefix("python")

    def install_wheel(self, wheel: Path, target: Path) -> None:
        """Unpack a wheel of Kerf for aarch64 into `target`, with its bytecode."""
        _call([*_pip_install(self.python_version), "--no-deps", "--no-index", f"--target={target}", str(wheel)])
        _compile_bytecode(self.python_version, self.python, (target,))

    def variables(self, cpu: str, *import_from: Path) -> dict[str, str]:
        """Environment variables of a program on `cpu` that imports from `import_from` and the dependencies.

        One thread each in numpy and BLAS: the host's cores are shared by all tests.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("KERF_", "PYTHON", "PYTEST", "COV_"))}
        return kept | {
            "KERF_ARM_CPU": cpu,
            "PYTHONPATH": os.pathsep.join(map(str, (*import_from, self.site_packages))),
            "PYTHONNOUSERSITE": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }


def arm_environment() -> ArmEnvironment:
    """The environment below $KERF_ARM_DIR (default: .venv/arm), made now unless it is there.

    A folder is named after what it is made from, and appears complete or not at all; two processes that ask at the same
    time share one. Raises `Unavailable`.
    """
    base = Path(os.environ.get("KERF_ARM_DIR") or ROOT / ".venv" / "arm").resolve()
    release = _debian_release()
    requirements = (*tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"], _TFLITE)
    recipe = repr((_VERSION, _ROOT_PACKAGES, _PYTHON_WRAPPER, requirements))
    target = base / f"{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not target.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        with (base / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir():
                _make(target, release, requirements)
    return ArmEnvironment(target)


def _make(target: Path, release: str, requirements: Sequence[str]) -> None:
    mirror = _mirror(release)
    with tempfile.TemporaryDirectory(prefix="making-", dir=target.parent) as name:
        work = Path(name)
        made = work / "environment"
        made.mkdir()
        _unpack_qemu(mirror, release, work / "apt-host", made / "qemu-aarch64")
        _unpack_root(mirror, release, work / "apt-arm64", made / "root")
        (made / "bin").mkdir()
        wrapper = made / "bin" / "python3"
        wrapper.write_text(_PYTHON_WRAPPER)
        wrapper.chmod(0o755)
        version = _call([str(wrapper), "-c", "import sys; print(*sys.version_info[:2], sep='.')"]).strip()
        _download([*_pip_install(version), f"--target={made / 'site-packages'}", *requirements], os.environ, work)
        _compile_bytecode(version, wrapper, (made / "root/usr/lib" / f"python{version}", made / "site-packages"))
        made.rename(target)


def _debian_release() -> str:
    """The code name of this machine's Debian. Raises `Unavailable` on another system."""
    if platform.machine() != "x86_64":
        raise Unavailable(f"qemu is fetched for x86-64 hosts only, and this is {platform.machine()}")
    fields = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    if fields.get("ID") != "debian" or not fields.get("VERSION_CODENAME"):
        raise Unavailable(f"the aarch64 system is unpacked from Debian packages, and this is {fields.get('ID')!r}")
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Unavailable(f"there is no {tool}")
    return fields["VERSION_CODENAME"]


def _mirror(release: str) -> str:
    """The mirror that apt of this machine gets `release` from."""
    printed = _call(["apt-get", "update", "--print-uris", "-o", "Debug::NoLocking=1"])
    found = re.search(rf"^'(.+)/dists/{release}/(?:In)?Release'", printed, re.MULTILINE)
    if found is None:
        raise Unavailable(f"apt is not configured for a mirror of Debian {release}")
    return found[1]


def _unpack_qemu(mirror: str, release: str, folder: Path, target: Path) -> None:
    """The one static binary, from the newest package: backports where they have it, else the release itself."""
    with _private_apt(folder, mirror, (release, f"{release}-backports"), "amd64") as environment:
        _download(["apt-get", "-qq", "-t", f"{release}-backports", "download", "qemu-user"], environment, folder)
        (package,) = folder.glob("qemu-user_*.deb")
        unpacked = folder / "unpacked"
        _call(["dpkg", "-x", str(package), str(unpacked)])
    (unpacked / "usr/bin/qemu-aarch64").rename(target)
    shutil.rmtree(folder)
    version = _call([str(target), "--version"])
    found = re.search(r"version (\d+)\.", version)
    if found is None or int(found[1]) < MIN_QEMU_VERSION:
        raise Unavailable(f"qemu {MIN_QEMU_VERSION} or newer is needed; {release} has: {version.splitlines()[0]}")


def _unpack_root(mirror: str, release: str, folder: Path, target: Path) -> None:
    """Python and the C++ library with all that they need, each package unpacked into one folder."""
    with _private_apt(folder, mirror, (release,), "arm64") as environment:
        _download(["apt-get", "-qq", "-y", "--download-only", "install", *_ROOT_PACKAGES], environment, folder)
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        _call(["dpkg", "-x", str(package), str(target)])
    shutil.rmtree(folder)


@contextmanager
def _private_apt(folder: Path, mirror: str, suites: Sequence[str], architecture: str) -> Iterator[Mapping[str, str]]:
    """Environment variables under which apt-get knows an empty machine of `architecture`, kept in `folder`."""
    for name in ("lists/partial", "cache/archives/partial", "state", "log"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not keyring.is_file():
        raise Unavailable(f"there is no {keyring}")
    lines = [f"deb [signed-by={keyring}] {mirror} {suite} main\n" for suite in suites]
    (folder / "sources.list").write_text("".join(lines))
    options = {
        "Dir::State": folder / "state",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Log": folder / "log",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
        "Debug::NoLocking": "1",
    }
    text = "".join(f'{name} "{value}";\n' for name, value in options.items())
    text += f'#clear APT::Architectures;\nAPT::Architectures {{ "{architecture}"; }};\n'
    (folder / "apt.conf").write_text(text)
    environment = {**os.environ, "APT_CONFIG": str(folder / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive"}
    _download(["apt-get", "-qq", "update"], environment, folder)
    yield environment


def _pip_install(version: str) -> list[str]:
    """This machine's pip, told to install for an aarch64 Python of `version`."""
    tags = (*(f"manylinux_{tag}_aarch64" for tag in _GLIBC_TAGS), "manylinux2014_aarch64")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"]
    command += ["--implementation=cp", f"--python-version={version}"]
    return command + [f"--platform={tag}" for tag in tags]


def _compile_bytecode(version: str, emulated: Path, folders: Sequence[Path]) -> None:
    """Saves each start of an emulated program 10 s. The host's Python does it where it is the same version."""
    is_same = version == f"{sys.version_info.major}.{sys.version_info.minor}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for folder in folders:
        command = [sys.executable if is_same else str(emulated), "-m", "compileall", "-q", "-x", "/(tests?|lib2to3)/"]
        # Its status says whether every file was compiled; some packages hold templates that are no Python.
        subprocess.run([*command, "."], cwd=folder, env=environment, capture_output=True, check=False)


def _download(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command[:4])} got nothing within {_DOWNLOAD_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command[:4])} failed, is there a network? {done.stderr.strip()[-400:]}")


def _call(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-1000:]}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(arm_environment().folder)
    except Unavailable as error:
        sys.exit(f"no aarch64 environment: {error}")
