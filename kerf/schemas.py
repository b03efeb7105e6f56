"""The JSON that the server answers with, as types. Written from the OpenAPI document; do not edit.

`KERF_UPDATE_SNAPSHOTS=1 pytest tests/unit/kerf/test_schemas.py` writes it anew.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypedDict

Activation: TypeAlias = Literal["none", "relu", "relu6", "sigmoid", "hardsigmoid", "hardswish", "silu"]
DType: TypeAlias = Literal["float32"]
DataFormat: TypeAlias = Literal["folder", "zip", "npz", "parquet"]
DeviceState: TypeAlias = Literal["online", "offline", "disabled", "imported"]
DriftOutcome: TypeAlias = Literal["agrees", "drifted", "inconclusive"]
FailureReason: TypeAlias = Literal[
    "unsupported",
    "invalid_task",
    "crashed",
    "timed_out",
    "resource_exhausted",
    "device_not_ready",
    "agent_shutdown",
    "artifact_unavailable",
    "lease_expired",
    "agent_error",
    "agent_outdated",
    "quarantined",
]
JobStage: TypeAlias = Literal["preparing", "profiling", "searching", "training", "exporting", "verifying", "done"]
JobState: TypeAlias = Literal[
    "pending",
    "running",
    "pausing",
    "paused",
    "cancelling",
    "cancelled",
    "completed",
    "failed",
]
NetworkFileFormat: TypeAlias = Literal["kerf", "onnx"]
Op: TypeAlias = Literal[
    "conv2d",
    "depthwise_conv2d",
    "fully_connected",
    "add",
    "max_pool",
    "avg_pool",
    "global_avg_pool",
    "shortcut_pad",
    "mul",
    "concat",
    "first_channels",
    "last_channels",
    "channel_shuffle",
]
PruningScheme: TypeAlias = Literal["dense", "unstructured", "group", "block_punched", "pattern", "block"]
ReportStatus: TypeAlias = Literal["accepted", "duplicate", "late"]
Scope: TypeAlias = Literal["read", "searches:write", "artifacts:write", "admin", "agent"]
Source: TypeAlias = Literal["measured", "emulated", "simulated", "imported"]
TableFormat: TypeAlias = Literal["csv", "json", "parquet", "npy"]
Verdict: TypeAlias = Literal["trusted", "noisy", "rejected"]
VerdictReason: TypeAlias = Literal[
    "ci_too_wide",
    "too_few_samples",
    "throttled",
    "frequency_moved",
    "too_hot",
    "contention",
    "reference_drifted",
    "wrong_delegate",
    "sparse_path_not_taken",
    "wrong_output",
    "cpu_quota",
    "not_pinned",
    "run_mode_changed",
    "not_cold",
    "not_steady",
    "not_verified",
]
WorkerState: TypeAlias = Literal["idle", "busy", "silent"]


class Architecture(TypedDict):
    """One member of the zoo. `input_shape` is (channels, h, w)."""

    description: str
    input_shape: list[int]
    name: str
    num_classes: int


class CandidateView(TypedDict):
    """`results` has one entry for each stage that the candidate went through. `failure` says why it could not be
    evaluated: then figures that are missing in `metrics` are unknown, and it is on no front.
    """

    candidate_id: str
    failure: str | None
    generation: int
    genome: list[int]
    metrics: dict[str, float]
    on_front: bool
    results: dict[str, Any]
    selected: bool
    violation: float


class CardPoint(TypedDict):
    """Predicted against measured, of a kernel that was held out or of a whole network (`candidate_id`, where the asking
    user may see its search).
    """

    candidate_id: str | None
    measured_ms: float
    name: str
    predicted_ms: float
    search_id: str | None


class CardView(TypedDict):
    """The card of a series. None as `card` until a worker that has no search came to it; `is_stale` where the series
    has other measurements by now.
    """

    card: SeriesCard | None
    computed_at: str | None
    drift: DriftView
    is_stale: bool
    series: SeriesView


class CasualtyView(TypedDict):
    """A device on which all attempts failed: how many, and what the last one told."""

    detail: str
    device_id: str
    device_name: str
    failures: int
    finished_at: str | None
    reason: FailureReason


class Change(TypedDict):
    """What something takes now, as a ratio to before; `differs` where it is outside of 1 / `limit` to `limit`."""

    limit: float
    ratio: float


class ComparedKernel(TypedDict):
    """A kernel under both keys; `ratio` is second / first."""

    differs: bool | None
    first_ns: float
    first_verdict: Verdict
    kernel: KernelSpec
    kernel_id: str
    ratio: float
    ratio_ci95: list[float] | None
    second_ns: float
    second_verdict: Verdict


class Comparison(TypedDict):
    """Two series over the kernels that both have. `differing_parts` says in which parts of the key they differ.

    `is_sample` where both series are so large that a part of their kernels was drawn by chance: then every figure is of
    that part. `kernels` are at most `limit`, those farthest from 1 first; `summary` is over all of them. A kernel that
    one side measured in several modes is in neither, and counted as `ambiguous`.
    """

    ambiguous: int
    differing_parts: list[str]
    first: SeriesView
    is_sample: bool
    kernels: list[ComparedKernel]
    only_first: int
    only_second: int
    second: SeriesView
    summary: RatioSummary | None


class Conditions(TypedDict):
    """The state of a device at one moment. None where it cannot be read."""

    battery_percent: float | None
    charging: bool | None
    core_busy_s: float | None
    cpu_quota: float | None
    cpuset: str | None
    frequency_hz: int | None
    frequency_limit_hz: int | None
    governor: str | None
    involuntary_switches: int | None
    load_1min: float | None
    process_cpu_s: float | None
    quota_throttled_s: float | None
    screen_on: bool | None
    temperature_celsius: float | None
    throttle_count: int | None
    throttled: bool | None
    uptime_s: float | None


class CpuCluster(TypedDict):
    """Cores of one kind. `max_frequency_hz` is None where the kernel does not tell."""

    core_ids: list[int]
    max_frequency_hz: int | None
    model: str


class DatasetView(TypedDict):
    """A data set. Counts are images of each class, in the order of the names, which is that of the labels.

    With the targets of a task of one's own instead of labels there are no classes; `target_shape` is that of one of
    them.
    """

    class_names: list[str]
    created_at: str | None
    id: str
    name: str
    num_test: int
    num_train: int
    target_shape: list[int] | None
    test: str | None
    test_class_counts: list[int]
    train: str
    train_class_counts: list[int]
    train_format: DataFormat


class DeviceProfile(TypedDict):
    """What stays the same while a device is in service: the hardware side of every measurement's key.

    `imported` says that no agent is on the device: its figures came from a file. What the file does not tell is empty.
    """

    clusters: list[CpuCluster]
    cpu_model: str
    emulated: bool
    governors: list[str]
    imported: bool
    isa_features: list[str]
    machine: str
    memory_bytes: int
    os_build: str
    simulated: bool
    system: str


class DeviceView(TypedDict):
    """`last_seen_at` is None for an imported device, which has no agent. `drifted_series` are those whose sentinel
    kernels no longer take what they took: GET /v1/latency-series/{series_id}/card tells how.
    """

    agent_version: str
    conditions: Conditions | None
    created_at: str | None
    drifted_series: list[str]
    id: str
    last_seen_at: str | None
    leased_tasks: int
    name: str
    pending_tasks: int
    profile: DeviceProfile
    profile_id: str
    runtimes: list[RuntimeInfo]
    spooled_reports: int
    state: DeviceState


class DriftCheckView(TypedDict):
    """One check. `reference` and `kernels` are ratios of now to before, with the limits within which they agree;
    `outcome` is None while it is being measured.
    """

    created_at: str | None
    finished_at: str | None
    id: str
    kernels: dict[str, Change]
    outcome: DriftOutcome | None
    reference: Change | None


class DriftView(TypedDict):
    """The drift state of a series: since when there is an alarm, if there is one, and its checks, the latest first."""

    alarm_since: str | None
    checks: list[DriftCheckView]


class EnrolmentCode(TypedDict):
    """`code` is shown once."""

    code: str
    expires_at: str | None
    max_uses: int


class ErrorSummary(TypedDict):
    """Relative errors of predictions against measurements. `spearman` is None with fewer than three or without spread.

    The kernels' figures are held out: each knot between two others, predicted from them; of a model, each measured
    kernel predicted from the others.
    """

    count: int
    median: float
    p95: float
    rmspe: float
    spearman: float | None
    within_10_percent: float
    within_5_percent: float


class EventView(TypedDict):
    """The data of a server-sent event; `seq` is also its id."""

    created_at: str | None
    data: dict[str, Any]
    kind: str
    seq: int


class FamilyErrors(TypedDict):
    """Errors of the kernels that differ in channels and density only. None where nothing could be held out."""

    family: str
    kernels: int
    model: ErrorSummary | None
    table: ErrorSummary | None


class Health(TypedDict):
    status: str


class ImportAnswer(TypedDict):
    """What an import did. `added` is 0 where all was there before; `missing` rows say that nothing was measured."""

    added: int
    already_there: int
    device_id: str
    import_id: str
    missing: int
    rows: int
    series_ids: list[str]


class KernelProfit(TypedDict):
    """`speed_up` is dense / pruned. `pays` is null where the interval leaves both open, or there is none; `dense_ns` is
    null where no dense kernel of this shape was measured in the series. Noisy figures are told as such.
    """

    dense_ns: float | None
    is_noisy: bool
    kernel: KernelSpec
    pays: bool | None
    pruned_ns: float
    speed_up: float | None
    speed_up_ci95: list[float] | None


class KernelSpec(TypedDict):
    """One fused kernel for one image (batch 1), in the NCHW sense of shapes.

    `padding` is symmetric and in elements, as in torch. `residual` says that a tensor of the output's shape is added
    before the activation. ADD, MUL and CONCAT have two inputs (`input_shapes`). For SHORTCUT_PAD, `out_channels -
    in_channels` zero channels are added, `pad_channels_before` of them in front.

    `groups` above 1 makes a CONV2D a grouped one: blocks of filters that read one block of input channels each; it is
    dense, and takes no residual. One input channel for each group is a DEPTHWISE_CONV2D instead, which writes one or
    more channels for each that it reads. Of a CHANNEL_SHUFFLE, `groups` is the number of blocks.

    Raises `ContractError` on impossible shapes.
    """

    activation: Activation
    dtype: DType
    groups: int
    in_channels: int
    input_h: int
    input_w: int
    kernel_h: int
    kernel_w: int
    op: Op
    out_channels: int
    pad_channels_before: int
    padding: int
    pruning: WeightPruning
    residual: bool
    seed: int
    stride: int


class KernelView(TypedDict):
    id: str
    kernel: KernelSpec
    macs: int
    parameters: int


class Latency(TypedDict):
    """The latest trusted or noisy median of a kernel in one series."""

    ci95_high_ns: float | None
    ci95_low_ns: float | None
    kernel_id: str
    max_median_ns: float
    median_ns: float
    min_median_ns: float
    mode: str
    num_measurements: int
    result_key: str
    updated_at: str | None
    verdict: Verdict


class LatencyAnswer(TypedDict):
    """`latencies` has one entry for each kernel asked for, in that order; None where it was not measured in `series`,
    which is None where the device has none of this kind.
    """

    latencies: list[Latency | None]
    series: SeriesView | None


class LatencyModelView(TypedDict):
    """The latency model of a series. `from_series` is what it starts from: figures of another key, where someone asked
    for it. `fitted_at` is None until a worker that has no search came to it; `without_model` says why there is none;
    `is_stale` where the series has other measurements by now, or another start was asked for.
    """

    fitted_at: str | None
    format_version: int
    from_series: SeriesView | None
    is_fitted: bool
    is_stale: bool
    num_kernels: int
    series: SeriesView
    without_model: str


class LatencyView(TypedDict):
    """One row of the latency database: a kernel's figure and the series that it is of."""

    device_name: str
    kernel: KernelSpec
    latency: Latency
    series: SeriesView


