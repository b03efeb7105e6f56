"""The operators that LiteRT 2.x really ran, by the names that XNNPACK gives them.

    python -m device_agent.runtimes.litert_profile MODEL.tflite LIBRARY_FOLDER      # prints them as JSON

The Python interpreter has no profiler, but `libLiteRt.so` of the same distribution exports one in C. Its structures are
those of LiteRT 2.3 (litert/c/litert_profiler_event.h); another version may crash on them. So it is asked in a process
of its own, and no answer is an answer.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from ctypes import byref, c_char_p, c_int, c_int32, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from pathlib import Path

from device_agent.child_process import converse
from device_agent.contracts.measurement import MeasurementFailure

_LIBRARIES = ("libLiteRt.so", "libLiteRt.dylib")
_TIMEOUT_S = 60.0

#: kLiteRtHwAcceleratorCpu, and the profiler's type of event for an operator inside a delegate.
_CPU = 1
_DELEGATE_OPERATOR = 8
_MAX_AXES = 8


def profiled_operators(model: Path, library_folder: Path) -> tuple[str, ...] | None:
    """The names of the operators of one run of `model` in a delegate; None where the library does not tell."""
    command = (sys.executable, "-m", "device_agent.runtimes.litert_profile", str(model), str(library_folder))
    answer = converse(command, b"", deadline_s=_TIMEOUT_S)
    if isinstance(answer, MeasurementFailure):
        return None
    try:
        names = json.loads(answer)
    except ValueError:
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None


# --- the child's side -----------------------------------------------------------------------------------------------


class _Layout(ctypes.Structure):
    _fields_ = (("bits", c_uint), ("dimensions", c_int32 * _MAX_AXES), ("strides", c_uint32 * _MAX_AXES))


class _TensorType(ctypes.Structure):
    _fields_ = (("element_type", c_int), ("layout", _Layout))


class _MemoryUsage(ctypes.Structure):
    _fields_ = (("resident", c_size_t), ("allocated", c_size_t), ("in_use", c_size_t))


class _Event(ctypes.Structure):
    _fields_ = (
        ("tag", c_char_p),
        ("type", c_int),
        ("start_us", c_uint64),
        ("elapsed_us", c_uint64),
        ("memory_before", _MemoryUsage),
        ("memory_after", _MemoryUsage),
        ("metadata", c_uint64),
        ("more_metadata", c_uint64),
        ("source", c_int),
    )


class _Library:
    """Calls that raise where the library returns a status that is not 0."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def call(self, name: str, *arguments: object) -> None:
        function = getattr(self._library, f"LiteRt{name}")
        function.restype = c_int
        status = function(*arguments)
        if status:
            raise RuntimeError(f"LiteRt{name} returned {status}")

    def handle(self, name: str, *arguments: object) -> c_void_p:
        """What a call writes into its last argument."""
        result = c_void_p()
        self.call(name, *arguments, byref(result))
        return result


#: What the library calls to free the options' text. It is ours: there is nothing to do.
_KEEP = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)


def _names(model: Path, library: _Library) -> list[str]:
    environment = library.handle("CreateEnvironment", 0, None)
    loaded = library.handle("CreateModelFromFile", environment, str(model).encode())
    options = library.handle("CreateOptions")
    library.call("SetOptionsHardwareAccelerators", options, _CPU)
    texts = []  # Alive until the end: the library keeps pointers to them.
    for kind, text in (("runtime_options_string", "enable_profiling = true\n"), ("xnnpack", "num_threads = 1\n")):
        texts.append((ctypes.create_string_buffer(kind.encode()), ctypes.create_string_buffer(text.encode())))
        name, content = texts[-1]
        opaque = library.handle("CreateOpaqueOptions", name, ctypes.cast(content, c_void_p), _KEEP)
        library.call("AddOpaqueOptions", options, opaque)
    compiled = library.handle("CreateCompiledModel", environment, loaded, options)
    graph = library.handle("GetModelSubgraph", loaded, c_size_t(0))
    inputs = _buffers(library, environment, compiled, graph, "Input")
    outputs = _buffers(library, environment, compiled, graph, "Output")

    def run() -> None:
        library.call(
            "RunCompiledModel", compiled, c_size_t(0), c_size_t(len(inputs)), inputs, c_size_t(len(outputs)), outputs
        )

    run()
    profiler = library.handle("CompiledModelGetProfiler", compiled)
    library.call("StartProfiler", profiler)
    run()
    library.call("StopProfiler", profiler)
    count = c_int()
    library.call("GetNumProfilerEvents", profiler, byref(count))
    events = (_Event * count.value)()
    library.call("GetProfilerEvents", profiler, count, events)
    return [event.tag.decode(errors="replace") for event in events if event.type == _DELEGATE_OPERATOR]


def _buffers(
    library: _Library, environment: c_void_p, compiled: c_void_p, graph: c_void_p, kind: str
) -> ctypes.Array[c_void_p]:
    count = c_size_t()
    library.call(f"GetNumSubgraph{kind}s", graph, byref(count))
    buffers = (c_void_p * count.value)()
    for i in range(count.value):
        tensor = library.handle(f"GetSubgraph{kind}", graph, c_size_t(i))
        ranked = _TensorType()
        library.call("GetRankedTensorType", tensor, byref(ranked))
        needed = library.handle(f"GetCompiledModel{kind}BufferRequirements", compiled, c_size_t(0), c_size_t(i))
        buffer = library.handle("CreateManagedTensorBufferFromRequirements", environment, byref(ranked), needed)
        buffers[i] = buffer.value
    return buffers


def main() -> int:
    """Write the names to what was standard output; the library prints elsewhere, and is not torn down."""
    answer_descriptor = os.dup(1)
    os.dup2(2, 1)
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    found = [folder / name for name in _LIBRARIES if (folder / name).exists()]
    names = _names(model, _Library(found[0])) if found else []
    with os.fdopen(answer_descriptor, "wb") as stream:
        stream.write(json.dumps(names).encode() + b"\n")
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
