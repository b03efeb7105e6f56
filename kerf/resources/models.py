"""/v1/models: networks that searches start from."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerf.errors import NotConfigured
from kerf.operations import Request, operation, procedure
from kerf.resources.artifacts import ArtifactOperations
from kerf.resources.base import DEFAULT_LIMIT, MAX_PAGE, AsyncBound, Bound, Items, Page, SyncBound, collect
from kerf.schemas import ModelList, ModelView, NetworkView
from search.networks.kinds import network_format

#: Converting a large ONNX file takes a server minutes.
CHECK_TIMEOUT_S = 1300.0


class ModelOperations(Bound):
    """The network zoo, checkpoints for it, and networks of one's own."""

    @operation("GET", "/v1/models")
    def list(self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Request[ModelList]:
        """The zoo, and one page of the checkpoints that were registered for it."""
        return Request(query={"limit": limit, "cursor": cursor})

    @operation("POST", "/v1/models", is_repeatable=True)
    def create(self, *, architecture: str, name: str, sha256: str) -> Request[ModelView]:
        """Register a safetensors checkpoint, uploaded before, for a network of the zoo. Repeating it is harmless."""
        return Request(json={"architecture": architecture, "name": name, "sha256": sha256})

    @operation("GET", "/v1/networks")
    def networks_page(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Request[Page[NetworkView]]:
        """One page of the networks of one's own."""
        return Request(query={"limit": limit, "cursor": cursor})

    @procedure
    async def networks(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Items[NetworkView]:
        """Up to `limit` networks of one's own, oldest first."""
        return await collect(self.session, ModelOperations.networks_page.prepare, limit, cursor)

    @operation("GET", "/v1/networks/{network_id}")
    def network(self, network_id: str) -> Request[NetworkView]:
        """One network of one's own."""
        return Request(path={"network_id": network_id})

    @operation("POST", "/v1/networks", is_repeatable=True)
    def create_network(
        self, *, name: str, sha256: str, input_shape: Sequence[int] | None = None
    ) -> Request[NetworkView]:
        """Check and register a .kerf or ONNX file that was uploaded before: its SHA-256. ONNX is converted.

        `input_shape` is (channels, h, w), where an ONNX file leaves them open. Repeating it gives the same network.
        """
        shape = None if input_shape is None else list(input_shape)
        return Request(json={"name": name, "sha256": sha256, "input_shape": shape}, timeout_s=CHECK_TIMEOUT_S)

    @procedure
    async def upload(
        self,
        network: Any,
        example_input: Any = None,
        *,
        name: str | None = None,
        input_shape: Sequence[int] | None = None,
    ) -> NetworkView:
        """Upload and register a network of one's own. Its `sha256` is what a config names as `model.network`.

        `network` is the path of a .kerf or ONNX file, or a torch module with an `example_input` of shape (1, C, H, W),
        which is converted here, as `kerf models convert` does, and refused where what would be sent does not agree with
        it. `name` is that of the file by default; `input_shape` is (C, H, W), where an ONNX file leaves them open.
        Files that can run code (.pt, .pt2, pickles) are not sent.
        """
        if isinstance(network, str | Path):
            return await self._send(Path(network), name or Path(network).stem, input_shape)
        with tempfile.TemporaryDirectory(prefix="kerf-model-") as folder:
            path = Path(folder) / f"{name or 'network'}.kerf"
            _convert(network, example_input, name or "network", path)
            return await self._send(path, path.stem, None)

    async def _send(self, path: Path, name: str, input_shape: Sequence[int] | None) -> NetworkView:
        network_format(path)
        digest = await ArtifactOperations.upload.start(self, path)
        created = ModelOperations.create_network.prepare(name=name, sha256=digest, input_shape=input_shape)
        return await self.session.call(created)


class Models(ModelOperations, SyncBound):
    pass


class AsyncModels(ModelOperations, AsyncBound):
    pass


def _convert(module: Any, example_input: Any, name: str, path: Path) -> None:
    try:
        from search.networks.convert import convert_module
        from search.networks.file import write_network
    except ImportError as error:
        raise NotConfigured(f"converting a module needs torch here ({error}): pip install 'kerf[search]'") from error
    if example_input is None:
        raise NotConfigured("a module is converted with an example: give example_input of shape (1, C, H, W)")
    write_network(convert_module(module, example_input, name).network, path)
