"""What each page shows, as plain values: queries fill them, templates read them, and neither knows the other."""

from __future__ import annotations

from dataclasses import dataclass

from search.latency_axis import LatencyUnit
from server.dashboard.pictures import LinePicture, Scatter
from server.dashboard.wording import StateLabel


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who looks. In the open local mode nobody signs in, and so nobody can sign out.

    `may_steer`: pause, resume and cancel searches; `may_enrol`: make codes with which devices enrol. `sees_only` is the
    user whose searches alone are shown; None shows all.
    """

    name: str
    can_sign_out: bool
    may_steer: bool
    may_enrol: bool
    sees_only: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far something is. `total` 0 means that it cannot be told."""

    text: str = ""
    done: int = 0
    total: int = 0

    @property
    def percent(self) -> int:
        return 0 if self.total <= 0 else min(100, 100 * self.done // self.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeView:
    name: str
    version: str
    isa: str
    binary_sha256: str
    unavailable: str | None
    state: StateLabel


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """`seen_s` is the time since the last sign of life, None for an imported device.

    `source` is that of its figures. `temperature_celsius` is that of the last heartbeat, where the device tells it.
    `num_trusted` of its latest `num_judged` measurements are trusted; no page but the overview asks for them.
    """

    device_id: str
    name: str
    state: StateLabel
    machine: str
    cpu_model: str
    num_cores: int
    memory_bytes: int
    source: str
    runtimes: tuple[RuntimeView, ...]
    agent_version: str
    seen_s: float | None
    open_tasks: int
    drifted_series: tuple[str, ...] = ()
    temperature_celsius: float | None = None
    num_trusted: int = 0
    num_judged: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementView:
    """One measurement. `what` says it in words, `detail` the rest of the shape; `reasons` are sentences."""

    what: str
    detail: str
    device_id: str
    device_name: str
    runtime: str
    runtime_version: str
    source: str
    median_ns: float
    ci95_ns: tuple[float, float] | None
    verdict: StateLabel
    reasons: tuple[str, ...]
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRow:
    search_id: str
    name: str
    architecture: str
    method: str
    device_name: str
    source: str
    state: StateLabel
    progress: Progress
    error: str
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewPage:
    searches: tuple[SearchRow, ...]
    more_searches: bool
    devices: tuple[DeviceView, ...]
    more_devices: bool
    measurements: tuple[MeasurementView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """`status` is done, current, failed, stopped or waiting."""

    label: str
    status: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLink:
    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedUp:
    """Times faster than the unpruned network in TFLite; `predicted` where the latency is not measured yet."""

    factor: float
    predicted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLink:
    device_id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFigures:
    """A candidate on one of several devices. None where a stage has not come to it."""

    device: DeviceLink
    predicted_latency_ms: float | None
    measured_latency_ms: float | None
    latency_ci95_ms: tuple[float, float] | None
    speed_up: SpeedUp | None
    verdict: StateLabel | None
    reasons: tuple[str, ...]
    output_max_abs_error: float | None
    failure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontRow:
    """One candidate of the front. None where a stage has not come to it.

    Latencies are over the devices of the search; `devices` has those of each, where there are several. `standing` and
    `tied_with` compare the selected candidates by what was measured (see `search.standing`).
    """

    candidate_id: str
    selected: bool
    predicted_latency_ms: float
    measured_latency_ms: float | None
    latency_ci95_ms: tuple[float, float] | None
    speed_up: SpeedUp | None
    accuracy_estimate: float | None
    accuracy: float | None
    macs: int | None
    verdict: StateLabel | None
    reasons: tuple[str, ...]
    output_max_abs_error: float | None
    failure: str
    files: tuple[FileLink, ...]
    devices: tuple[DeviceFigures, ...] = ()
    accuracy_ci95: tuple[float, float] | None = None
    standing: StateLabel | None = None
    tied_with: tuple[str, ...] = ()
    #: Measured with inherited weights: its latency is known, and neither its test accuracy nor its outputs.
    untrained: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """The best candidate that is `speed_up` times faster than the unpruned network in TFLite, None where none is.

    `is_open`: its measured interval ends beyond the budget.
    """

    speed_up: float
    budget_ms: float
    best: FrontRow | None
    is_open: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    text: str
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPage:
    """`chosen` are the candidates that go through training and verification; `hidden` counts those not listed.

    `metric` says what is called accuracy here, "" where it is that. `objectives` names what the front is taken over,
    and `source` where its latencies come from. `over_devices` says in words what one latency over several devices is;
    "" for a single one.
    """

    search_id: str
    name: str
    architecture: str
    method: str
    seed: int
    metric: str
    devices: tuple[DeviceLink, ...]
    over_devices: str
    source: str
    state: StateLabel
    is_over: bool
    error: str
    has_started: bool
    age_s: float
    stages: tuple[StageView, ...]
    progress: Progress
    tiles: tuple[Tile, ...]
    chosen: tuple[FrontRow, ...]
    others: tuple[FrontRow, ...]
    hidden: int
    has_trained: bool
    has_untrained: bool
    baseline_tflite_ms: float | None
    unit: LatencyUnit
    objectives: str
    events: tuple[EventView, ...]
    budgets: tuple[BudgetRow, ...]
    growth: LinePicture | None
    #: What its state allows: of "pause", "resume" and "cancel".
    actions: tuple[str, ...]
    has_result: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    label: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesView:
    """Figures of one provenance. `change` says why the series began, where it took the place of an earlier one."""

    series_id: str
    runtime: str
    runtime_version: str
    runtime_sha256: str
    threads: int
    cores: str
    governor: str
    agent_version: str
    source: str
    change: str
    num_measurements: int
    since_s: float
    last_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePage:
    device: DeviceView
    hardware: tuple[Fact, ...]
    conditions: tuple[Fact, ...]
    series: tuple[SeriesView, ...]
    more_series: bool
    measurements: tuple[MeasurementView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRow:
    """Errors of one kind of prediction; `spearman` is None where it is not defined."""

    what: str
    count: int
    within_5_percent: float
    within_10_percent: float
    rmspe: float
    spearman: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRow:
    """One drift check; ratios are now / before."""

    outcome: StateLabel
    reference: float | None
    kernels: tuple[float, ...]
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CardPage:
    """How far predictions from one series can be trusted. `tiles` are empty until the card was made."""

    series: SeriesView
    device: DeviceLink
    has_alarm: bool
    is_stale: bool
    made_s: float | None
    tiles: tuple[Tile, ...]
    errors: tuple[ErrorRow, ...]
    families: tuple[ErrorRow, ...]
    more_families: int
    without_model: str
    scatter: Scatter | None
    checks: tuple[DriftRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfitCell:
    """How many times faster than dense; of several kernels in one column the geometric mean, without an interval.

    `level` names the colour: up1 to up3, down1 to down3, or open where the interval has 1 inside.
    """

    speed_up: float
    ci95: tuple[float, float] | None
    level: str
    is_noisy: bool
    num_kernels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfitRow:
    """One shape; a cell for each column of densities, None where nothing was measured."""

    shape: str
    dense_ns: float
    cells: tuple[ProfitCell | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeLink:
    """A scheme of the series, `name` as configs write it."""

    name: str
    words: str
    num_kernels: int
    is_shown: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfitPage:
    """What pruning gains in one series, one scheme at a time; `schemes` are empty where no dense kernel stands beside
    a pruned one. `columns` are densities, or ranges of them. Not `is_made`: the map waits for a worker; `made_s` is how
    long ago one made it, None where it is made with the page.
    """

    series: SeriesView
    device: DeviceLink
    is_made: bool
    is_stale: bool
    made_s: float | None
    tiles: tuple[Tile, ...]
    schemes: tuple[SchemeLink, ...]
    scheme: SchemeLink | None
    columns: tuple[str, ...]
    rows: tuple[ProfitRow, ...]
    num_shapes: int
    page: int
    num_pages: int
