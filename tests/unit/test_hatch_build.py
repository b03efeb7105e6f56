"""The build hook on a copy of the sources: with a compiler, without one, and told to skip."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from device_agent.native import build

pytest.importorskip("hatchling", reason="hatchling builds the package; pip fetches it for that only")

ROOT = Path(__file__).resolve().parents[2]


class RecordingApp:
    """What hatchling hands to a hook for its messages."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    native = tmp_path / "device_agent" / "native"
    shutil.copytree(build.SOURCE_DIR, native / "src")
    shutil.copy(ROOT / "device_agent" / "native" / "build.py", native)
    return tmp_path


def load_hook_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kerf_hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_hook(root: Path, version: str = "standard", target: str = "wheel") -> tuple[dict[str, Any], list[str]]:
    app = RecordingApp()
    hook = load_hook_module().NativeBuildHook(str(root), {}, None, None, str(root / "dist"), target, app)
    build_data: dict[str, Any] = {"artifacts": [], "pure_python": True}
    if os.environ.get("KERF_NATIVE_TARGET"):
        build_data["force_include"] = {}
    hook.initialize(version, build_data)
    return build_data, app.warnings


def stand_in_compiler(folder: Path) -> Path:
    """Writes the file that it is asked for, and nothing into it: a test of the hook need not wait for a compiler.

    That a real one is called as it should be is seen in `make setup`, whose library all other tests run on, and in
    tests/integration/test_wheels.py.
    """
    compiler = folder / "stand-in"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n: > "$2"\n', encoding="utf-8")
    compiler.chmod(0o755)
    return compiler


def libraries(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "device_agent" / "native").glob("*.so"))


def test_a_wheel_holds_the_library_and_names_its_platform(source_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("built at install time on Linux only")
    monkeypatch.setenv("KERF_NATIVE_BUILD", "require")
    monkeypatch.setenv("CXX", str(stand_in_compiler(source_tree)))
    stale = source_tree / "device_agent" / "native" / "libkerf_native-0000000000000000.so"
    stale.write_bytes(b"of older sources")
    build_data, warnings = run_hook(source_tree)
    assert warnings == []
    assert libraries(source_tree) == [build.library_name()]
    assert build_data["artifacts"] == [f"/device_agent/native/{build.library_name()}"]
    assert build_data["pure_python"] is False
    assert build_data["tag"].startswith("py3-none-linux_")
    editable, _ = run_hook(source_tree, version="editable")
    assert editable == {"artifacts": [], "pure_python": True}


def test_without_a_compiler_the_wheel_is_pure(source_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv("KERF_NATIVE_BUILD", raising=False)
    build_data, warnings = run_hook(source_tree)
    assert build_data == {"artifacts": [], "pure_python": True}
    assert libraries(source_tree) == []
    assert len(warnings) == 1
    assert "no C++ compiler" in warnings[0]


def test_a_compiler_that_fails_is_an_error(source_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho out of memory >&2\nexit 1\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.delenv("KERF_NATIVE_BUILD", raising=False)
    with pytest.raises(RuntimeError, match=r"(?s)out of memory.*KERF_NATIVE_BUILD=skip"):
        run_hook(source_tree)


def test_a_required_library_that_cannot_be_built_is_an_error(
    source_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("KERF_NATIVE_BUILD", "require")
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler"):
        run_hook(source_tree)


def test_skip_builds_nothing_and_other_words_are_refused(source_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERF_NATIVE_BUILD", "skip")
    assert run_hook(source_tree) == ({"artifacts": [], "pure_python": True}, [])
    monkeypatch.setenv("KERF_NATIVE_BUILD", "yes")
    with pytest.raises(ValueError, match="'yes'"):
        run_hook(source_tree)
    assert run_hook(source_tree, target="sdist") == ({"artifacts": [], "pure_python": True}, [])
    assert libraries(source_tree) == []


def test_a_wheel_for_another_machine_leaves_the_package_folder_alone(
    source_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERF_NATIVE_TARGET", "pdp11")
    with pytest.raises(ValueError, match=r"'pdp11'.*aarch64"):
        run_hook(source_tree)
    monkeypatch.setenv("KERF_NATIVE_TARGET", "armv7l")
    # As on a machine of this kind: others compile for it with zig, which test_native_elf does.
    monkeypatch.setattr(build.platform, "machine", lambda: "armv7l")
    monkeypatch.setenv("CXX", str(stand_in_compiler(source_tree)))
    build_data, _ = run_hook(source_tree)
    ((source, target),) = build_data["force_include"].items()
    assert Path(source).is_file()
    assert target == f"device_agent/native/{build.library_name('armv7l')}"
    assert build_data["tag"] == "py3-none-manylinux_2_17_armv7l.musllinux_1_1_armv7l"
    assert libraries(source_tree) == []
