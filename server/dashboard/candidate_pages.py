"""What the pages and reports of candidates show, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from search.latency_axis import LatencyUnit
from server.dashboard.pages import BudgetRow, DeviceLink, Fact, FrontRow, Tile
from server.dashboard.pictures import LinePicture


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """A layer's part of the predicted latency on one device, and as a part of the slowest layer's."""

    latency_ms: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One operator of a candidate. `scheme` is "" and `density` None for operators without weights."""

    name: str
    op: str
    channels: str
    extent: str
    scheme: str
    density: float | None
    macs: int
    times: tuple[LayerTime, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateLayers:
    """The layers of one candidate of a report; `summary` is its latency and accuracy in words."""

    candidate_id: str
    summary: str
    layers: tuple[LayerRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportDevice:
    """A device of a report: facts, and the series that its measurements are in."""

    name: str
    source: str
    facts: tuple[Fact, ...]
    series: tuple[ReportSeries, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSeries:
    """`verdicts` in words, such as "trusted 212, noisy 3"."""

    series_id: str
    runtime: str
    agent_version: str
    verdicts: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPage:
    """A finished search as one file. Names shared with `SearchPage` mean the same; pictures are data addresses.

    `config` is the resolved config as YAML.
    """

    search_id: str
    name: str
    metric: str
    source: str
    devices: tuple[DeviceLink, ...]
    over_devices: str
    tiles: tuple[Tile, ...]
    chosen: tuple[FrontRow, ...]
    others: tuple[FrontRow, ...]
    budgets: tuple[BudgetRow, ...]
    unit: LatencyUnit
    growth: LinePicture | None
    picture_light: str
    picture_dark: str
    picture_text: str
    candidates: tuple[CandidateLayers, ...]
    method: tuple[Fact, ...]
    hardware: tuple[ReportDevice, ...]
    versions: tuple[Fact, ...]
    commands: tuple[str, ...]
    config: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatePage:
    """One candidate of a search. `layers` are empty where `without_layers` says why. Other names as in `SearchPage`."""

    search_id: str
    search_name: str
    metric: str
    source: str
    row: FrontRow
    devices: tuple[DeviceLink, ...]
    over_devices: str
    unit: LatencyUnit
    layers: tuple[LayerRow, ...]
    without_layers: str
    parts: tuple[Tile, ...]
