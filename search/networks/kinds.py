"""What kind of file a network comes in, by its content: what it is called does not matter."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from device_agent.contracts import ContractError


class NetworkFileFormat(StrEnum):
    """Files that networks are taken from without running what is in them."""

    KERF = "kerf"
    ONNX = "onnx"


#: How files of pickles begin: zip archives, as torch writes .pt and .pt2, and bare pickles.
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_PICKLE_PROTOCOLS = range(2, 6)
_REMEDY = (
    "convert the network on your machine with `kerf models convert` (a module, a .pt2 of your own, or ONNX) and send "
    "the .kerf file, or send an ONNX file"
)


class RunsCode(ContractError):
    """A file that can run code when it is loaded, and so is not read."""


def network_format(path: Path) -> NetworkFileFormat:
    """What kind of file `path` is.

    Raises:
        RunsCode: It is a pickle or an archive of them, such as .pt and .pt2.
        ContractError: It cannot be read, or has no network.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ContractError(f"cannot read the network {path}: {error.strerror}") from None
    if head.startswith(_ZIP) or (head[:1] == _PICKLE and len(head) > 1 and head[1] in _PICKLE_PROTOCOLS):
        raise RunsCode(
            f"{path} is a pickle or an archive of them, as torch.save and torch.export.save write them: loading it can "
            f"run any code, so it is not read; {_REMEDY}"
        )
    if len(head) < 2:
        raise ContractError(f"{path} has no network, only {len(head)} bytes: {_REMEDY}")
    # A .kerf file is safetensors: the length of its header in eight bytes, and a JSON object.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return NetworkFileFormat.KERF
    return NetworkFileFormat.ONNX
