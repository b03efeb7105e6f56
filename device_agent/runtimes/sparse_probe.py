"""Whether the installed TFLite really takes XNNPACK's sparse path on this device, found out in a process of its own.

    python -m device_agent.runtimes.sparse_probe      # prints what was seen

A small network of the path is run with its weights stored without zeros and with them (`sparse_chain.witness`). Zeros
must be skipped in the first and multiplied in the second: then the answer does not rest on a clock. Where the library
exports its profiler, the names of the operators that ran have to agree.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from device_agent.child_process import converse
from device_agent.contracts.codec import ContractError, dumps, loads
from device_agent.contracts.device import TFLITE_SPARSE_RUNTIME, RuntimeInfo
from device_agent.contracts.measurement import MeasurementFailure

#: A second on a phone; a library that hangs is not waited for longer.
PROBE_TIMEOUT_S = 120.0

#: What XNNPACK's profile calls a convolution that skips zeros.
SPARSE_TAG = "SPMM"


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseProbe:
    """`taken` is None where it could not be found out; `reason` tells why it is not True.

    `tags` are the names of the operators in the profile of the sparse-encoded network; None where the library has no
    profiler.
    """

    taken: bool | None
    reason: str = ""
    tags: tuple[str, ...] | None = None


def probe_sparse_1x1(timeout_s: float = PROBE_TIMEOUT_S, command: tuple[str, ...] | None = None) -> SparseProbe:
    """Ask in a child process, as the library may crash. `command` replaces the child in tests."""
    ask = command or (sys.executable, "-m", "device_agent.runtimes.sparse_probe")
    answer = converse(ask, b"", deadline_s=timeout_s)
    if isinstance(answer, MeasurementFailure):
        return SparseProbe(taken=None, reason=f"the probe of the sparse path ended early: {answer.detail}")
    try:
        return loads(SparseProbe, answer)
    except ContractError as error:
        return SparseProbe(taken=None, reason=f"the probe of the sparse path answered nonsense: {error}")


def conclude(sparse: bool | None, dense: bool | None, tags: tuple[str, ...] | None) -> SparseProbe:
    """What was seen as one answer.

    Args:
        sparse: Whether the network stored without zeros skipped them; None where its output told nothing.
        dense: The same of the network stored with zeros.
        tags: The operators that ran, where the library tells.
    """
    if sparse is None or dense is not False:
        return SparseProbe(
            taken=None,
            reason="multiplying by the zeros of a dense file did not show in its output: nothing can be told",
            tags=tags,
        )
    has_tag = tags is not None and any(SPARSE_TAG in tag for tag in tags)
    if sparse and tags is not None and not has_tag:
        return SparseProbe(
            taken=False, reason=f"zeros seem to be skipped, but no operator of the profile is a {SPARSE_TAG}", tags=tags
        )
    if not sparse:
        return SparseProbe(
            taken=False,
            reason="XNNPACK multiplies by zeros here instead of skipping them; its sparse path needs aarch64 "
            "(or x86 without AVX) and a library built with it, such as ai-edge-litert 2.x",
            tags=tags,
        )
    return SparseProbe(taken=True, tags=tags)


def with_sparse_probe(info: RuntimeInfo, probe: SparseProbe) -> RuntimeInfo:
    """`info` with what the probe of the sparse path found out, if it is about that."""
    if info.name not in ("tflite", TFLITE_SPARSE_RUNTIME):
        return info
    info = dataclasses.replace(info, sparse_1x1=probe.taken)
    if info.name == TFLITE_SPARSE_RUNTIME and probe.taken is not True:
        return dataclasses.replace(info, unavailable=probe.reason)
    return info


# --- the child's side -----------------------------------------------------------------------------------------------


def _probe_here() -> SparseProbe:
    from device_agent.contracts.kernel import KernelSpec, Op, PruningScheme, WeightPruning
    from device_agent.formats.tflite import plan_to_tflite
    from device_agent.runtimes.litert_profile import profiled_operators
    from device_agent.runtimes.sparse_chain import kernel_chain
    from device_agent.runtimes.tflite import TfliteRuntime
    from device_agent.runtimes.tflite_sparse import is_sparse_path_taken

    runtime = TfliteRuntime()
    kernel = KernelSpec(
        op=Op.CONV2D,
        in_channels=16,
        out_channels=16,
        input_h=8,
        input_w=8,
        pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.25),
    )
    network = kernel_chain(kernel, copies=2, sums=1)
    sparse = is_sparse_path_taken(runtime, network)
    dense = is_sparse_path_taken(runtime, network, sparse_1x1=False)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "chain.tflite"
        model.write_bytes(plan_to_tflite(network.plan, network.tensors, sparse_1x1=True))
        tags = profiled_operators(model, runtime.library_folder)
    return conclude(sparse, dense, tags)


def main() -> int:
    """Write the answer to what was standard output; libraries print elsewhere."""
    answer_descriptor = os.dup(1)
    os.dup2(2, 1)
    answer = _probe_here()
    with os.fdopen(answer_descriptor, "wb") as stream:
        stream.write(dumps(answer).encode() + b"\n")
    sys.stderr.flush()
    # Interpreters of foreign libraries may crash while they are torn down; the answer is out already.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
