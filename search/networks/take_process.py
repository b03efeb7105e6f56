"""A network that somebody else sent, read or converted in a process of its own with limits.

protobuf and what infers shapes is C++ code, and a file may have been made to break it or to fill the memory.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from device_agent.contracts import ContractError, decode, encode
from search.limited_process import BrokenOff, Limits, answer_request, run_limited
from search.networks.file import read_network, write_network
from search.networks.intake import NetworkContents, take_network
from search.networks.kinds import NetworkFileFormat, network_format

LIMITS = Limits(memory_bytes=4 << 30, timeout_s=600)


def take_in_process(path: Path, name: str, output: Path, input_shape: tuple[int, ...] | None = None) -> NetworkContents:
    """`take_network` in a child process of bounded memory and time.

    Args:
        path: A `.kerf` or ONNX file.
        name: The name of a converted network.
        output: Where a converted network is written; a `.kerf` file stays where it is.
        input_shape: (channels, h, w), where an ONNX file leaves them open.

    Raises:
        RunsCode: It is a pickle or an archive of them.
        ContractError: What is wrong with the file, which is called by its name alone, or that reading it broke off.
    """
    network_format(path)
    shape = None if input_shape is None else list(input_shape)
    request = {"path": str(path), "name": name, "output": str(output), "input_shape": shape}
    try:
        answer = run_limited(__name__, request, path, LIMITS)
    except BrokenOff as error:
        raise ContractError(str(error)) from None
    if "error" in answer:
        raise ContractError(str(answer["error"]))
    return decode(NetworkContents, answer["contents"])


def converts_onnx() -> bool:
    """Whether what turns ONNX into networks is installed here."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "torch"))


def _take(request: dict[str, Any]) -> dict[str, Any]:
    path, shape = Path(request["path"]), request["input_shape"]
    try:
        taken = take_network(path, request["name"], None if shape is None else tuple(shape))
        if taken.contents.format is NetworkFileFormat.ONNX:
            write_network(taken.network, Path(request["output"]))
            # What a search will read.
            read_network(Path(request["output"]))
    except ContractError as error:
        return {"error": str(error)}
    return {"contents": encode(taken.contents)}


def _import_libraries(request: dict[str, Any]) -> None:
    """torch takes seconds and much memory by itself; a `.kerf` file needs none of it."""
    if network_format(Path(request["path"])) is NetworkFileFormat.ONNX:
        import search.networks.from_onnx.convert  # noqa: F401


if __name__ == "__main__":
    answer_request(_take, _import_libraries)
