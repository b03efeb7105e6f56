"""`kerf export`: one network as a folder that runs without Kerf: a candidate of a search, or one of one's own.

Steps for the kernels are made by the agent's planner, which only the agent imports: so the agent's command writes the
folder, in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from device_agent.contracts import ContractError, decode
from device_agent.formats.packed import open_packed, write_packed
from kerf import Client
from search.domain.result import SearchResult
from search.export import PACKED_FILE, portable_files
from search.networks.file import read_network
from server.cli.config_file import ConfigFileError
from server.cli.connection import ServerOption, TokenOption, connect
from server.cli.console import JsonOption, tell, working
from server.cli.models import NETWORK_SUFFIX


class ExportError(Exception):
    """The agent's command could not write the folder. The text holds its words."""


def export(
    candidate: Annotated[
        Path | None,
        typer.Argument(
            help="A candidate's folder in the output of a search, its network.kerfnet, or a .kerf file.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="The folder to write.")] = Path("deployed"),
    search: Annotated[
        str | None, typer.Option("--search", help="Instead of a folder: a search on the server.", show_default=False)
    ] = None,
    candidate_id: Annotated[
        str | None,
        typer.Option("--candidate", help="Which candidate of --search: its id or the start of it.", show_default=False),
    ] = None,
    tune: Annotated[bool, typer.Option(help="Time the tiles on this machine, or guess them.")] = True,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one network as a folder that runs without Kerf: C source, program image, TFLite, ONNX, tensors, examples.

    Which network: a folder such as out/candidates/ID, --search with --candidate from a running server, or a network of
    one's own as a .kerf file, dense as it is.

    What runs pruned networks faster: removed channels are less work everywhere. Zeros are skipped by network.kerf (C)
    and network.kerfnet (Python) in every convolution and linear layer; network.tflite and network.onnx store them and
    multiply by them. XNNPACK skips zeros in 1x1 convolutions alone, which the runtime tflite-sparse measures.
    """
    if (candidate is None) == (search is None) or (search is None) != (candidate_id is None):
        raise ConfigFileError("name one network: a candidate's folder, or --search and --candidate")
    timed = "timing tiles for the kernels on this machine: longer where it is busy, and --no-tune guesses them instead"
    with tempfile.TemporaryDirectory(prefix="kerf-export-") as folder, working("reading the network", as_json) as step:
        if candidate is not None:
            packed = _packed_file(candidate, Path(folder))
        else:
            assert search is not None
            assert candidate_id is not None
            packed = Path(folder) / PACKED_FILE
            with connect(server, token) as client:
                _download(client, search, candidate_id, packed)
        step("writing ONNX and tensors")
        _write_portable(packed, output)
        step(timed if tune else "writing the program image and its sources")
        # Last: where its program image lies, the rest is complete.
        _deploy(packed, output, tune)
    tell(
        f"written to {output}; README.txt there says how to compile and run it",
        {"output": str(output)},
        as_json=as_json,
    )


def _packed_file(candidate: Path, folder: Path) -> Path:
    candidate = whole_name(candidate)
    path = candidate / PACKED_FILE if candidate.is_dir() else candidate
    if not path.is_file():
        raise ConfigFileError(f"{path} is not there: name a folder such as out/candidates/ID")
    if path.suffix != NETWORK_SUFFIX:
        return path
    # torch takes seconds to import.
    from search.networks.dense import dense_network

    plan, tensors = dense_network(read_network(path))
    packed = folder / PACKED_FILE
    packed.write_bytes(write_packed(plan, tensors))
    return packed


def whole_name(candidate: Path) -> Path:
    """The one folder that `candidate` begins the name of, as tables show it; else `candidate` as it is."""
    if candidate.exists() or not candidate.name or not candidate.parent.is_dir():
        return candidate
    found = [path for path in candidate.parent.iterdir() if path.is_dir() and path.name.startswith(candidate.name)]
    if len(found) > 1:
        names = ", ".join(sorted(path.name for path in found))
        raise ConfigFileError(f"{candidate} is the beginning of several: {names}. Write more of the one you mean")
    return found[0] if found else candidate


def _write_portable(packed: Path, output: Path) -> None:
    try:
        plan, tensors = open_packed(packed.read_bytes())
        files = portable_files(plan, {name: np.asarray(tensor) for name, tensor in tensors.items()})
    except ContractError as error:
        raise ExportError(str(error)) from None
    except ImportError as error:
        raise ExportError(f"writing ONNX needs the package onnx ({error}): pip install 'kerf[search]'") from None
    output.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (output / name).write_bytes(data)


def _download(client: Client, search: str, candidate_id: str, target: Path) -> None:
    result = decode(SearchResult, client.searches.result(search))
    points = [point for point in result.front if point.candidate_id.startswith(candidate_id)]
    if len(points) != 1:
        known = ", ".join(point.candidate_id[:10] for point in result.front)
        raise ConfigFileError(f"{len(points)} candidates of {search} begin with {candidate_id!r}; there are {known}")
    digest = points[0].files.get(PACKED_FILE)
    if digest is None:
        raise ConfigFileError(f"{candidate_id} has no {PACKED_FILE}: {points[0].failure or 'it was not exported'}")
    client.artifacts.download(digest, target)


def _deploy(packed: Path, output: Path, tune: bool) -> None:
    # -P: a server.py in the current folder must not be taken for ours.
    command = [sys.executable, "-P", "-m", "device_agent", "deploy", str(packed), "--output", str(output)]
    done = subprocess.run(
        command if tune else [*command, "--no-tune"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ExportError(done.stderr.strip() or f"{' '.join(command)} ended with code {done.returncode}")