class MeasurementView(TypedDict):
    """A measurement without its samples, which GET /v1/measurements/{result_key}/raw has.

    One that was imported has an `import_id` and no task, and `statistics` only where the file had them.
    """

    after: Conditions
    artifact_sha256: str | None
    before: Conditions
    ci95_high_ns: float | None
    ci95_low_ns: float | None
    created_at: str | None
    device_id: str
    import_id: str | None
    kernel: KernelSpec | None
    kernel_id: str | None
    median_ns: float
    memory_bytes: int | None
    output_sha256: str | None
    profile_id: str
    provenance: Provenance
    reasons: list[VerdictReason]
    result_key: str
    series_id: str
    setup_id: str
    statistics: Statistics | None
    status: ReportStatus
    task_id: str | None
    verdict: Verdict


class MeasuringEffort(TypedDict):
    """What a search cost its devices: measurements that it asked for, how many of them earlier or simultaneous searches
    had asked for, and the minutes that the devices measured for this search.
    """

    cache_hits: int
    device_minutes: float
    measurements: int


class ModelList(TypedDict):
    """The zoo, and one page of uploaded checkpoints."""

    architectures: list[Architecture]
    items: list[ModelView]
    next: str | None


class ModelView(TypedDict):
    architecture: str
    created_at: str | None
    id: str
    name: str
    sha256: str


