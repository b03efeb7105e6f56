"""What is asked of a large database: every page of the dashboard, and every latency query of the REST API.

Each question is asked with values drawn by chance from what there is, so that no two requests are the same, and with
filters that fit many rows, few, and none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import select

from device_agent.contracts import KernelSpec, MeasuringSetup, decode, encode
from server.context import Context
from server.models import DeviceRow, KernelRow, LatencyRow, MeasurementRow, SeriesRow

#: Kernels of one question about given ones, as a search asks them.
ASKED_KERNELS = 200
#: Rows that values are drawn from.
_DRAWN_FROM = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`json` makes it a POST."""

    path: str
    params: Mapping[str, Any]
    json: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A kind of request. `pages` beyond the first are followed, as the cursor of an answer says."""

    name: str
    make: Callable[[np.random.Generator], Request]
    follow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What there is to ask for. Series begin with the largest."""

    series: tuple[SeriesRow, ...]
    devices: tuple[str, ...]
    kernels: tuple[tuple[str, KernelSpec], ...]
    #: (series, kernel) pairs of the roll-up, and result keys of old and new measurements.
    places: tuple[tuple[str, str], ...]
    result_keys: tuple[str, ...]
    search_id: str
    candidate_id: str
    #: Series whose card, profit map and model a worker has made.
    made: tuple[str, ...]

    @classmethod
    def of(cls, context: Context, search_id: str, candidate_id: str, *, made: tuple[str, ...]) -> Stock:
        with context.database.read() as session:
            series = session.scalars(select(SeriesRow).order_by(SeriesRow.num_measurements.desc())).all()
            series = [row for row in series if row.source.value == "simulated" and row.num_measurements > 0]
            devices = session.scalars(select(DeviceRow.id).order_by(DeviceRow.id)).all()
            found = session.execute(select(KernelRow.id, KernelRow.spec).order_by(KernelRow.id).limit(_DRAWN_FROM))
            kernels = tuple((identity, decode(KernelSpec, spec)) for identity, spec in found)
            places = session.execute(
                select(LatencyRow.series_id, LatencyRow.kernel_id).where(
                    LatencyRow.kernel_id.in_([identity for identity, _ in kernels])
                )
            ).all()
            newest = select(MeasurementRow.result_key).order_by(MeasurementRow.result_key.desc()).limit(_DRAWN_FROM)
            keys = session.scalars(newest).all()
        return cls(
            series=tuple(series),
            devices=tuple(devices),
            kernels=kernels,
            places=tuple((row[0], row[1]) for row in places),
            result_keys=tuple(keys),
            search_id=search_id,
            candidate_id=candidate_id,
            made=made,
        )


