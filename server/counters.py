"""What one server process counts, for /metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram

from device_agent.contracts import Measurement, ReportBatch, ReportReceipt, ReportStatus


class Counters:
    """What one process counts. Safe to use from several threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "kerf_http_requests", "Answered requests", ["method", "route", "status"], registry=self.registry
        )
        self.duration = Histogram(
            "kerf_http_request_duration_seconds",
            "Time from a request to the end of its answer; long polls and event streams are left out",
            ["route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0),
            registry=self.registry,
        )
        self.reports = Counter(
            "kerf_reports", "Reports of agents: accepted, late or duplicate", ["status"], registry=self.registry
        )
        self.unknown_reports = Counter(
            "kerf_reports_of_unknown_tasks", "Reports of tasks that are not in this database", registry=self.registry
        )
        self.measurements = Counter(
            "kerf_measurements", "Accepted measurements by the verdict that they came with", ["verdict"],
            registry=self.registry,
        )  # fmt: skip
        self.failures = Counter(
            "kerf_measurement_failures", "Accepted failures by their reason", ["reason"], registry=self.registry
        )
        self.device_seconds = Counter(
            "kerf_device_busy_seconds", "Time that devices spent on accepted measurements", registry=self.registry
        )

    def took_reports(self, batch: ReportBatch, receipts: Iterable[ReportReceipt]) -> None:
        """Count a batch, once it is stored."""
        for report, receipt in zip(batch.reports, receipts, strict=True):
            self.reports.labels(receipt.status.value).inc()
            if receipt.status is not ReportStatus.ACCEPTED:
                continue
            if isinstance(report.result, Measurement):
                self.measurements.labels(report.result.verdict.value).inc()
                self.device_seconds.inc(max(0.0, report.result.duration_s))
            else:
                self.failures.labels(report.result.reason.value).inc()
