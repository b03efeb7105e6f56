"""The YAML of a search, and the files that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_agent.contracts import ContractError, encode
from kerf import Client
from search.data.dataset import DataError
from search.domain.config import Method, SearchConfig, is_on_worker, parse_config
from search.networks.file import read_network
from search.networks.kinds import NetworkFileFormat, network_format
from search.networks.searchable import check_searchable
from server.cli.data_files import check_files_of, check_split, upload_data
from server.cli.errors import ConfigFileError
from server.cli.yaml_files import read_yaml

__all__ = ["ConfigFileError", "check_files", "load_config", "upload", "with_overrides"]

_DATA_ROLES = ("train", "test")
#: Of each data set, before a search; `kerf datasets check` decodes all.
_IMAGES_DECODED = 1000


def load_config(path: Path) -> SearchConfig:
    """Read and check a search's YAML. Raises `ConfigFileError` with the place and the remedy."""
    data = read_yaml(path, "config")
    try:
        return parse_config(data)
    except ContractError as error:
        raise ConfigFileError(f"{path}: {error}") from None


def with_overrides(
    config: SearchConfig,
    *,
    method: str | None,
    seed: int | None,
    latency_from: str | None,
    devices: Sequence[str] = (),
) -> SearchConfig:
    """The config with what the command line says instead. Raises `ConfigFileError` where that does not fit it."""
    chosen = config.method
    if method is not None:
        try:
            chosen = replace(chosen, name=Method(method))
        except ValueError:
            known = ", ".join(m.value for m in Method)
            raise ConfigFileError(f"unknown method {method!r}; known are {known}") from None
    if seed is not None:
        chosen = replace(chosen, seed=seed)
    changed = replace(
        config,
        method=chosen,
        latency_from=latency_from if latency_from is not None else config.latency_from,
    )
    if not devices:
        return changed
    try:
        if len(devices) == 1:
            return replace(changed, device=devices[0], devices=())
        return replace(changed, device=None, devices=tuple(devices))
    except ContractError as error:
        raise ConfigFileError(f"--device {' --device '.join(devices)}: {error}") from None


def check_files(config: SearchConfig, data_dir: Path | None) -> Mapping[str, Path]:
    """The local files that the config names, by role ("checkpoint", "network", "train", "test").

    Raises `ConfigFileError` where one is missing, is no sound network or data set, or no data folder was given.
    """
    named = {
        "checkpoint": config.model.checkpoint,
        "network": config.model.network,
        "train": config.dataset.train,
        "test": config.dataset.test,
    }
    wanted = {role: name for role, name in named.items() if name is not None and not is_on_worker(name)}
    if wanted and data_dir is None:
        raise ConfigFileError(f"the config names {', '.join(wanted.values())}: say with --data where they are")
    found = {}
    for role, name in wanted.items():
        assert data_dir is not None
        path = data_dir / name
        if not (path.is_file() or (role in _DATA_ROLES and path.is_dir())):
            raise ConfigFileError(f"{role}: there is no file {path}; check the name in the config and --data")
        if role == "network":
            try:
                # The server converts ONNX.
                if network_format(path) is NetworkFileFormat.KERF:
                    check_searchable(read_network(path).document, config)
            except ContractError as error:
                raise ConfigFileError(f"network: {error}") from None
        found[role] = path
    _check_data(config, found)
    return found


def _check_data(config: SearchConfig, paths: Mapping[str, Path]) -> None:
    """Look at the data sets that lie here: all names and labels, some images, and whether classes are large enough."""
    if "train" not in paths:
        return
    train, _ = check_files_of(paths["train"], paths.get("test"), max_decoded=_IMAGES_DECODED)
    try:
        check_split(train, config.dataset)
    except DataError as error:
        raise ConfigFileError(f"train: {error}") from None


def upload(config: SearchConfig, paths: Mapping[str, Path], client: Client) -> dict[str, Any]:
    """Upload the named files and return the request body, in which their SHA-256 stand for them.

    Raises `kerf.ApiError` where the server refuses one.
    """
    digests = {role: upload_data(client, path) for role, path in paths.items()}
    model, dataset = config.model, config.dataset
    if "checkpoint" in digests:
        assert model.architecture is not None
        client.models.create(
            architecture=model.architecture, name=paths["checkpoint"].name, sha256=digests["checkpoint"]
        )
        model = replace(model, checkpoint=digests["checkpoint"])
    if "network" in digests:
        model = replace(model, network=digests["network"])
    files = {role: digests[role] for role in _DATA_ROLES if role in digests}
    if "train" in files and ("test" in files or dataset.test is None):
        client.datasets.create(name=dataset.name, **files)
    dataset = replace(dataset, train=files.get("train", dataset.train), test=files.get("test", dataset.test))
    body: dict[str, Any] = encode(replace(config, model=model, dataset=dataset))
    return body
