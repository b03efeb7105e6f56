"""`kerf latency`: the latency database from the command line. Everything goes through REST."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli import latency_models, quarantine
from server.cli.config_file import ConfigFileError
from server.cli.connection import ServerOption, TokenOption, connect
from server.cli.console import JsonOption, make_console, print_items, print_json, tell
from server.cli.yaml_files import read_yaml
from server.dashboard.formats import device_time

app = typer.Typer(help="Query, compare, predict, import and export latencies.", no_args_is_help=True)
app.add_typer(latency_models.model_app, name="model")
app.command()(latency_models.predict)
app.command("quarantine")(quarantine.list_quarantine)
app.command()(quarantine.pardon)


class ExportForm(StrEnum):
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


DeviceOption = Annotated[str | None, typer.Option(help="Id or name of a device.", show_default=False)]
SeriesOption = Annotated[str | None, typer.Option(help="One series; see `kerf latency series`.", show_default=False)]
RuntimeOption = Annotated[str | None, typer.Option(help="native, tflite, ...", show_default=False)]
SourceOption = Annotated[str | None, typer.Option(help="measured, emulated, simulated, imported.", show_default=False)]
VerdictOption = Annotated[str | None, typer.Option(help="trusted, noisy or rejected.", show_default=False)]
OpOption = Annotated[str | None, typer.Option(help="conv2d, depthwise_conv2d, ...", show_default=False)]
SchemeOption = Annotated[str | None, typer.Option(help="dense, unstructured, group, ...", show_default=False)]
DensityOption = Annotated[float | None, typer.Option(help="Inclusive, 0 to 1.", show_default=False)]


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="A .csv, .json, .parquet or .npy file.")],
    device: Annotated[str, typer.Option(help="Name of the imported device; made where it is not there.")],
    mapping: Annotated[
        Path | None,
        typer.Option(help="YAML that says what columns or axes mean; not for a file of `kerf latency export`."),
    ] = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take latencies that others measured into the database, as source `imported`."""
    if not file.is_file():
        raise ConfigFileError(f"{file} is not there")
    columns = None if mapping is None else _read_mapping(mapping)
    with connect(server, token) as client:
        answer = client.latency.import_file(file, device=device, mapping=columns)
    if as_json:
        print_json(answer)
        return
    typer.echo(
        f"{file.name}: {answer['rows']} rows, {answer['added']} added, {answer['already_there']} there before, "
        f"{answer['missing']} not measured; device {answer['device_id']}"
    )


def _read_mapping(path: Path) -> Any:
    data = read_yaml(path, "mapping")
    if not isinstance(data, dict):
        raise ConfigFileError(f"{path} is no mapping: see docs/latency-database.md")
    return data


@app.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    form: Annotated[ExportForm, typer.Option("--format", help="Of the file.")] = ExportForm.CSV,
    device: DeviceOption = None,
    series: SeriesOption = None,
    runtime: RuntimeOption = None,
    source: SourceOption = None,
    verdict: VerdictOption = None,
    op: OpOption = None,
    scheme: SchemeOption = None,
    min_density: DensityOption = None,
    max_density: DensityOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write every kernel measurement that fits, with all of its provenance in each row."""
    wanted = _given(
        device=device,
        series=series,
        runtime=runtime,
        source=source,
        verdict=verdict,
        op=op,
        scheme=scheme,
        min_density=min_density,
        max_density=max_density,
    )
    with connect(server, token) as client:
        size = client.latency.export(output, format=form.value, **wanted)
    tell(f"{output}: {size} bytes", {"file": str(output), "bytes": size}, as_json=as_json)


@app.command()
def query(
    device: DeviceOption = None,
    series: SeriesOption = None,
    runtime: RuntimeOption = None,
    runtime_version: Annotated[
        str | None, typer.Option(help="As `kerf latency series` shows it.", show_default=False)
    ] = None,
    source: SourceOption = None,
    verdict: VerdictOption = None,
    op: OpOption = None,
    in_channels: Annotated[int | None, typer.Option(help="Input channels.", show_default=False)] = None,
    out_channels: Annotated[int | None, typer.Option(help="Output channels.", show_default=False)] = None,
    input_h: Annotated[int | None, typer.Option(help="Height of the input.", show_default=False)] = None,
    kernel_h: Annotated[int | None, typer.Option(help="Height of the window.", show_default=False)] = None,
    stride: Annotated[int | None, typer.Option(help="Stride, of both axes.", show_default=False)] = None,
    scheme: SchemeOption = None,
    min_density: DensityOption = None,
    max_density: DensityOption = None,
    limit: Annotated[int, typer.Option(help="Rows at most.", min=1)] = 50,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the latest usable figure of each kernel in each series."""
    wanted = _given(
        device=device,
        series=series,
        runtime=runtime,
        runtime_version=runtime_version,
        source=source,
        verdict=verdict,
        op=op,
        in_channels=in_channels,
        out_channels=out_channels,
        input_h=input_h,
        kernel_h=kernel_h,
        stride=stride,
        scheme=scheme,
        min_density=min_density,
        max_density=max_density,
    )
    with connect(server, token) as client:
        rows = client.latency.list(limit=limit, **wanted)
    columns = {
        "kernel": lambda r: _kernel_words(r["kernel"]),
        "scheme": lambda r: _pruning_words(r["kernel"]["pruning"]),
        "median": lambda r: _microseconds(r["latency"]["median_ns"]),
        "95 % CI": lambda r: _interval(r["latency"]["ci95_low_ns"], r["latency"]["ci95_high_ns"]),
        "verdict": lambda r: r["latency"]["verdict"],
        "device": lambda r: r["device_name"],
        "runtime": lambda r: f"{r['series']['runtime']} {r['series']['runtime_version']}",
        "source": lambda r: r["series"]["source"],
        "series": lambda r: r["series"]["id"][:10],
    }
    print_items(rows, columns, as_json=as_json)
    if rows.next is not None:
        typer.echo(f"there are more: these are the first {len(rows)} (--limit)", err=True)


