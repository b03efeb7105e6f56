"""/v1/networks: networks of users' own that searches can start from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from device_agent.contracts import ContractError, decode, encode
from search.networks.document import NetworkInput
from search.networks.intake import NetworkContents
from search.networks.kinds import NetworkFileFormat, RunsCode, network_format
from search.networks.take_process import converts_onnx, take_in_process
from server.catalog import repository
from server.catalog.naming import check_name, check_stored, refused
from server.context import ArtifactWriter, Context, ContextDep, Reader
from server.errors import NotFound, Unprocessable
from server.models import NetworkRow
from server.wire import (
    DEFAULT_PAGE,
    PROBLEMS,
    ContractResponse,
    Limit,
    Page,
    answer,
    body_of,
    body_schema,
    decode_cursor,
    iso,
    page,
)

router = APIRouter(prefix="/v1/networks", tags=["catalog"], responses=PROBLEMS)

_NO_CONVERTER = (
    "ONNX files are converted with torch and onnx, which are not installed beside this server: convert it on your "
    "machine with `kerf models convert net.onnx --output net.kerf` and send that, or install 'kerf[search]' here"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRequest:
    """A `.kerf` or ONNX file, uploaded as an artifact before: its SHA-256. `input_shape` is (channels, h, w), where an
    ONNX file leaves them open.
    """

    name: str
    sha256: str
    input_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.input_shape is not None:
            NetworkInput(shape=self.input_shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkView:
    """A network. `sha256` is that of its `.kerf` file, which a config names as `model.network`; `source_sha256` that of
    what was sent. `input_shape` is that of one image, `outputs` names nodes; `notes` say what a conversion left out.
    """

    id: str
    name: str
    sha256: str
    source_sha256: str
    format: NetworkFileFormat
    input_shape: tuple[int, ...]
    outputs: tuple[str, ...]
    num_nodes: int
    parameters: int
    notes: tuple[str, ...]
    created_at: str | None


@router.get("")
def list_networks(
    context: ContextDep, principal: Reader, cursor: str | None = None, limit: Limit = DEFAULT_PAGE
) -> Response:
    """The networks that were registered, oldest first."""
    with context.database.read() as session:
        rows = repository.list_networks(session, after=decode_cursor(cursor), limit=limit + 1)
    part = page(rows, limit, key=lambda row: row.id)
    return ContractResponse(Page(items=tuple(_view(row) for row in part.items), next=part.next))


@router.get("/{network_id}", responses=answer(NetworkView))
def get_network(network_id: str, context: ContextDep, principal: Reader) -> Response:
    """One network by its id."""
    with context.database.read() as session:
        row = session.get(NetworkRow, network_id)
    if row is None:
        raise NotFound(f"there is no network {network_id}: see /v1/networks")
    return ContractResponse(_view(row))


@router.post(
    "", status_code=201, openapi_extra=body_schema("NetworkRequest"), responses=answer(NetworkView, status=201)
)
def create_network(
    context: ContextDep, principal: ArtifactWriter, body: Annotated[NetworkRequest, Depends(body_of(NetworkRequest))]
) -> Response:
    """Check and register a network. ONNX is converted, and what comes out compared with the file.

    Files that can run code (.pt, .pt2, pickles) are refused with the code "runs_code".
    """
    check_stored(context, principal, "sha256", body.sha256)
    row = registered(context, body.name, body.sha256, "sha256", body.input_shape, created_by=principal.token_id)
    return ContractResponse(_view(row), status_code=201)


def registered(
    context: Context,
    name: str,
    sha256: str,
    field: str,
    input_shape: tuple[int, int, int] | None = None,
    *,
    created_by: str,
) -> NetworkRow:
    """The row of a stored file, which is read in a process of its own. Raises `Unprocessable` naming `field`."""
    with context.database.read() as session:
        known = repository.find_network(session, name=name, source_sha256=sha256, input_shape=input_shape)
    if known is not None:
        return known
    network, contents = checked(context, sha256, field, input_shape, created_by=created_by)
    with context.database.write() as session:
        return repository.add_network(
            session,
            name=name,
            source_sha256=sha256,
            input_shape=input_shape,
            network_sha256=network,
            contents=encode(contents),
        )


def checked(
    context: Context,
    sha256: str,
    field: str,
    input_shape: tuple[int, int, int] | None = None,
    *,
    created_by: str,
) -> tuple[str, NetworkContents]:
    """The `.kerf` file of a stored file, by its SHA-256, and what is in it. What ONNX was converted to is a new
    artifact of `created_by`, called after the file, so that a file gives one network whatever it is registered as;
    nothing is registered. Raises `Unprocessable` naming `field`.
    """
    source = context.store.path(sha256)
    with tempfile.TemporaryDirectory(prefix="kerf-network-") as folder:
        output = Path(folder) / "network.kerf"
        try:
            if network_format(source) is NetworkFileFormat.ONNX and not converts_onnx():
                raise ContractError(_NO_CONVERTER)
            contents = take_in_process(source, f"onnx-{sha256[:12]}", output, input_shape)
        except ContractError as error:
            text = str(error).replace(str(source), "the artifact").replace(sha256, "the artifact")
            if isinstance(error, RunsCode):
                raise Unprocessable(
                    f"{field}: {text}", code="runs_code", errors=[{"field": field, "message": text}]
                ) from None
            raise refused(field, text) from None
        converted = contents.format is NetworkFileFormat.ONNX
        network = context.store.put_file(context.database, output, created_by=created_by) if converted else sha256
    return network, contents


def _view(row: NetworkRow) -> NetworkView:
    contents = decode(NetworkContents, row.contents)
    return NetworkView(
        id=row.id,
        name=row.name,
        sha256=row.network_sha256,
        source_sha256=row.source_sha256,
        format=contents.format,
        input_shape=contents.input_shape,
        outputs=contents.outputs,
        num_nodes=contents.num_nodes,
        parameters=contents.parameters,
        notes=contents.notes,
        created_at=iso(row.created_at),
    )