class NetworkView(TypedDict):
    """A network. `sha256` is that of its `.kerf` file, which a config names as `model.network`; `source_sha256` that of
    what was sent. `input_shape` is that of one image, `outputs` names nodes; `notes` say what a conversion left out.
    """

    created_at: str | None
    format: NetworkFileFormat
    id: str
    input_shape: list[int]
    name: str
    notes: list[str]
    num_nodes: int
    outputs: list[str]
    parameters: int
    sha256: str
    source_sha256: str


class NewToken(TypedDict):
    """`secret` is shown once: it is stored hashed."""

    secret: str
    token: TokenView


class Pardon(TypedDict):
    """How many tasks no longer count against the subject."""

    subject: str
    tasks: int


class PredictedLatency(TypedDict):
    """What a model says of a kernel. `predicted` is false where the series has the kernel measured: then the figure is
    that, and its uncertainty. `extrapolated` where the series has no kernel that runs the same kind of code: its
    uncertainty is then larger than said.
    """

    ci95_high_ns: float
    ci95_low_ns: float
    extrapolated: bool
    kernel_id: str
    latency_ns: float
    predicted: bool
    std_ns: float


class PredictionAnswer(TypedDict):
    """`latencies` has one entry for each kernel asked for, in that order, by `model`."""

    latencies: list[PredictedLatency]
    model: LatencyModelView


