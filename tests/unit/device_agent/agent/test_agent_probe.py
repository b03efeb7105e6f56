"""Device descriptions from file trees: a virtual machine (recorded), a board and a phone (in their documented form)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from device_agent.contracts import CpuCluster, profile_id
from device_agent.probe import probe_device

TREES = Path(__file__).resolve().parents[3] / "fixtures/sysfs"

PHONE_PROPERTIES = {
    "ro.build.version.release": "14",
    "ro.build.fingerprint": "maker/phone/phone:14/UQ1A/1:user/release-keys",
    "ro.soc.manufacturer": "QTI",
    "ro.soc.model": "SM8350",
}


def no_property(name: str) -> str:
    return ""


def test_a_board_with_two_kinds_of_cores() -> None:
    profile = probe_device(
        TREES / "rk3588-board", machine="aarch64", kernel_release="6.1.75", read_property=no_property
    )
    assert profile.cpu_model == "Radxa ROCK 5B"
    assert [(c.model, c.core_ids) for c in profile.clusters[:1]] == [("Cortex-A55", (0, 1, 2, 3))]
    assert {c.model for c in profile.clusters} == {"Cortex-A55", "Cortex-A76"}
    assert sorted(core for c in profile.clusters for core in c.core_ids) == list(range(8))
    assert all(c.max_frequency_hz is not None and c.max_frequency_hz > 10**9 for c in profile.clusters)
    assert "asimddp" in profile.isa_features
    assert profile.governors == ("conservative", "ondemand", "performance", "powersave", "schedutil", "userspace")
    assert profile.memory_bytes == 8135360 * 1024
    assert profile.os_build == "Debian GNU/Linux 12 (bookworm) (6.1.75)"
    assert (profile.machine, profile.system) == ("aarch64", "Linux")
    assert not profile.emulated


def test_a_phone_with_a_core_that_is_switched_off() -> None:
    profile = probe_device(
        TREES / "android-phone",
        machine="aarch64",
        kernel_release="5.4.210",
        read_property=lambda name: PHONE_PROPERTIES.get(name, ""),
    )
    assert profile.system == "Android"
    assert profile.cpu_model == "QTI SM8350"
    assert profile.os_build == "maker/phone/phone:14/UQ1A/1:user/release-keys (5.4.210)"
    assert [c.model for c in profile.clusters] == ["Cortex-A55", "Cortex-A78", "unknown"]
    assert profile.clusters[-1].core_ids == (7,)
    assert profile.clusters[-1].max_frequency_hz is not None


def test_a_virtual_machine_without_frequencies() -> None:
    profile = probe_device(
        TREES / "x86-virtual-machine", machine="x86_64", kernel_release="6.18", read_property=no_property
    )
    model = "Intel(R) Xeon(R) Processor"
    assert profile.cpu_model == model
    assert profile.clusters == (CpuCluster(model=model, core_ids=(0, 1), max_frequency_hz=None),)
    assert "avx512f" in profile.isa_features
    assert "hypervisor" not in profile.isa_features
    assert profile.governors == ()


def test_an_arm_core_is_named_by_its_number_not_by_its_architecture(tmp_path: Path) -> None:
    """As 32-bit systems on a 64-bit kernel show it, and qemu."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n"
        "CPU part\t: 0xd0c\n"
    )
    profile = probe_device(tmp_path, machine="aarch64", kernel_release="6.1", read_property=no_property)
    assert profile.clusters == (CpuCluster(model="Neoverse-N1", core_ids=(0,)),)
    assert profile.cpu_model == "Neoverse-N1"


def test_nothing_readable_is_an_empty_description_not_an_error(tmp_path: Path) -> None:
    profile = probe_device(tmp_path, machine="riscv64", kernel_release="6.1", read_property=no_property)
    assert profile.cpu_model == "unknown"
    assert profile.clusters == ()
    assert profile.memory_bytes == 0
    assert profile.os_build == "Linux (6.1)"


def test_the_same_device_has_the_same_profile() -> None:
    def probe(simulated: bool = False) -> str:
        root = TREES / "rk3588-board"
        return profile_id(
            probe_device(root, machine="aarch64", kernel_release="6", read_property=no_property, simulated=simulated)
        )

    assert probe() == probe()
    assert probe() != probe(simulated=True)


def test_a_sign_of_emulation_and_the_setting_mark_a_device(caplog: pytest.LogCaptureFixture) -> None:
    def probe(tree: str, **settings: bool) -> bool:
        return probe_device(
            TREES / tree, machine="aarch64", kernel_release="6", read_property=no_property, **settings
        ).emulated

    assert probe("rk3588-board", emulated=True)
    assert not probe("rk3588-board")
    assert not caplog.records
    assert probe("x86-virtual-machine")
    assert [record.getMessage() for record in caplog.records] == ["emulated_device"]


def test_this_machine_can_be_described() -> None:
    profile = probe_device()
    assert profile.machine
    assert profile.memory_bytes > 0
    assert profile.clusters


def test_the_agents_own_process_imports_no_numpy() -> None:
    program = (
        "import sys, device_agent.cli, device_agent.service\n"
        "bad = {'numpy', 'ai_edge_litert', 'tflite_runtime', 'torch', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    root = Path(__file__).resolve().parents[4]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
