"""Build hook: compiles the native kernels when Kerf is installed on a machine that has a C++ compiler.

Without a compiler the wheel is pure Python, and the agent builds the library at first use, once there is a compiler.
A compiler that fails is an error, as pip shows no warnings. KERF_NATIVE_BUILD=require makes a missing compiler an
error, too; KERF_NATIVE_BUILD=skip builds nothing.

KERF_NATIVE_TARGET=aarch64 makes a wheel for that machine instead of this one, to be handed on (`make wheels`).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_CHOICES = ("auto", "require", "skip")

#: The library knows no C library, so one file serves both kinds of Linux; the oldest tags that pip knows for them.
_PLATFORMS = {
    "x86_64": "manylinux_2_17_x86_64.musllinux_1_1_x86_64",
    "aarch64": "manylinux_2_17_aarch64.musllinux_1_1_aarch64",
    "armv7l": "manylinux_2_17_armv7l.musllinux_1_1_armv7l",
}


class NativeBuildHook(BuildHookInterface[Any]):
    """Builds `device_agent/native/libkerf_native-<hash>.so` and puts it into the wheel."""

    PLUGIN_NAME = "custom"
    _work_dir: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build before the files are collected. `version` is "standard" or, for `pip install -e`, "editable"."""
        if self.target_name != "wheel":
            return
        choice = os.environ.get("KERF_NATIVE_BUILD", "auto")
        if choice not in _CHOICES:
            raise ValueError(f"KERF_NATIVE_BUILD is {choice!r}: set it to one of {', '.join(_CHOICES)}")
        if choice == "skip" or not sys.platform.startswith("linux"):
            return
        build = _load_build_module(Path(self.root))
        machine = os.environ.get("KERF_NATIVE_TARGET")
        if machine and version != "editable":
            self._build_for(build, machine, build_data)
            return
        folder = Path(self.root) / "device_agent" / "native"
        library = folder / build.library_name()
        try:
            if not library.is_file():
                build.build_library(library)
        except build.CompilerError as error:
            if choice == "require":
                raise
            if build.find_compiler() is not None:
                raise build.CompilerError(
                    f"{error}\nTo install without the native kernels, set KERF_NATIVE_BUILD=skip: the agent then "
                    "compiles them when it starts"
                ) from None
            self.app.display_warning(f"the native kernels were not built: {error}")
            return
        for stale in folder.glob("libkerf_native-*.so"):
            if stale != library:
                stale.unlink(missing_ok=True)
        if version != "editable":
            build_data["artifacts"].append(f"/device_agent/native/{library.name}")
            # The library is for one platform, but for every Python 3: it has no Python in it.
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform_tag()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written: what it was made from can go."""
        if self._work_dir is not None:
            shutil.rmtree(self._work_dir)

    def _build_for(self, build: ModuleType, machine: str, build_data: dict[str, Any]) -> None:
        """Always built anew, and outside of the package: its folder is searched by this machine, too.

        In a folder of its own, so that two builds at once do not take each other's files away.
        """
        if machine not in _PLATFORMS:
            raise ValueError(f"KERF_NATIVE_TARGET is {machine!r}: set it to one of {', '.join(_PLATFORMS)}")
        base = Path(self.root) / "build" / "native"
        base.mkdir(parents=True, exist_ok=True)
        self._work_dir = Path(tempfile.mkdtemp(prefix=f"{machine}-", dir=base))
        library = self._work_dir / build.library_name(machine)
        build.build_library(library, machine, build.cross_compiler(machine))
        build_data["force_include"][str(library)] = f"device_agent/native/{library.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_PLATFORMS[machine]}"


def _load_build_module(root: Path) -> ModuleType:
    """device_agent/native/build.py by its path: the package and what it needs are not installed yet."""
    path = root / "device_agent" / "native" / "build.py"
    spec = importlib.util.spec_from_file_location("kerf_native_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _platform_tag() -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", sysconfig.get_platform())
