"""What can execute kernels and networks on a device, by name.

Runtimes are imported when they are asked for: a child process that times a native kernel never loads TFLite.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType

from device_agent.contracts.device import TFLITE_SPARSE_RUNTIME, RuntimeInfo
from device_agent.runtimes.base import Executable, Runtime, RuntimeUnavailable, UnsupportedTask

#: The name of a runtime -> the module and class that implement it.
RUNTIMES = MappingProxyType(
    {
        "native": ("device_agent.runtimes.native", "NativeRuntime"),
        "tflite": ("device_agent.runtimes.tflite", "TfliteRuntime"),
        TFLITE_SPARSE_RUNTIME: ("device_agent.runtimes.tflite_sparse", "TfliteSparseRuntime"),
        "ncnn": ("device_agent.runtimes.ncnn", "NcnnRuntime"),
        "simulated": ("device_agent.runtimes.simulated", "SimulatedRuntime"),
    }
)

__all__ = [
    "RUNTIMES",
    "Executable",
    "Runtime",
    "RuntimeUnavailable",
    "UnsupportedTask",
    "make_runtime",
    "probe_runtimes",
]


def make_runtime(name: str) -> Runtime:
    """The runtime called `name`. Raises `RuntimeUnavailable` for an unknown name or one that cannot run here."""
    if name not in RUNTIMES:
        raise RuntimeUnavailable(f"there is no runtime {name!r}; this agent knows {', '.join(RUNTIMES)}")
    module, attribute = RUNTIMES[name]
    runtime: Runtime = getattr(importlib.import_module(module), attribute)()
    return runtime


def probe_runtimes(*, simulated: bool = False) -> tuple[RuntimeInfo, ...]:
    """What each runtime says about itself, with the reason where it cannot run.

    A simulated device has the simulated runtime only, and a real device never has it. Whether TFLite takes XNNPACK's
    sparse path is tried out; where it does not, `tflite-sparse` is listed as unavailable.
    """
    names = ("simulated",) if simulated else tuple(name for name in RUNTIMES if name != "simulated")
    infos = []
    for name in names:
        try:
            infos.append(make_runtime(name).info())
        except RuntimeUnavailable as error:
            infos.append(RuntimeInfo(name=name, unavailable=str(error)))
    if any(info.name == TFLITE_SPARSE_RUNTIME and info.unavailable is None for info in infos):
        from device_agent.runtimes.sparse_probe import probe_sparse_1x1, with_sparse_probe

        probe = probe_sparse_1x1()
        infos = [with_sparse_probe(info, probe) for info in infos]
    return tuple(infos)
