"""From a task to an executable that has run once: its artifact, its outputs, and what is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device_agent.contracts.codec import ContractError
from device_agent.contracts.lease import KernelTask, NetworkTask
from device_agent.contracts.measurement import FailureReason, VerdictReason
from device_agent.measuring.benchmark import Subtracted
from device_agent.runtimes import Runtime
from device_agent.runtimes.base import Executable, FloatArray, HasExactTwin
from device_agent.runtimes.difference import DifferenceExecutable
from device_agent.runtimes.reference import is_close, output_agrees
from device_agent.synthesis import kernel_inputs, synthesize_input, synthesize_weights

#: Outputs travel as JSON: a task may ask for this many numbers (ImageNet: 4000 images).
MAX_OUTPUT_VALUES = 1 << 22


class TaskFailure(Exception):
    """The task ends without a measurement, for a reason that the server acts upon."""

    def __init__(self, reason: FailureReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An executable that has run once: what it gave, and what was found wrong with that.

    `output_sha256` is of outputs whose bits all devices share: those of the exact twin, where there is one.
    """

    executable: Executable
    outputs: tuple[FloatArray, ...]
    output_sha256: str
    findings: tuple[VerdictReason, ...]
    wants_outputs: bool
    wants_profile: bool

    @property
    def subtracted(self) -> Subtracted | None:
        """What the executable's time has to be lessened by, where it is more than what was asked for."""
        if not isinstance(self.executable, DifferenceExecutable):
            return None
        return Subtracted(executable=self.executable.fewer, copies=self.executable.copies)


def load_task(task: KernelTask | NetworkTask, artifact: Path | None, runtime: Runtime) -> Loaded:
    """Build what `task` is about and run it once. Raises `TaskFailure`, `ContractError` and what runtimes raise."""
    return _load_kernel(task, runtime) if isinstance(task, KernelTask) else _load_network(task, artifact, runtime)


def _load_kernel(task: KernelTask, runtime: Runtime) -> Loaded:
    executable = runtime.load_kernel(task.kernel, task.setup.threads)
    if isinstance(executable, DifferenceExecutable):
        outputs, agree = executable.check()
        findings = executable.findings if agree else (*executable.findings, VerdictReason.WRONG_OUTPUT)
        return Loaded(
            executable=executable,
            outputs=outputs,
            output_sha256=_sha256(outputs),
            findings=findings,
            wants_outputs=False,
            wants_profile=False,
        )
    x, second = kernel_inputs(task.kernel)
    output = executable.run(x, second)
    inputs, residual = ([x], second) if task.kernel.residual or second is None else ([x, second], None)
    findings = executable.findings
    exact_outputs = _exact_outputs(executable, (output,), lambda twin, _: twin.run(x, second))
    agrees = output_agrees(task.kernel, synthesize_weights(task.kernel), inputs, residual, output)
    if not agrees or not is_close(output, exact_outputs[0]):
        findings = (*findings, VerdictReason.WRONG_OUTPUT)
    return Loaded(
        executable=executable,
        outputs=(output,),
        output_sha256=_sha256(exact_outputs),
        findings=findings,
        wants_outputs=False,
        wants_profile=False,
    )


def _load_network(task: NetworkTask, artifact: Path | None, runtime: Runtime) -> Loaded:
    if not 0 <= task.num_outputs <= MAX_OUTPUT_VALUES:
        raise ContractError(f"num_outputs {task.num_outputs!r} is not in 0..{MAX_OUTPUT_VALUES}")
    if task.input_seed < 0:
        raise ContractError(f"input_seed {task.input_seed!r} must not be negative")
    data = read_artifact(task, artifact)
    executable = runtime.load_network(data, task.format, task.input_shape, task.setup.threads)

    def run(one: Executable, index: int) -> FloatArray:
        return one.run(synthesize_input(task.input_shape, task.input_seed + index))

    outputs: list[FloatArray] = []
    for i in range(max(task.num_outputs, 1)):
        outputs.append(run(executable, i))
        if outputs[0].size * task.num_outputs > MAX_OUTPUT_VALUES:
            raise ContractError(
                f"{task.num_outputs} outputs of {outputs[0].size} values exceed the limit of {MAX_OUTPUT_VALUES}: "
                "ask for fewer"
            )
    exact_outputs = _exact_outputs(executable, outputs, run)
    finite = all(bool(np.isfinite(output).all()) for output in outputs)
    right = finite and all(map(is_close, outputs, exact_outputs))
    findings = executable.findings if right else (*executable.findings, VerdictReason.WRONG_OUTPUT)
    return Loaded(
        executable=executable,
        outputs=tuple(outputs),
        output_sha256=_sha256(exact_outputs),
        findings=findings,
        # JSON has no infinity; the verdict tells why the outputs are missing.
        wants_outputs=finite and task.num_outputs > 0,
        wants_profile=True,
    )


def _exact_outputs(
    executable: Executable, outputs: Sequence[FloatArray], run: Callable[[Executable, int], FloatArray]
) -> Sequence[FloatArray]:
    """`outputs` with the bits that all devices share: by `run` on the exact twin of `executable`, if it has one.

    The twin is gone before anything is timed.
    """
    twin = executable.exact_twin() if isinstance(executable, HasExactTwin) else None
    return outputs if twin is None else [run(twin, index) for index in range(len(outputs))]


def read_artifact(task: NetworkTask, artifact: Path | None) -> bytes:
    """The bytes of a network task's file. Raises `TaskFailure` unless they are the promised ones."""
    if artifact is None:
        raise TaskFailure(FailureReason.ARTIFACT_UNAVAILABLE, f"no file came with artifact {task.artifact_sha256}")
    try:
        if artifact.stat().st_size != task.artifact_bytes:
            raise TaskFailure(
                FailureReason.ARTIFACT_UNAVAILABLE,
                f"the artifact has {artifact.stat().st_size} bytes instead of {task.artifact_bytes}",
            )
        data = artifact.read_bytes()
    except OSError as error:
        raise TaskFailure(FailureReason.ARTIFACT_UNAVAILABLE, f"the artifact cannot be read: {error}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != task.artifact_sha256:
        raise TaskFailure(
            FailureReason.ARTIFACT_UNAVAILABLE, f"the artifact hashes to {digest}, not to {task.artifact_sha256}"
        )
    return data


def _sha256(outputs: Sequence[FloatArray]) -> str:
    digest = hashlib.sha256()
    for output in outputs:
        digest.update(output.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
