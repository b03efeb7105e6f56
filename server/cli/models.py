"""`kerf models ...`: networks of one's own, converted and looked at on this machine, and what a server has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from device_agent.contracts import encode
from server.cli.config_file import ConfigFileError
from server.cli.connection import ServerOption, TokenOption, connect
from server.cli.console import JsonOption, make_console, print_json, tell
from server.cli.latency_models import origin
from server.cli.layer_latency import LayerLatencies, layer_latencies
from server.cli.progress import shown_wait

if TYPE_CHECKING:
    from search.networks.converted import ConvertedNetwork
    from search.networks.inspection import NetworkInspection

app = typer.Typer(help="Convert networks of your own, and look at them.", no_args_is_help=True)

NETWORK_SUFFIX = ".kerf"


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="module.py:factory or package.module:factory, which is your code and is run; FILE.onnx; or FILE.pt2 "
            "with --trust-file.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", help="The .kerf file to write.", show_default=False)],
    example_shape: Annotated[
        str | None,
        typer.Option(
            "--example-shape",
            help="Size of an image: C,H,W, for example 3,32,32. Of ONNX only where the file leaves it open.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="The network's state dict as safetensors.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The network's name; the output's by default.", show_default=False)
    ] = None,
    trust_file: Annotated[
        bool, typer.Option("--trust-file", help="Load a .pt2 file although loading one can run code that is in it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a torch network or an ONNX file into a .kerf file: data that cannot run code, for searches here and on
    servers.

    What is written was built again and agrees with the original in outputs, and with a module in gradients; else
    nothing is written.
    """
    from search.networks.file import write_network  # torch takes seconds to import; only these commands need it

    if output.suffix != NETWORK_SUFFIX:
        raise ConfigFileError(f"--output {output} must end in {NETWORK_SUFFIX}")
    with shown_wait("converting, and comparing with the original"):
        converted = _converted(source, example_shape, weights, name or output.stem, trust_file)
    write_network(converted.network, output)
    count = len(converted.network.document.nodes)
    if as_json:
        print_json({"file": str(output), "nodes": count, "notes": list(converted.notes)})
        return
    console = make_console()
    for note in converted.notes:
        console.print(f"note: {note}")
    console.print(f"written to {output}: {count} nodes; `kerf models inspect {output}` says what can be pruned")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A .kerf or ONNX file.", show_default=False)],
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="Latencies of the dense layers on this device, by name or id.", show_default=False
        ),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="In this runtime: native, tflite, ...", show_default=False)
    ] = None,
    series: Annotated[
        str | None, typer.Option("--series", help="In this latency series of a device.", show_default=False)
    ] = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a network: sizes, operators, channel groups that can be pruned, on which runtime zeros pay in which layer,
    and what no kernel runs yet. With --device, also what the server knows or predicts of each layer's latency.
    """
    from search.networks.inspection import inspect_network
    from search.networks.intake import take_network

    if runtime is not None and device is None:
        raise ConfigFileError(f"--runtime {runtime} belongs to a device: name it with --device")
    if device is not None and series is not None:
        raise ConfigFileError("--series is of one device already: leave --device out")
    with shown_wait("reading the network, and proving its channel groups"):
        found = inspect_network(take_network(file, file.stem).network)
    latencies = None
    if device is not None or series is not None:
        if not found.layers:
            raise ConfigFileError(f"{file} has something that no kernel runs yet: inspect it without --device")
        with connect(server, token) as client:
            latencies = layer_latencies(client, found.layers, device=device, runtime=runtime, series=series)
    if as_json:
        print_json({**encode(found), "latency": None if latencies is None else _latency_json(found, latencies)})
    else:
        _print(found, latencies)


def _latency_json(found: NetworkInspection, latencies: LayerLatencies) -> dict[str, Any]:
    layers = [{"layer": layer.name, **told} for layer, told in zip(found.layers, latencies.latencies, strict=True)]
    return {"series": latencies.series, "model": latencies.model, "layers": layers, "sum_ns": latencies.sum_ns}


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(help="A .kerf or ONNX file.", show_default=False)],
    name: Annotated[
        str | None, typer.Option("--name", help="The network's name; the file's by default.", show_default=False)
    ] = None,
    example_shape: Annotated[
        str | None,
        typer.Option(
            "--example-shape", help="Size of an image, where an ONNX file leaves it open: C,H,W.", show_default=False
        ),
    ] = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a network to a server, which checks it and converts ONNX, and print its SHA-256, which a config submitted
    over REST names as model.network.
    """
    shape = None if example_shape is None else _shape(example_shape)
    with connect(server, token) as client:
        found = client.models.upload(file, name=name, input_shape=shape)
    if not as_json:
        for note in found["notes"]:
            make_console().print(f"note: {note}")
    tell(found["sha256"], {"file": str(file), **found}, as_json=as_json)


