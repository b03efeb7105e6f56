"""Build hook: compiles the native kernels when Kerf is installed on a machine that has a C++ compiler.

Without a compiler the wheel is pure Python, and the agent builds the library at first use, once there is a compiler.
KERF_NATIVE_BUILD=require makes a missing or failing compiler an error; KERF_NATIVE_BUILD=skip builds nothing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_CHOICES = ("auto", "require", "skip")


class NativeBuildHook(BuildHookInterface[Any]):
    """Builds `device_agent/native/libkerf_native-<hash>.so` and puts it into the wheel."""

    PLUGIN_NAME = "custom"

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
        folder = Path(self.root) / "device_agent" / "native"
        library = folder / build.library_name()
        try:
            if not library.is_file():
                build.build_library(library)
        except build.CompilerError as error:
            if choice == "require":
                raise
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
