"""`kerf latency model` and `kerf latency predict`: kernels that were never measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from device_agent.contracts import KernelSpec, Op, encode
from search.domain.space import SchemeChoice
from server.cli.config_file import ConfigFileError
from server.cli.connection import ServerOption, TokenOption, connect
from server.cli.console import JsonOption, make_console, print_items, print_json, tell
from server.cli.waiting import WaitOption, wait_until

model_app = typer.Typer(help="The latency model of a series.", no_args_is_help=True)
#: The same under the name that predictors of latency have elsewhere, with what belongs to them.
predictor_app = typer.Typer(help="Latency predictors: the models of `kerf latency`.", no_args_is_help=True)

SeriesArgument = Annotated[str, typer.Argument(help="A series; see `kerf latency series`.")]


@predictor_app.command()
@model_app.command()
def show(
    series: SeriesArgument, server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Show whether a series has a model, how old it is, and what it starts from."""
    with connect(server, token) as client:
        _tell(client.latency.model(series), as_json=as_json)


@predictor_app.command()
@model_app.command()
def fit(
    series: SeriesArgument,
    start: Annotated[
        str | None, typer.Option("--from", help="Series of a similar device to start from.", show_default=False)
    ] = None,
    wait: WaitOption = False,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a worker fit the model anew, from its own measurements, or starting from another series.

    A worker comes to it when it has no search; --wait until then.
    """
    with connect(server, token) as client:
        model = client.latency.fit_model(series, from_series_id=start)
        if wait:
            model = wait_until(lambda: client.latency.model(series), lambda found: not found["is_stale"])
        _tell(model, as_json=as_json)


@predictor_app.command()
@model_app.command()
def export(
    series: SeriesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the model as versioned JSON."""
    with connect(server, token) as client:
        data = client.latency.export_model(series)
    partial = output.with_suffix(output.suffix + ".part")
    partial.write_bytes(data)
    partial.replace(output)
    tell(f"{output}: {len(data)} bytes", {"file": str(output), "bytes": len(data)}, as_json=as_json)


@predictor_app.command()
def predict(
    series: SeriesArgument,
    kernels: Annotated[
        Path | None, typer.Option(help="JSON file with a list of kernels, instead of the options.", show_default=False)
    ] = None,
    op: Annotated[Op, typer.Option(help="The operator.")] = Op.CONV2D,
    in_channels: Annotated[int | None, typer.Option(help="Input channels.", show_default=False)] = None,
    out_channels: Annotated[int | None, typer.Option(help="As many as in, by default.", show_default=False)] = None,
    size: Annotated[int, typer.Option(help="Height and width of the input.")] = 1,
    window: Annotated[int, typer.Option(help="Height and width of the kernel; padded by half.")] = 1,
    stride: Annotated[int, typer.Option(help="Stride, of both axes.")] = 1,
    scheme: Annotated[str, typer.Option(help="dense, unstructured, group:4x1, block_punched:8x4, ...")] = "dense",
    density: Annotated[float, typer.Option(help="Part of the weights that is kept.")] = 1.0,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict kernels by the model of a series, with 95 % intervals. What was measured is told as such."""
    if kernels is not None:
        wanted = _read_kernels(kernels)
    elif in_channels is None:
        raise ConfigFileError(
            "no kernel to predict: give --in-channels and what differs from a 1x1 kernel, or --kernels"
        )
    else:
        spec = KernelSpec(
            op=op,
            in_channels=in_channels,
            out_channels=in_channels if out_channels is None else out_channels,
            input_h=size,
            input_w=size,
            kernel_h=window,
            kernel_w=window,
            stride=stride,
            padding=window // 2,
            pruning=SchemeChoice.parse(scheme).with_density(density),
        )
        wanted = [encode(spec)]
    with connect(server, token) as client:
        found = client.latency.predict(series, wanted)
    if as_json:
        print_json(found)
        return
    columns = {
        "kernel": lambda r: r["kernel_id"],
        "latency": lambda r: f"{r['latency_ns'] / 1e3:.2f} us",
        "95 % CI": lambda r: f"{r['ci95_low_ns'] / 1e3:.2f}-{r['ci95_high_ns'] / 1e3:.2f}",
        "": origin,
    }
    print_items(found["latencies"], columns, as_json=False)
    _tell(found["model"], as_json=False)


def origin(latency: Mapping[str, Any]) -> str:
    """Where the latency of a kernel comes from."""
    if not latency["predicted"]:
        return "measured"
    return "predicted, extrapolated" if latency["extrapolated"] else "predicted"


def _tell(model: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(model)
        return
    console = make_console()
    key, start = model["series"], model["from_series"]
    console.print(f"model of {key['id']}: {key['runtime']} {key['runtime_version']}, {key['source']}")
    if start is not None:
        console.print(f"starts from {start['id']}: {start['runtime']} {start['runtime_version']}, {start['source']}")
    if model["is_fitted"]:
        old = ", to be fitted anew" if model["is_stale"] else ""
        console.print(f"{model['num_kernels']} kernels, fitted {model['fitted_at']}{old}")
    else:
        console.print(model["without_model"] or "not fitted yet: a worker does it when it has no search")


def _read_kernels(path: Path) -> list[Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigFileError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, list) or not all(isinstance(kernel, dict) for kernel in data):
        raise ConfigFileError(f"{path} is no list of kernels: see docs/latency-database.md")
    return data