@app.command("ls")
def list_models(server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """List the zoo, the checkpoints that were uploaded for it, and networks of users' own."""
    with connect(server, token) as client:
        found = client.models.list(limit=500)
        networks = client.models.networks()
    if as_json:
        print_json({**found, "networks": list(networks)})
        return
    console = make_console()
    zoo = Table("architecture", "input", "classes", "", box=None, header_style="bold")
    for architecture in found["architectures"]:
        shape = _extents(tuple(architecture["input_shape"]))
        zoo.add_row(architecture["name"], shape, str(architecture["num_classes"]), architecture["description"])
    console.print(zoo)
    if found["items"]:
        table = Table("checkpoint", "of", "name", "sha256", box=None, header_style="bold")
        for item in found["items"]:
            table.add_row(item["id"], item["architecture"], item["name"], item["sha256"][:12])
        console.print()
        console.print(table)
    if networks:
        table = Table("network", "input", "parameters", "from", "sha256", box=None, header_style="bold")
        for network in networks:
            shape = _extents(tuple(network["input_shape"]))
            size = f"{network['parameters'] / 1e3:.1f} k"
            table.add_row(network["name"], shape, size, network["format"], network["sha256"])
        console.print()
        console.print(table)


def _converted(
    source: str, example_shape: str | None, weights: Path | None, name: str, trust_file: bool
) -> ConvertedNetwork:
    import torch

    from search.models.checkpoint import CheckpointError, load_checkpoint
    from search.networks.convert import convert_module, convert_program
    from search.networks.sources import check_source, is_onnx, load_module, load_program

    check_source(source, trust_file=trust_file)
    if is_onnx(source):
        from search.networks.from_onnx.convert import convert_onnx

        if weights is not None:
            raise ConfigFileError("an ONNX file holds its weights: leave --weights out")
        return convert_onnx(Path(source), name, None if example_shape is None else _shape(example_shape))
    if trust_file:
        if example_shape is not None or weights is not None:
            raise ConfigFileError("a .pt2 file holds its shapes and weights: leave --example-shape and --weights out")
        return convert_program(load_program(Path(source)), name)
    if example_shape is None:
        raise ConfigFileError("say with --example-shape C,H,W how large an image is, for example 3,32,32")
    shape = _shape(example_shape)
    model = load_module(source)
    if weights is not None:
        try:
            load_checkpoint(model, weights)
        except CheckpointError as error:
            raise ConfigFileError(str(error)) from None
    example = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return convert_module(model, example, name)


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigFileError(f"--example-shape {text!r} must be three positive sizes C,H,W, for example 3,32,32")
    return tuple(int(part) for part in parts)


def _print(found: NetworkInspection, latencies: LayerLatencies | None) -> None:
    console = make_console()
    console.print(Text.assemble((found.name, "bold"), f" (format {found.format})"))
    console.print(f"input {_extents(found.input_shape)}")
    for name, shape in found.outputs.items():
        console.print(f"output {name}: {_extents(shape)}")
    frozen = f", {found.frozen_parameters / 1e3:.1f} k of them frozen" if found.frozen_parameters else ""
    console.print(f"{found.macs / 1e6:.2f} M MACs, {found.parameters / 1e3:.1f} k parameters{frozen}")
    console.print(", ".join(f"{count} {op}" for op, count in found.ops.items()))
    if found.not_lowered:
        table = Table("cannot be lowered yet", "op", "why", box=None, header_style="bold")
        for item in found.not_lowered:
            table.add_row(item.node, item.op, item.reason)
        console.print()
        console.print(table)
        console.print("\nno search can run on it, and channel groups are not known")
        return
    table = Table("channel group", "channels", "runs through", box=None, header_style="bold")
    for group in found.groups:
        table.add_row(group.name, str(group.channels), ", ".join(f"{m.op}.{m.axis.value}" for m in group.members))
    console.print()
    console.print(table)
    kept = [(g.name, f"{g.channels} channels", g.reason) for g in found.dense]
    kept += [(b.name, "block", b.reason) for b in found.kept_blocks]
    if kept:
        table = Table("stays as it is", "", "why", box=None, header_style="bold")
        for row in kept:
            table.add_row(*row)
        console.print()
        console.print(table)
    if found.blocks:
        console.print(f"\nblocks that can be removed: {', '.join(block.name for block in found.blocks)}")
    console.print()
    console.print(_layer_table(found, latencies))
    if latencies is not None:
        measured = sum(not told["predicted"] for told in latencies.latencies)
        told = latencies.series
        console.print(
            f"\nsum of the layers {latencies.sum_ns / 1e6:.4f} ms on one image, {measured} of {len(found.layers)} "
            f"measured ({told['source']}), in series {told['id']}: {told['runtime']} {told['runtime_version']}, "
            f"{told['threads']} threads"
        )
    table = Table("runtime", "layers", "zeros", box=None, header_style="bold")
    for runtime in found.runtimes:
        table.add_row(runtime.runtime, str(runtime.layers_with_zeros), runtime.note)
    console.print()
    console.print(table)


def _layer_table(found: NetworkInspection, latencies: LayerLatencies | None) -> Table:
    titles = ["layer", "op", "channels", "input", "k MACs", "channels pruned with", "zeros skipped by"]
    timed = [] if latencies is None else ["us", "95 % CI", ""]
    table = Table(*titles, *timed, box=None, header_style="bold")
    for place, layer in enumerate(found.layers):
        kernel = layer.kernel
        row = [
            layer.name,
            f"{kernel.op.value} {kernel.kernel_h}x{kernel.kernel_w}" if kernel.op.has_weights else kernel.op.value,
            f"{kernel.in_channels}-{kernel.out_channels}",
            f"{kernel.input_h}x{kernel.input_w}",
            f"{layer.macs / 1e3:.1f}",
            layer.out_group or "",
            ", ".join(layer.zeros),
        ]
        if latencies is not None:
            told = latencies.latencies[place]
            interval = f"{told['ci95_low_ns'] / 1e3:.2f}-{told['ci95_high_ns'] / 1e3:.2f}"
            row += [f"{told['latency_ns'] / 1e3:.2f}", interval, origin(told)]
        table.add_row(*row)
    return table


def _extents(shape: tuple[int, ...]) -> str:
    return "x".join(str(extent) for extent in shape)
