"""Traces, where the extra `telemetry` is installed and somebody takes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.server.server_lab import ServerLab

trace = pytest.importorskip("opentelemetry.trace", reason="needs opentelemetry-sdk: pip install '.[dev]'")
sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk: pip install '.[dev]'")
export = pytest.importorskip("opentelemetry.sdk.trace.export", reason="needs opentelemetry-sdk: pip install '.[dev]'")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Where spans end, with the provider that an operator's configuration would have set for the whole process."""
    provider, exporter = sdk.TracerProvider(), in_memory.InMemorySpanExporter()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def test_a_request_is_a_span_of_the_caller_s_trace(sqlite_lab: ServerLab, exporter: object) -> None:
    search_id = sqlite_lab.search(sqlite_lab.agent().device_id)
    exporter.clear()  # type: ignore[attr-defined]
    parent = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    assert sqlite_lab.get(f"/v1/searches/{search_id}", headers=parent).status_code == 200
    assert sqlite_lab.get("/v1/searches/search_0").status_code == 404
    spans = exporter.get_finished_spans()  # type: ignore[attr-defined]
    served = [span for span in spans if span.kind is trace.SpanKind.SERVER]
    assert [(span.name, span.attributes["http.route"]) for span in served] == [
        ("GET /v1/searches/{search_id}", "/v1/searches/{search_id}")
    ] * 2
    assert [span.attributes["http.response.status_code"] for span in served] == [200, 404]
    found, other = served
    assert (f"{found.context.trace_id:032x}", f"{found.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
    assert other.parent is None
    # A token is nothing that a collector may see.
    told = " ".join(span.to_json() for span in spans)
    assert sqlite_lab.user not in told
