"""States, kernels and reasons in the words that a reader of the pages needs."""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.contracts import KernelSpec, NetworkTask, Op, PruningScheme, Verdict, VerdictReason, WeightPruning
from search.domain.result import Standing
from server.states import JobStage, JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLabel:
    """A state as a word and the tone of its badge: good, busy, warn, bad or idle."""

    text: str
    tone: str


JOB_LABELS = {
    JobState.PENDING: StateLabel(text="waiting", tone="idle"),
    JobState.RUNNING: StateLabel(text="running", tone="busy"),
    JobState.PAUSING: StateLabel(text="pausing", tone="warn"),
    JobState.PAUSED: StateLabel(text="paused", tone="warn"),
    JobState.CANCELLING: StateLabel(text="cancelling", tone="warn"),
    JobState.CANCELLED: StateLabel(text="cancelled", tone="idle"),
    JobState.COMPLETED: StateLabel(text="completed", tone="good"),
    JobState.FAILED: StateLabel(text="failed", tone="bad"),
}

VERDICT_LABELS = {
    Verdict.TRUSTED: StateLabel(text="trusted", tone="good"),
    Verdict.NOISY: StateLabel(text="noisy", tone="warn"),
    Verdict.REJECTED: StateLabel(text="rejected", tone="bad"),
}

STANDING_LABELS = {
    Standing.FRONT: StateLabel(text="on the front", tone="good"),
    Standing.WITHIN_NOISE: StateLabel(text="dominated within noise", tone="warn"),
    Standing.DOMINATED: StateLabel(text="dominated beyond noise", tone="idle"),
}

STAGE_LABELS = {
    JobStage.PREPARING: "Preparing",
    JobStage.PROFILING: "Profiling",
    JobStage.SEARCHING: "Searching",
    JobStage.TRAINING: "Training",
    JobStage.EXPORTING: "Exporting",
    JobStage.VERIFYING: "Verifying",
    JobStage.DONE: "Done",
}

REASON_TEXTS = {
    VerdictReason.CI_TOO_WIDE: "the confidence interval is wider than asked",
    VerdictReason.TOO_FEW_SAMPLES: "too few samples in the time allowed",
    VerdictReason.THROTTLED: "the processor was throttled",
    VerdictReason.FREQUENCY_MOVED: "the clock frequency moved while measuring",
    VerdictReason.TOO_HOT: "the device was too hot",
    VerdictReason.CONTENTION: "other processes took the core",
    VerdictReason.REFERENCE_DRIFTED: "the reference kernel drifted",
    VerdictReason.WRONG_DELEGATE: "the runtime took another delegate than asked",
    VerdictReason.SPARSE_PATH_NOT_TAKEN: "the sparse path was not taken",
    VerdictReason.WRONG_OUTPUT: "the output was wrong",
    VerdictReason.CPU_QUOTA: "a control group held the process back",
    VerdictReason.NOT_PINNED: "the system refused to pin it to its core",
    VerdictReason.RUN_MODE_CHANGED: "screen, charger or process group changed while measuring",
    VerdictReason.NOT_COLD: "the device was not known to be cold",
    VerdictReason.NOT_STEADY: "the device had not become steady under load",
    VerdictReason.NOT_VERIFIED: "imported without samples: not verified",
}

#: Operators in a word or two.
OP_NAMES = {
    Op.CONV2D: "conv",
    Op.DEPTHWISE_CONV2D: "depthwise conv",
    Op.FULLY_CONNECTED: "fully connected",
    Op.ADD: "add",
    Op.MAX_POOL: "max pool",
    Op.AVG_POOL: "average pool",
    Op.GLOBAL_AVG_POOL: "global average pool",
    Op.SHORTCUT_PAD: "shortcut pad",
    Op.MUL: "multiply",
    Op.CONCAT: "concatenation",
    Op.FIRST_CHANNELS: "first channels",
    Op.LAST_CHANNELS: "last channels",
    Op.CHANNEL_SHUFFLE: "channel shuffle",
}

SCHEME_NAMES = {
    PruningScheme.DENSE: "dense",
    PruningScheme.UNSTRUCTURED: "unstructured",
    PruningScheme.GROUP: "group",
    PruningScheme.BLOCK_PUNCHED: "block-punched",
    PruningScheme.BLOCK: "block",
    PruningScheme.PATTERN: "pattern",
}


def reason_texts(reasons: tuple[VerdictReason, ...]) -> tuple[str, ...]:
    return tuple(REASON_TEXTS[reason] for reason in reasons)


def kernel_words(spec: KernelSpec) -> tuple[str, str]:
    """A kernel as a short name and the rest of what identifies it, such as
    ("conv 3x3, 64 to 128", "stride 2, 16x16, group 4x1 at 20 %, relu").
    """
    name, extent, rest = _shape_words(spec)
    return name, ", ".join((*extent, *((_pruning_words(spec),) if spec.op.has_weights else ()), *rest))


def shape_words(spec: KernelSpec) -> str:
    """A kernel without its pruning, such as "conv 3x3, 64 to 128, 16x16, stride 2, relu"."""
    name, extent, rest = _shape_words(spec)
    return ", ".join((name, *extent, *rest))


def scheme_words(pruning: WeightPruning) -> str:
    """A scheme with its block, without the density."""
    if pruning.scheme is PruningScheme.PATTERN:
        return f"{SCHEME_NAMES[pruning.scheme]} of {pruning.pattern_entries}"
    if pruning.scheme in (PruningScheme.DENSE, PruningScheme.UNSTRUCTURED):
        return SCHEME_NAMES[pruning.scheme]
    return f"{SCHEME_NAMES[pruning.scheme]} {pruning.block_filters}×{pruning.block_channels}"


def _shape_words(spec: KernelSpec) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Operator and channels; height, width and stride; and what is fused."""
    name = OP_NAMES[spec.op]
    if (spec.kernel_h, spec.kernel_w) != (1, 1) or spec.op in (Op.CONV2D, Op.DEPTHWISE_CONV2D):
        name += f" {spec.kernel_h}×{spec.kernel_w}"
    if spec.groups > 1:
        name += f" in {spec.groups} groups"
    if spec.in_channels == spec.out_channels:
        name += f", {spec.in_channels} channels"
    else:
        name += f", {spec.in_channels} → {spec.out_channels} channels"
    extent = () if spec.op is Op.FULLY_CONNECTED else (f"{spec.input_h}×{spec.input_w}",)
    if spec.stride != 1:
        extent = (*extent, f"stride {spec.stride}")
    rest = ("residual",) if spec.residual else ()
    if spec.activation.value != "none":
        rest = (*rest, spec.activation.value)
    return name, extent, rest


def _pruning_words(spec: KernelSpec) -> str:
    words = scheme_words(spec.pruning)
    return words if spec.pruning.scheme is PruningScheme.DENSE else f"{words} at {100 * spec.pruning.density:.3g} %"


def network_words(task: NetworkTask) -> tuple[str, str]:
    """A whole network as a short name and its input's shape."""
    channels, height, width = task.input_shape
    return f"whole network, {task.format.value}", f"input {channels}×{height}×{width}, {task.artifact_sha256[:12]}"
