"""The network and the data of a search, as the user names them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from device_agent.contracts import ContractError
from search.domain.architectures import ARCHITECTURES


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The network to prune: a member of the zoo, by its `architecture`, or one's own, as a `network` file with its
    weights.

    `network` and `checkpoint` are files (paths for the CLI, artifacts' SHA-256 for the server). `checkpoint` has the
    weights of the architecture as safetensors; without it, that is trained from scratch on the data set for
    `train_epochs`.
    """

    architecture: str | None = None
    checkpoint: str | None = None
    train_epochs: int = 10
    network: str | None = None

    def __post_init__(self) -> None:
        if (self.architecture is None) == (self.network is None):
            given = "neither is" if self.network is None else "both are"
            raise ContractError(
                f"give one of architecture (a network of the zoo) and network (a .kerf file of your own): {given} given"
            )
        if self.network is not None and self.checkpoint is not None:
            raise ContractError(
                f"the network {self.network!r} holds its weights: leave the checkpoint {self.checkpoint!r} out, or "
                "convert the network with it (kerf models convert --weights)"
            )
        if self.architecture is not None and self.architecture not in ARCHITECTURES:
            near = difflib.get_close_matches(self.architecture, ARCHITECTURES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ContractError(
                f"unknown architecture {self.architecture!r}{hint} Known are {', '.join(ARCHITECTURES)}"
            )
        if self.train_epochs < 1:
            raise ContractError(f"train_epochs {self.train_epochs!r} must be at least 1")


class ImageFit(StrEnum):
    """How an image of another size is brought to that of the network's input."""

    #: Resized to it, whatever that does to the proportions.
    STRETCH = "stretch"
    #: Resized until it covers it, then cut to the middle.
    CROP = "crop"


#: What a path begins with that lies on the worker, below its KERF_DATASETS_DIR.
WORKER_PREFIX = "worker:"

DIGITS = "digits"
_CUSTOM = "custom"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """The data. `train` and `test` are data sets: class folders, zips of such, `.npz` or Parquet (paths for the CLI,
    artifacts' SHA-256 for the server), or `worker:PATH`, what lies on the worker. Without `train`, `name` is that of an
    uploaded data set (or its id), or `digits`: scikit-learn's 8x8 digits.

    Without a test set, `test_fraction` of the images become one, by `split_seed`. `holdout_fraction` of the training
    set is held out for accuracy estimates; the test set is only for final figures. Without `mean` and `std`, they are
    those of the training images.
    """

    name: str = _CUSTOM
    train: str | None = None
    test: str | None = None
    test_fraction: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fit: ImageFit = ImageFit.STRETCH
    holdout_fraction: float = 0.1
    split_seed: int = 0
    flip: bool = True
    crop_padding: int = 4

    def __post_init__(self) -> None:
        if self.train is None and (self.test is not None or self.name in ("", _CUSTOM)):
            raise ContractError(
                "dataset needs 'train' (a folder or zip of class folders, .npz or Parquet), the 'name' of an uploaded "
                "data set, or 'name: digits'"
            )
        if self.name == DIGITS and self.train is not None:
            raise ContractError(
                f"dataset.name 'digits' comes with its own images, but train is {self.train!r}: keep one of the two"
            )
        for role, path in (("train", self.train), ("test", self.test)):
            if path is not None and is_on_worker(path):
                _check_worker_path(role, path)
        if self.test_fraction is not None and (self.test is not None or not 0.0 < self.test_fraction < 0.9):
            raise ContractError(
                f"dataset.test_fraction {self.test_fraction!r} takes test images from the training set: it must be in "
                "(0, 0.9), and there must be no test set beside it"
            )
        if not 0.0 < self.holdout_fraction < 0.9:
            raise ContractError(f"holdout_fraction {self.holdout_fraction!r} is not in (0, 0.9)")
        if (self.mean is None) != (self.std is None):
            raise ContractError("dataset.mean and dataset.std belong together: give both, or neither to compute them")
        if self.mean is None or self.std is None:
            return
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ContractError(f"mean {self.mean} and std {self.std} must have one positive std for each mean")

    @property
    def is_uploaded(self) -> bool:
        """Whether `name` is that of a data set which the server knows."""
        return self.train is None and self.name != DIGITS


def is_on_worker(path: str) -> bool:
    """Whether `path` names what lies on the worker."""
    return path.startswith(WORKER_PREFIX)


def _check_worker_path(role: str, path: str) -> None:
    relative = PurePosixPath(path.removeprefix(WORKER_PREFIX))
    if relative.is_absolute() or not relative.parts or ".." in relative.parts or "\0" in path:
        raise ContractError(
            f"dataset.{role} {path!r} must be worker: and a path below the worker's KERF_DATASETS_DIR, without '..'"
        )
