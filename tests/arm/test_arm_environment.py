"""Where the emulated environment cannot be made, the reason names what is missing; where it is, it is aarch64."""

from __future__ import annotations

import platform
import shutil
import subprocess

import pytest

from tests.arm import environment
from tests.arm.environment import CPUS, ArmEnvironment, Unavailable

pytestmark = pytest.mark.xdist_group("arm")


def on(monkeypatch: pytest.MonkeyPatch, *, machine: str = "x86_64", system: str = "debian") -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": system, "VERSION_CODENAME": "bookworm"})


def test_another_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, machine="riscv64")
    with pytest.raises(Unavailable, match="riscv64"):
        environment.arm_environment()


def test_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, system="fedora")
    with pytest.raises(Unavailable, match="fedora"):
        environment.arm_environment()


@pytest.mark.parametrize("tool", ["apt-get", "dpkg"])
def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    on(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else f"/usr/bin/{name}")
    with pytest.raises(Unavailable, match=f"no {tool}"):
        environment.arm_environment()


def test_a_failed_download_quotes_the_tool() -> None:
    with pytest.raises(Unavailable, match="No such file or directory"):
        environment._download(["ls", "/no/such/mirror"], {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}, environment.ROOT)


@pytest.mark.parametrize("cpu", CPUS)
def test_child_processes_are_emulated_as_well(arm: ArmEnvironment, cpu: str) -> None:
    inner = "import platform; print(platform.machine(), 'asimddp' in open('/proc/cpuinfo').read())"
    program = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {inner!r}]))"
    done = subprocess.run(
        [arm.python, "-c", program], env=arm.variables(cpu), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["aarch64", str(cpu == "neoverse-n1")]
