"""/v1/models: networks that searches start from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from kerf.errors import NotConfigured
from kerf.operations import Request, operation, procedure
from kerf.resources.artifacts import ArtifactOperations
from kerf.resources.base import DEFAULT_LIMIT, AsyncBound, Bound, SyncBound
from kerf.schemas import ModelList, ModelView


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

    @procedure
    async def upload(self, network: Any, example_input: Any = None, *, name: str = "network") -> str:
        """Upload a network of one's own and return its SHA-256, which a config names as `model.network`.

        `network` is the path of a .kerf file, or a torch module with an `example_input` of shape (1, C, H, W): it is
        converted here, as `kerf models convert` does, and refused where what would be sent does not agree with it.
        """
        if isinstance(network, str | Path):
            return await ArtifactOperations.upload.start(self, network)
        with tempfile.TemporaryDirectory(prefix="kerf-model-") as folder:
            path = Path(folder) / f"{name}.kerf"
            _convert(network, example_input, name, path)
            return await ArtifactOperations.upload.start(self, path)


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
