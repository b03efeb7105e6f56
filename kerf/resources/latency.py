"""/v1/latencies and what belongs to them: the latency database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import httpx

from kerf.files import Download
from kerf.operations import Request, operation, procedure
from kerf.resources.artifacts import TRANSFER_TIMEOUT_S, ArtifactOperations
from kerf.resources.base import DEFAULT_LIMIT, AsyncBound, Bound, Items, Page, SyncBound, collect
from kerf.schemas import (
    CardView,
    Comparison,
    ImportAnswer,
    KernelView,
    LatencyAnswer,
    LatencyModelView,
    LatencyView,
    MeasurementView,
    Op,
    Pardon,
    PredictionAnswer,
    ProfitMap,
    PruningScheme,
    QuarantineView,
    ReportStatus,
    SeriesView,
    Source,
    TableFormat,
    Verdict,
)

#: An import of the largest file takes a slow server a while.
IMPORT_TIMEOUT_S = 300.0


class LatencyFilter(TypedDict, total=False):
    """Which latencies. `device` is an id or a name; densities are inclusive, in 0 to 1."""

    device: str | None
    series: str | None
    runtime: str | None
    runtime_version: str | None
    source: Source | None
    verdict: Verdict | None
    op: Op | None
    in_channels: int | None
    out_channels: int | None
    input_h: int | None
    kernel_h: int | None
    stride: int | None
    scheme: PruningScheme | None
    min_density: float | None
    max_density: float | None


class KernelFilter(TypedDict, total=False):
    """Which kernels."""

    op: Op | None
    scheme: PruningScheme | None
    in_channels: int | None
    out_channels: int | None


class MeasurementFilter(TypedDict, total=False):
    """Which measurements."""

    device_id: str | None
    kernel_id: str | None
    task_id: str | None
    setup_id: str | None
    runtime: str | None
    verdict: Verdict | None
    source: Source | None
    status: ReportStatus | None


class Sides(TypedDict, total=False):
    """Two series. A device, with or without a runtime, may stand for its only one."""

    first_series: str | None
    first_device: str | None
    first_runtime: str | None
    second_series: str | None
    second_device: str | None
    second_runtime: str | None


class LatencyOperations(Bound):
    """Figures of kernels, the series that they are of, and the models that predict others."""

    @operation("GET", "/v1/latencies")
    def page(
        self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None, **wanted: Unpack[LatencyFilter]
    ) -> Request[Page[LatencyView]]:
        """One page of the figures that fit."""
        return Request(query={**wanted, "limit": limit, "cursor": cursor})

    @procedure
    async def list(
        self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None, **wanted: Unpack[LatencyFilter]
    ) -> Items[LatencyView]:
        """Up to `limit` figures: the latest usable one of each kernel in each series. Nanoseconds."""
        return await collect(self.session, partial(LatencyOperations.page.prepare, **wanted), limit, cursor)

    @operation("POST", "/v1/latency:query", is_repeatable=True)
    def query(
        self,
        *,
        device_id: str,
        kernels: Sequence[Mapping[str, Any]],
        setup: Mapping[str, Any],
        runtime_version: str | None = None,
        series_id: str | None = None,
    ) -> Request[LatencyAnswer]:
        """The figures of exactly these kernels in one series; None for what it does not have."""
        body = {"device_id": device_id, "kernels": [dict(kernel) for kernel in kernels], "setup": dict(setup)}
        return Request(json={**body, "runtime_version": runtime_version, "series_id": series_id})

    @operation("GET", "/v1/latency:export")
    def export(
        self, target: str | Path, *, format: TableFormat = "csv", **wanted: Unpack[LatencyFilter]
    ) -> Request[int]:
        """Write every measurement that fits into `target`, which appears when it is whole; returns its bytes."""
        download = Download(Path(target))

        def size(_: httpx.Response) -> int:
            return download.size_bytes

        return Request(query={**wanted, "format": format}, download=download, timeout_s=TRANSFER_TIMEOUT_S, read=size)

    @operation("POST", "/v1/latency:import", is_repeatable=True)
    def import_artifact(
        self, *, device: str, file_name: str, file_sha256: str, mapping: Mapping[str, Any] | None = None
    ) -> Request[ImportAnswer]:
        """Take the latencies of an uploaded file in; see `import_file`."""
        body = {"device": device, "file_name": file_name, "file_sha256": file_sha256, "mapping": mapping}
        return Request(json=body, timeout_s=IMPORT_TIMEOUT_S)

    @procedure
    async def import_file(
        self, path: str | Path, *, device: str, mapping: Mapping[str, Any] | None = None
    ) -> ImportAnswer:
        """Take latencies that others measured in, as those of the imported device `device`. Nothing is added twice."""
        file = Path(path)
        digest = await ArtifactOperations.upload.start(self, file)
        wanted = LatencyOperations.import_artifact.prepare(
            device=device, file_name=file.name, file_sha256=digest, mapping=mapping
        )
        return await self.session.call(wanted)

    @operation("GET", "/v1/latency:compare")
    def compare(self, *, limit: int = DEFAULT_LIMIT, **sides: Unpack[Sides]) -> Request[Comparison]:
        """The kernels that two series have in common: ratio second / first."""
        return Request(query={**sides, "limit": limit})

    @operation("GET", "/v1/latency:profit")
    def profit(
        self,
        *,
        device: str | None = None,
        runtime: str | None = None,
        series: str | None = None,
        cursor: str | None = None,
    ) -> Request[ProfitMap]:
        """How much faster than its dense kernel each pruned one of a series is: some shapes, and where to go on."""
        return Request(query={"device": device, "runtime": runtime, "series": series, "cursor": cursor})

    @operation("POST", "/v1/latency:predict", is_repeatable=True)
    def predict(self, series_id: str, kernels: Sequence[Mapping[str, Any]]) -> Request[PredictionAnswer]:
        """The latency of kernels by the model of a series, in their order; what was not measured says so."""
        return Request(json={"series_id": series_id, "kernels": [dict(kernel) for kernel in kernels]})

    @operation("GET", "/v1/latency-series")
    def series_page(
        self,
        *,
        device: str | None = None,
        runtime: str | None = None,
        limit: int = DEFAULT_LIMIT,
        cursor: str | None = None,
    ) -> Request[Page[SeriesView]]:
        """One page of the series."""
        return Request(query={"device": device, "runtime": runtime, "limit": limit, "cursor": cursor})

    @procedure
    async def series(
        self, *, device: str | None = None, runtime: str | None = None, limit: int = 1000, cursor: str | None = None
    ) -> Items[SeriesView]:
        """Up to `limit` series: the keys under which figures may stand beside each other."""
        page = partial(LatencyOperations.series_page.prepare, device=device, runtime=runtime)
        return await collect(self.session, page, limit, cursor)

    @operation("GET", "/v1/quarantine")
    def quarantine_page(
        self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> Request[Page[QuarantineView]]:
        """One page of what is in quarantine."""
        return Request(query={"limit": limit, "cursor": cursor})

    @procedure
    async def quarantine(self, *, limit: int = 1000, cursor: str | None = None) -> Items[QuarantineView]:
        """Up to `limit` kernels and networks that took their process or device down each time, and are not tried."""
        return await collect(self.session, LatencyOperations.quarantine_page.prepare, limit, cursor)

    @operation("POST", "/v1/quarantine/{subject}:pardon")
    def pardon(self, subject: str) -> Request[Pardon]:
        """Let a kernel or network in quarantine be tried again on every device."""
        return Request(path={"subject": subject})

    @operation("GET", "/v1/latency-series/{series_id}/card")
    def card(self, series_id: str) -> Request[CardView]:
        """How far predictions from a series can be trusted, and whether its device has drifted."""
        return Request(path={"series_id": series_id})

    @operation("GET", "/v1/latency-series/{series_id}/model")
    def model(self, series_id: str) -> Request[LatencyModelView]:
        """Whether a series has a latency model, how old it is, and what it starts from."""
        return Request(path={"series_id": series_id})

    @operation("PUT", "/v1/latency-series/{series_id}/model")
    def fit_model(self, series_id: str, *, from_series_id: str | None = None) -> Request[LatencyModelView]:
        """Have the model of a series fitted anew by a worker, starting from another series or from none."""
        return Request(path={"series_id": series_id}, json={"from_series_id": from_series_id})

    @operation("GET", "/v1/latency-series/{series_id}/model:export")
    def export_model(self, series_id: str) -> Request[bytes]:
        """The model of a series as versioned JSON. Equal models are equal bytes."""
        return Request(path={"series_id": series_id}, read=_content)

    @operation("GET", "/v1/kernels")
    def kernels_page(
        self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None, **wanted: Unpack[KernelFilter]
    ) -> Request[Page[KernelView]]:
        """One page of the kernels."""
        return Request(query={**wanted, "limit": limit, "cursor": cursor})

    @procedure
    async def kernels(
        self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None, **wanted: Unpack[KernelFilter]
    ) -> Items[KernelView]:
        """Up to `limit` kernels that were ever asked for."""
        return await collect(self.session, partial(LatencyOperations.kernels_page.prepare, **wanted), limit, cursor)

    @operation("GET", "/v1/kernels/{id_}")
    def kernel(self, kernel_id: str) -> Request[KernelView]:
        """One kernel."""
        return Request(path={"id_": kernel_id})

    @operation("GET", "/v1/measurements")
    def measurements_page(
        self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None, **wanted: Unpack[MeasurementFilter]
    ) -> Request[Page[MeasurementView]]:
        """One page of the measurements."""
        return Request(query={**wanted, "limit": limit, "cursor": cursor})

    @procedure
    async def measurements(
        self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None, **wanted: Unpack[MeasurementFilter]
    ) -> Items[MeasurementView]:
        """Up to `limit` measurements, the newest first."""
        page = partial(LatencyOperations.measurements_page.prepare, **wanted)
        return await collect(self.session, page, limit, cursor)

    @operation("GET", "/v1/measurements/{result_key}/raw")
    def raw_measurement(self, result_key: str) -> Request[dict[str, Any]]:
        """The whole measurement as the agent sent it, samples included."""
        return Request(path={"result_key": result_key})


class LatencyDatabase(LatencyOperations, SyncBound):
    pass


class AsyncLatencyDatabase(LatencyOperations, AsyncBound):
    pass


def _content(response: httpx.Response) -> bytes:
    return response.content