@app.command("series")
def list_series(
    device: DeviceOption = None,
    runtime: RuntimeOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """List series: the keys under which figures may stand beside each other."""
    with connect(server, token) as client:
        rows = client.latency.series(**_given(device=device, runtime=runtime))
    columns = {
        "series": lambda s: s["id"],
        "runtime": lambda s: f"{s['runtime']} {s['runtime_version']}",
        "binary": lambda s: s["runtime_sha256"][:8],
        "threads": lambda s: str(s["threads"]),
        "cores": lambda s: " ".join(map(str, s["affinity"])),
        "governor": lambda s: s["governor"] or "",
        "agent": lambda s: s["agent_version"],
        "source": lambda s: s["source"],
        "figures": lambda s: str(s["num_measurements"]),
        "last": lambda s: s["last_at"] or "",
    }
    print_items(rows, columns, as_json=as_json)


@latency_models.predictor_app.command()
@app.command()
def card(
    series: Annotated[str, typer.Argument(help="A series; see `kerf latency series`.")],
    families: Annotated[int, typer.Option(help="Kernel families to list, those with most kernels first.", min=0)] = 10,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far predictions from a series can be trusted, and whether its device has drifted."""
    with connect(server, token) as client:
        found = client.latency.card(series)
    if as_json:
        print_json(found)
        return
    _print_card(found, families)


def _print_card(found: Mapping[str, Any], num_families: int) -> None:
    console = make_console()
    key, drift, figures = found["series"], found["drift"], found["card"]
    console.print(f"{key['id']}: {key['runtime']} {key['runtime_version']}, {key['source']}")
    console.print(
        f"drift alarm since {drift['alarm_since']}"
        if drift["alarm_since"]
        else f"no drift in {len(drift['checks'])} checks"
    )
    if figures is None:
        console.print("no card yet: a worker makes it when it has no search")
        return
    old = ", the series has grown since" if found["is_stale"] else ""
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(figures["verdicts"].items()))
    console.print(
        f"{figures['num_kernels']} kernels, {figures['num_measurements']} measurements ({verdicts}), "
        f"{device_time(figures['device_minutes'])} of the device; made {found['computed_at']}{old}"
    )
    if figures["without_model"]:
        console.print(f"no latency model: {figures['without_model']}")
    rows = [
        {"what": "whole networks, predicted by searches", "errors": figures["networks"]},
        {"what": "kernels, latency model, cross-validated", "errors": figures["model"]},
        {"what": "kernels, table, between neighbours", "errors": figures["table"]},
        *({"what": f["family"], "errors": f["model"] or f["table"]} for f in figures["families"][:num_families]),
    ]
    columns = {
        "predicted": lambda r: r["what"],
        "count": lambda r: str(r["errors"]["count"]),
        "within 5 %": lambda r: f"{r['errors']['within_5_percent']:.0%}",
        "within 10 %": lambda r: f"{r['errors']['within_10_percent']:.0%}",
        "RMSPE": lambda r: f"{r['errors']['rmspe']:.1%}",
        "Spearman": lambda r: "" if r["errors"]["spearman"] is None else f"{r['errors']['spearman']:.3f}",
    }
    print_items([row for row in rows if row["errors"] is not None], columns, as_json=False)


@app.command()
def compare(
    first: Annotated[
        str, typer.Argument(help="A series, or a device that has only one: SERIES, DEVICE or DEVICE/RUNTIME")
    ],
    second: Annotated[str, typer.Argument(help="The same.")],
    limit: Annotated[int, typer.Option(help="Kernels to list, those that differ most first.", min=1, max=500)] = 20,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the kernels that two series have in common: ratio second / first, with 95 % intervals."""
    wanted: dict[str, Any] = {"limit": limit, **_side("first", first), **_side("second", second)}
    with connect(server, token) as client:
        found = client.latency.compare(**wanted)
    if as_json:
        print_json(found)
        return
    _print_comparison(found)


@app.command()
def profit(
    device: DeviceOption = None,
    runtime: RuntimeOption = None,
    series: SeriesOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how much faster than dense each pruned kernel of one series really is, with 95 % intervals."""
    with connect(server, token) as client:
        found = client.latency.profit(**_given(device=device, runtime=runtime, series=series))
        kernels, cursor = list(found["kernels"]), found["next"]
        while cursor is not None:
            part = client.latency.profit(series=found["series"]["id"], cursor=cursor)
            kernels += part["kernels"]
            cursor = part["next"]
    found |= {"kernels": kernels, "next": None}
    if as_json:
        print_json(found)
        return
    columns = {
        "kernel": lambda r: _kernel_words(r["kernel"]),
        "scheme": lambda r: _pruning_words(r["kernel"]["pruning"]),
        "dense": lambda r: "not measured" if r["dense_ns"] is None else _microseconds(r["dense_ns"]),
        "pruned": lambda r: _microseconds(r["pruned_ns"]),
        "x dense": lambda r: "" if r["speed_up"] is None else f"{r['speed_up']:.3f}",
        "95 % CI": lambda r: "" if r["speed_up_ci95"] is None else "{:.3f}-{:.3f}".format(*r["speed_up_ci95"]),
        "pays": lambda r: {True: "yes", False: "no", None: "open"}[r["pays"]] + (" (noisy)" if r["is_noisy"] else ""),
    }
    print_items(found["kernels"], columns, as_json=False)
    typer.echo(
        f"series {found['series']['id']}: {found['paying']} pay, {found['costing']} cost, {found['undecided']} open "
        f"within noise, {found['without_dense']} without a dense kernel, {found['ambiguous']} in several modes"
        + (f"; worked out {found['computed_at']}, the series has grown since" if found["is_stale"] else "")
    )


def _side(name: str, text: str) -> dict[str, str]:
    """A series begins with "s_"; everything else is a device, with a runtime behind a slash."""
    if text.startswith("s_"):
        return {f"{name}_series": text}
    device, _, runtime = text.partition("/")
    return _given(**{f"{name}_device": device, f"{name}_runtime": runtime or None})


def _print_comparison(found: Mapping[str, Any]) -> None:
    console = make_console()
    for name in ("first", "second"):
        side = found[name]
        console.print(
            f"{name:6} {side['id']}: {side['runtime']} {side['runtime_version']}, threads {side['threads']}, "
            f"{side['source']}"
        )
    console.print(f"they differ in: {', '.join(found['differing_parts'])}")
    if found["is_sample"]:
        console.print("both are large: all figures are of a part of their kernels, drawn by chance")
    summary = found["summary"]
    if summary is None:
        console.print("no kernel is in both")
        return
    interval = "" if summary["ci95"] is None else f" ({summary['ci95'][0]:.3f} to {summary['ci95'][1]:.3f})"
    console.print(
        f"second / first over {summary['count']} kernels: {summary['geometric_mean']:.3f}{interval}, "
        f"{summary['smallest']:.3f} to {summary['largest']:.3f}; {summary['differing']} of {summary['with_interval']} "
        f"with intervals differ. Only in first {found['only_first']}, in second {found['only_second']}, "
        f"in several modes {found['ambiguous']}"
    )
    columns = {
        "kernel": lambda r: _kernel_words(r["kernel"]),
        "scheme": lambda r: _pruning_words(r["kernel"]["pruning"]),
        "first": lambda r: _microseconds(r["first_ns"]),
        "second": lambda r: _microseconds(r["second_ns"]),
        "ratio": lambda r: f"{r['ratio']:.3f}",
        "95 % CI": lambda r: "" if r["ratio_ci95"] is None else f"{r['ratio_ci95'][0]:.3f}-{r['ratio_ci95'][1]:.3f}",
        "verdicts": lambda r: f"{r['first_verdict']}, {r['second_verdict']}",
    }
    print_items(found["kernels"], columns, as_json=False)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _kernel_words(kernel: Mapping[str, Any]) -> str:
    return (
        f"{kernel['op']} {kernel['in_channels']}->{kernel['out_channels']} {kernel['kernel_h']}x{kernel['kernel_w']}"
        f"/{kernel['stride']} @{kernel['input_h']}x{kernel['input_w']}"
    )


def _pruning_words(pruning: Mapping[str, Any]) -> str:
    if pruning["scheme"] == "dense":
        return "dense"
    return f"{pruning['scheme']}:{pruning['block_filters']}x{pruning['block_channels']} {pruning['density']:g}"


def _microseconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e3:.2f} us"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low / 1e3:.2f}-{high / 1e3:.2f}"