class ProfitMap(TypedDict):
    """Pruned kernels of one series. Counts say how many pay, cost and are open beyond noise, and for how many there is
    no dense kernel; `ambiguous` kernels were measured in several modes and are in none of them.

    Counts are of the whole series; `kernels` are a part of it, and `next` is the cursor of the next one. `computed_at`
    is when a worker made the map, null where it was made for this answer; `is_stale` where the series has grown since.
    """

    ambiguous: int
    computed_at: str | None
    costing: int
    is_stale: bool
    kernels: list[KernelProfit]
    next: str | None
    paying: int
    series: SeriesView
    undecided: int
    without_dense: int


class Provenance(TypedDict):
    """What produced a measurement: with device, kernel and setup, its key."""

    affinity: list[int]
    agent_version: str
    governor: str | None
    isa: str
    mode: str
    runtime: str
    runtime_sha256: str
    runtime_version: str
    source: Source
    threads: int


class QuarantineView(TypedDict):
    """A kernel or network (`subject`) that one version of a runtime does not survive. Where `is_everywhere`, no device
    with that runtime is asked to measure it; else only those among its casualties are not.
    """

    artifact_sha256: str | None
    casualties: list[CasualtyView]
    is_everywhere: bool
    kernel_id: str | None
    runtime: str
    runtime_sha256: str
    runtime_version: str
    subject: str


class RatioSummary(TypedDict):
    """Many ratios in one figure: the geometric mean, which is the same whichever side is divided by.

    `ci95` is an interval of that mean over kernels like these (Student's t on the logarithms); None for fewer than two.
    `differing` counts the kernels whose own interval leaves 1 out, of the `with_interval` that have one.
    """

    ci95: list[float] | None
    count: int
    differing: int
    geometric_mean: float
    largest: float
    median: float
    smallest: float
    with_interval: int