def _one(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def questions(stock: Stock, *, models: bool) -> list[Question]:
    """All of them, pages first; those that a latency model answers only where there are `models`."""

    def fixed(path: str, **params: Any) -> Callable[[np.random.Generator], Request]:
        return lambda rng: Request(path=path, params=params)

    def series(rng: np.random.Generator) -> str:
        return str(_one(rng, stock.series).id)

    def shape(rng: np.random.Generator) -> dict[str, Any]:
        _, kernel = _one(rng, stock.kernels)
        return {
            "op": kernel.op.value,
            "in_channels": kernel.in_channels,
            "out_channels": kernel.out_channels,
            "input_h": kernel.input_h,
            "kernel_h": kernel.kernel_h,
        }

    def channels(rng: np.random.Generator) -> dict[str, Any]:
        _, kernel = _one(rng, stock.kernels)
        return {"in_channels": kernel.in_channels, "min_density": 0.25, "max_density": 0.45}

    def common(rng: np.random.Generator) -> dict[str, Any]:
        return {"op": _one(rng, ("conv2d", "fully_connected")), "scheme": _one(rng, ("group", "unstructured"))}

    def absent(rng: np.random.Generator) -> dict[str, Any]:
        """Many kernels fit, and none has this verdict in the roll-up."""
        return {"op": "conv2d", "scheme": "group", "verdict": "rejected"}

    def explorer(filters: Callable[[np.random.Generator], dict[str, Any]] | None = None) -> Callable[..., Request]:
        def make(rng: np.random.Generator) -> Request:
            return Request(path="/explorer", params={"series": series(rng), **(filters(rng) if filters else {})})

        return make

    def listing(
        filters: Callable[[np.random.Generator], dict[str, Any]], *, within: str = ""
    ) -> Callable[[np.random.Generator], Request]:
        def make(rng: np.random.Generator) -> Request:
            params = filters(rng)
            if within == "series":
                params["series"] = series(rng)
            elif within == "device":
                params["device"] = _one(rng, stock.devices)
            return Request(path="/v1/latencies", params=params)

        return make

    def sides(path: str, first: str, second: str) -> Callable[[np.random.Generator], Request]:
        def make(rng: np.random.Generator) -> Request:
            # The two largest among them, of other runtimes or devices.
            a, b = rng.permutation(min(8, len(stock.series)))[:2].tolist()
            return Request(path=path, params={first: stock.series[a].id, second: stock.series[b].id})

        return make

    def kernel_page(rng: np.random.Generator) -> Request:
        place = _one(rng, stock.places)
        return Request(path=f"/series/{place[0]}/kernels/{place[1]}", params={})

    def of_made(pattern: str, **params: Any) -> Callable[[np.random.Generator], Request]:
        return lambda rng: Request(path=pattern.format(_one(rng, stock.made)), params=params)

    def measurements(**names: Any) -> Callable[[np.random.Generator], Request]:
        def make(rng: np.random.Generator) -> Request:
            values = {name: value(rng) if callable(value) else value for name, value in names.items()}
            return Request(path="/v1/measurements", params=values)

        return make

    def asked(rng: np.random.Generator) -> Request:
        row = _one(rng, stock.series)
        picked = [_one(rng, stock.kernels)[1] for _ in range(ASKED_KERNELS)]
        body = {
            "device_id": row.device_id,
            "series_id": row.id,
            "kernels": [encode(kernel) for kernel in picked],
            "setup": encode(MeasuringSetup(runtime=row.runtime)),
        }
        return Request(path="/v1/latency:query", params={}, json=body)

    def predicted(rng: np.random.Generator) -> Request:
        picked = [encode(_one(rng, stock.kernels)[1]) for _ in range(ASKED_KERNELS)]
        return Request(
            path="/v1/latency:predict", params={}, json={"series_id": _one(rng, stock.made), "kernels": picked}
        )

    def device(rng: np.random.Generator) -> str:
        return str(_one(rng, stock.devices))

    def kernel(rng: np.random.Generator) -> str:
        return str(_one(rng, stock.kernels)[0])

    search = f"/searches/{stock.search_id}"
    return [
        Question(name="page: overview", make=fixed("/")),
        Question(name="page: queue", make=fixed("/queue")),
        Question(name="page: quarantine", make=fixed("/quarantine")),
        Question(name="page: enrol", make=fixed("/enrol")),
        Question(name="page: device", make=lambda rng: Request(path=f"/devices/{device(rng)}", params={})),
        Question(name="page: search", make=fixed(search)),
        Question(name="page: search, chart", make=fixed(f"{search}/front.json")),
        Question(name="page: candidate", make=fixed(f"{search}/candidates/{stock.candidate_id}")),
        Question(name="page: explorer, first", make=fixed("/explorer")),
        Question(name="page: explorer, a series", make=explorer(), follow=True),
        Question(name="page: explorer, a shape", make=explorer(shape), follow=True),
        Question(name="page: explorer, channels and densities", make=explorer(channels), follow=True),
        Question(name="page: explorer, operator and scheme", make=explorer(common), follow=True),
        Question(name="page: explorer, nothing fits", make=explorer(absent), follow=True),
        Question(name="page: kernel with curves", make=kernel_page),
        Question(name="page: model card", make=of_made("/series/{}")),
        Question(name="page: profit map", make=of_made("/series/{}/profit", page=2)),
        Question(name="page: compare, choices", make=fixed("/compare")),
        Question(name="page: compare, two large series", make=sides("/compare", "first", "second")),
        Question(name="GET latencies", make=listing(lambda rng: {}), follow=True),
        Question(name="GET latencies, 500 rows", make=listing(lambda rng: {"limit": 500}), follow=True),
        Question(name="GET latencies, a shape", make=listing(shape), follow=True),
        Question(name="GET latencies, a shape in a series", make=listing(shape, within="series"), follow=True),
        Question(name="GET latencies, channels of a device", make=listing(channels, within="device"), follow=True),
        Question(name="GET latencies, operator and scheme", make=listing(common), follow=True),
        Question(name="GET latencies, nothing fits", make=listing(absent), follow=True),
        Question(name="GET latencies, no such source", make=listing(lambda rng: {"source": "imported"})),
        Question(name="GET latency-series", make=fixed("/v1/latency-series")),
        Question(name="GET latency-series card", make=of_made("/v1/latency-series/{}/card")),
        Question(name="GET latency-series model", make=of_made("/v1/latency-series/{}/model")),
        Question(name="GET latency:compare", make=sides("/v1/latency:compare", "first_series", "second_series")),
        Question(
            name="GET latency:profit",
            make=lambda rng: Request(path="/v1/latency:profit", params={"series": _one(rng, stock.made)}),
            follow=True,
        ),
        Question(name=f"POST latency:query, {ASKED_KERNELS} kernels", make=asked),
        *([Question(name=f"POST latency:predict, {ASKED_KERNELS} kernels", make=predicted)] if models else []),
        Question(name="GET kernels", make=fixed("/v1/kernels"), follow=True),
        Question(
            name="GET kernels, filtered",
            make=lambda rng: Request(path="/v1/kernels", params={"in_channels": channels(rng)["in_channels"]}),
            follow=True,
        ),
        Question(name="GET kernel", make=lambda rng: Request(path=f"/v1/kernels/{kernel(rng)}", params={})),
        Question(name="GET measurements", make=measurements(), follow=True),
        Question(name="GET measurements, a device", make=measurements(device_id=device), follow=True),
        Question(name="GET measurements, a kernel", make=measurements(kernel_id=kernel), follow=True),
        Question(
            name="GET measurements, a kernel on a device",
            make=measurements(kernel_id=kernel, device_id=device),
            follow=True,
        ),
        Question(
            name="GET measurements, rejected of a device",
            make=measurements(device_id=device, verdict="rejected"),
            follow=True,
        ),
        Question(name="GET measurements, nothing fits", make=measurements(status="late"), follow=True),
    ]
