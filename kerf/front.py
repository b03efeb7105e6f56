"""The front that a search found, as a table and as a picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerf.errors import NotConfigured
from search.domain.result import FrontPoint, SearchResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REMEDY = "pip install 'kerf[notebook]'"


class Front(Sequence[FrontPoint]):
    """The points of a completed search, fastest first, each trained, exported and measured on the device."""

    def __init__(self, result: SearchResult) -> None:
        self.result = result

    def __len__(self) -> int:
        return len(self.result.front)

    def __getitem__(self, place: Any) -> Any:
        return self.result.front[place]

    def __iter__(self) -> Iterator[FrontPoint]:
        return iter(self.result.front)

    def __repr__(self) -> str:
        found = self.result
        return f"<Front of {len(self)} networks: {found.search.name!r} by {found.search.method} on {found.device.name}>"

    def rows(self) -> list[dict[str, Any]]:
        """A row for each point: accuracies as fractions, latencies in ms with their 95 % interval, sizes, verdict."""
        dense = self.result.baseline.latency_ms.tflite_dense
        return [_row(point, dense) for point in self]

    def to_dataframe(self) -> Any:
        """`rows` as a pandas DataFrame, indexed by candidate. Raises `NotConfigured` where there is no pandas."""
        try:
            import pandas
        except ImportError as error:
            raise NotConfigured(f"to_dataframe needs pandas, which is not installed: {_REMEDY}") from error
        return pandas.DataFrame(self.rows(), columns=list(_COLUMNS)).set_index("candidate")

    def plot(self) -> FrontPlot:
        """Measured latency against accuracy. A notebook shows it; `save` writes it. Raises `NotConfigured` where there
        is no matplotlib.
        """
        try:
            from search.plot import front_figure
        except ImportError as error:
            raise NotConfigured(f"plot needs matplotlib, which is not installed: {_REMEDY}") from error
        return FrontPlot(front_figure(self.result))

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in _COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_text(row[name]))}</td>" for name in _COLUMNS) + "</tr>"
            for row in self.rows()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class FrontPlot:
    """A picture of a front. `figure` is matplotlib's, for changes of one's own."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    def save(self, path: str | Path) -> None:
        """Write it; the name's end says as what: .png, .svg, .pdf."""
        self.figure.savefig(path)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        return buffer.getvalue()


_COLUMNS = (
    "candidate",
    "accuracy",
    "accuracy_ci95_low",
    "accuracy_ci95_high",
    "accuracy_estimate",
    "measured_latency_ms",
    "latency_ci95_low_ms",
    "latency_ci95_high_ms",
    "predicted_latency_ms",
    "speed_up_over_tflite",
    "verdict",
    "macs",
    "parameters",
    "model_bytes",
    "output_max_abs_error",
    "failure",
)


def _row(point: FrontPoint, dense_ms: float | None) -> dict[str, Any]:
    latency, accuracy = point.latency_ci95_ms or (None, None), point.accuracy_ci95 or (None, None)
    measured = point.measured_latency_ms
    values: Mapping[str, Any] = {
        "candidate": point.candidate_id,
        "accuracy_ci95_low": accuracy[0],
        "accuracy_ci95_high": accuracy[1],
        "latency_ci95_low_ms": latency[0],
        "latency_ci95_high_ms": latency[1],
        "speed_up_over_tflite": None if measured is None or dense_ms is None else dense_ms / measured,
        "verdict": None if point.verdict is None else point.verdict.value,
    }
    return {name: values[name] if name in values else getattr(point, name) for name in _COLUMNS}


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