class RuntimeInfo(TypedDict):
    """A runtime as probed on the device: its version and the hash of the binary that does the work.

    `isa` is the instruction set it dispatches to. `sparse_1x1` tells whether XNNPACK's sparse path was seen taken; None
    where it does not apply or could not be probed. A runtime that cannot run is listed with the reason in
    `unavailable`.
    """

    binary_sha256: str
    isa: str
    name: str
    sparse_1x1: bool | None
    unavailable: str | None
    version: str


class SearchView(TypedDict):
    config: dict[str, Any]
    created_at: str | None
    device_id: str
    device_ids: list[str]
    error: str | None
    finished_at: str | None
    id: str
    measuring: dict[str, MeasuringEffort] | None
    name: str
    progress: dict[str, Any]
    stage: JobStage
    started_at: str | None
    state: JobState


class SeriesCard(TypedDict):
    """How far predictions from one series can be trusted. Nothing of another series is in it but whole networks, whose
    series differs in the measuring setup alone.

    `table` are kernels between two neighbours of the table, predicted from those; `model` kernels predicted by the
    latency model that was fitted without them (five parts). `networks` are those that searches on this series predicted
    and then measured. `without_model` says why there is no `model`. `device_minutes` is what measuring the series took.
    """

    device_minutes: float
    families: list[FamilyErrors]
    kernel_points: list[CardPoint]
    model: ErrorSummary | None
    network_points: list[CardPoint]
    networks: ErrorSummary | None
    num_kernels: int
    num_measurements: int
    table: ErrorSummary | None
    verdicts: dict[str, int]
    without_model: str


class SeriesView(TypedDict):
    """Figures of one provenance on one device: only these stand beside each other unasked. All but the counts and times
    is the key.
    """

    affinity: list[int]
    agent_version: str
    device_id: str
    first_at: str | None
    governor: str | None
    id: str
    isa: str
    last_at: str | None
    num_measurements: int
    profile_id: str
    runtime: str
    runtime_sha256: str
    runtime_version: str
    setup_id: str
    source: Source
    threads: int


class Statistics(TypedDict):
    """Derived from the raw samples of the clock that the setup names. Undefined is None, never 0.

    `ci95_low_ns` and `ci95_high_ns` bound the median. Their unit is the block, or the process where there are several.
    `unit_cv` is the coefficient of variation between units. `trimmed_mean_ns` is the mean of the middle 80 %.
    `reference_ratio` is the median over units of candidate / reference: it cancels the drift of the machine. Ratios to
    references of different `reference_name` do not compare.
    """

    ci95_high_ns: float | None
    ci95_low_ns: float | None
    mad_ns: float
    mean_ns: float
    median_ns: float
    min_ns: float
    num_blocks: int
    num_processes: int
    num_samples: int
    p10_ns: float
    p5_ns: float
    p90_ns: float
    p95_ns: float
    reference_name: str | None
    reference_ns: float | None
    reference_ratio: float | None
    stdev_ns: float | None
    trimmed_mean_ns: float | None
    unit_cv: float | None


class TokenView(TypedDict):
    """A token without its secret. `device_id` is set for the token of an agent."""

    created_at: str | None
    device_id: str | None
    expires_at: str | None
    id: str
    last_used_at: str | None
    name: str
    revoked_at: str | None
    scopes: list[Scope]


class Version(TypedDict):
    """`wire` is the version of the agents' messages; agents of another one are refused."""

    schema: str
    version: str
    wire: int


class WeightPruning(TypedDict):
    """How the weights of one kernel are pruned. `density` is the kept part, in (0, 1]."""

    block_channels: int
    block_filters: int
    density: float
    pattern_entries: int
    scheme: PruningScheme


class WorkerView(TypedDict):
    """A process that runs searches. `search_id` is the one in its hands, where the asking user may see it."""

    host: str
    id: str
    last_seen_at: str | None
    name: str
    search_id: str | None
    started_at: str | None
    state: WorkerState
    version: str
