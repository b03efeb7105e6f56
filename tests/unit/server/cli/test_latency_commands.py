"""`kerf latency` against a running server."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from device_agent.contracts import KernelTask, PruningScheme, WeightPruning, decode, encode
from device_agent.contracts.statistics import summarize
from server.cli.config_file import ConfigFileError
from server.cli.main import app
from server.latency.card import refresh_card
from server.latency.exchange.mapping import FIELDS, ImportMapping
from server.latency.kernel_models import refresh_model
from tests.unit.server.server_lab import SETUP, ServerLab, kernel_task, measurement, report_of

RUNNER = CliRunner()
MAPPING = {
    "unit": "ms",
    "latency": "ms",
    "device": {"cpu_model": "Cortex-A55"},
    "columns": {"in_channels": "c", "out_channels": "c"},
    "constants": {"op": "conv2d", "runtime": "theirs", "runtime_version": "1", "threads": 1},
}


def run(*arguments: str | Path) -> str:
    result = RUNNER.invoke(app, ["latency", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_import_query_export_compare(server: ServerLab, tmp_path: Path) -> None:
    table, mapping = tmp_path / "t.csv", tmp_path / "m.yaml"
    table.write_text("c,ms\n8,0.5\n16,1.5\n")
    mapping.write_text(yaml.safe_dump(MAPPING))
    assert "2 rows, 2 added" in run("import", table, "--mapping", mapping, "--device", "theirs")
    assert json.loads(run("import", table, "--mapping", mapping, "--device", "theirs", "--json"))["added"] == 0
    told = run("query", "--device", "theirs", "--in-channels", "16")
    assert "conv2d 16->16" in told
    assert "1500.00 us" in told
    assert "imported" in told
    rows = json.loads(run("query", "--device", "theirs", "--json"))
    assert len(rows) == 2
    assert rows[0]["series"]["id"] in run("series", "--device", "theirs")

    copy = tmp_path / "copy.csv"
    assert "bytes" in run("export", "--device", "theirs", "--output", copy)
    assert copy.read_text().count("\n") == 3
    assert not copy.with_suffix(".csv.part").exists()
    assert "2 added" in run("import", copy, "--device", "again")
    told = run("compare", "theirs", "again/theirs")
    assert "they differ in: device" in told
    assert "over 2 kernels: 1.000" in told
    assert json.loads(run("compare", "theirs", "again", "--json"))["summary"]["count"] == 2


def test_the_page_of_measured_figures(server: ServerLab) -> None:
    agent = server.agent()
    server.tasks(agent, 3)
    leases = server.lease(agent, 3)
    server.report(agent, *(report_of(lease, measurement(100.0 * (i + 1))) for i, lease in enumerate(leases)))
    assert "trusted" in run("query")
    result = RUNNER.invoke(app, ["latency", "query", "--limit", "2"])
    assert "there are more: these are the first 2" in result.output


def test_the_profit_of_pruning(server: ServerLab) -> None:
    """The second kernel was measured while the machine ran at half speed, as the reference kernel shows."""
    agent = server.agent()
    pruning = WeightPruning(scheme=PruningScheme.GROUP, density=0.25, block_filters=4)
    dense, alone = kernel_task(8).kernel, kernel_task(16).kernel
    kernels = [dense, replace(dense, pruning=pruning), replace(alone, pruning=pruning)]
    tasks = [KernelTask(kernel=kernel, setup=SETUP) for kernel in kernels]
    server.source.request(agent.device_id, tasks, server.search(agent.device_id))
    leases = {lease.task.kernel: lease for lease in server.lease(agent, 3)}  # type: ignore[union-attr]
    results = []
    for kernel, median_ns, reference_ns in zip(kernels, (1000.0, 1000.0, 100.0), (5.0, 10.0, 5.0), strict=True):
        found = measurement(median_ns)
        blocks = tuple(replace(block, reference_ns=(reference_ns,) * 2) for block in found.blocks)
        found = replace(found, blocks=blocks, statistics=summarize(blocks, SETUP.clock, reference_name="reference"))
        results.append(report_of(leases[kernel], found))
    server.report(agent, *results)
    told = json.loads(run("profit", "--device", agent.device_id, "--json"))
    assert [told[name] for name in ("paying", "costing", "undecided", "without_dense", "ambiguous")] == [1, 0, 0, 1, 0]
    by_channels = {item["kernel"]["in_channels"]: item for item in told["kernels"]}
    assert by_channels[8]["speed_up"] == pytest.approx(2.0)
    assert by_channels[8]["pays"] is True
    assert by_channels[16]["dense_ns"] is None
    text = run("profit", "--device", agent.device_id, "--runtime", "native")
    assert "1 pay, 0 cost, 0 open within noise, 1 without a dense kernel" in text
    assert "not measured" in text
    assert RUNNER.invoke(app, ["latency", "profit"]).exit_code != 0


PAGE = Path(__file__).parents[4] / "docs" / "latency-database.md"


def test_the_mappings_of_the_page_and_of_the_examples_can_be_read() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert decode(ImportMapping, yaml.safe_load(text)).missing == (0.0,)
    example = PAGE.parents[1] / "examples" / "latency" / "jcw-resnet18-a72.yaml"
    mapping = decode(ImportMapping, yaml.safe_load(example.read_text(encoding="utf-8")))
    assert [len(axis) for axis in mapping.axes] == [20, 9, 9, 11]


def test_the_page_names_every_field() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in FIELDS if f"`{name}`" not in text] == ["dtype", "pad_channels_before", "seed"]


def test_card(server: ServerLab) -> None:
    agent = server.agent()
    server.tasks(agent, 10)
    leases = server.lease(agent, 10)
    server.report(agent, *(report_of(lease, measurement(100.0 * (i + 1))) for i, lease in enumerate(leases)))
    (series,) = json.loads(run("series", "--json"))
    text = run("card", series["id"])
    assert "no card yet" in text
    assert "no drift in 0 checks" in text
    refresh_card(server.database, quiet_s=0.0)
    text = run("card", series["id"])
    assert "10 kernels, 10 measurements" in text
    assert "kernels, latency model, cross-validated" in text
    assert json.loads(run("card", series["id"], "--json"))["card"]["num_kernels"] == 10


def test_model_and_predict(server: ServerLab, tmp_path: Path) -> None:
    agent = server.agent()
    server.tasks(agent, 10)
    leases = server.lease(agent, 10)
    server.report(agent, *(report_of(lease, measurement(100.0 * (i + 1))) for i, lease in enumerate(leases)))
    (found,) = json.loads(run("series", "--json"))
    series = found["id"]
    assert "not fitted yet" in run("model", "show", series)
    refresh_model(server.database, quiet_s=0.0)
    assert "10 kernels, fitted" in run("model", "show", series)
    assert "to be fitted anew" in run("model", "fit", series)

    file = tmp_path / "model.json"
    assert "bytes" in run("model", "export", series, "-o", file)
    assert json.loads(file.read_text())["runtime"] == "native"

    wanted = ("--in-channels", "30", "--out-channels", "16", "--size", "8", "--window", "3", "--scheme", "group:4x1")
    told = run("predict", series, *wanted, "--density", "0.5")
    assert "predicted" in told
    assert "to be fitted anew" in told
    kernels = tmp_path / "kernels.json"
    kernels.write_text(json.dumps([encode(kernel_task(4).kernel), encode(kernel_task(40).kernel)]))
    answer = json.loads(run("predict", series, "--kernels", kernels, "--json"))
    assert [latency["predicted"] for latency in answer["latencies"]] == [False, True]
    kernels.write_text("{}")
    with pytest.raises(ConfigFileError, match="no list of kernels"):
        run("predict", series, "--kernels", kernels)
    with pytest.raises(ConfigFileError, match="--in-channels"):
        run("predict", series)
