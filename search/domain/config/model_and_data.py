"""The network and the data of a search, as the user names them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """The data. `train` and `test` are zips of class folders of images (paths for the CLI, artifacts' SHA-256 for the
    server). `name: digits` needs neither: scikit-learn's 8x8 digits, split by seed.

    `holdout_fraction` of the training set is held out for accuracy estimates; the test set is only for final figures.
    """

    name: str = "custom"
    train: str | None = None
    test: str | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    holdout_fraction: float = 0.1
    split_seed: int = 0
    flip: bool = True
    crop_padding: int = 4

    def __post_init__(self) -> None:
        if self.name != "digits" and not (self.train and self.test):
            raise ContractError("dataset needs 'train' and 'test' (zips of class folders), or 'name: digits'")
        if not 0.0 < self.holdout_fraction < 0.9:
            raise ContractError(f"holdout_fraction {self.holdout_fraction!r} is not in (0, 0.9)")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ContractError(f"mean {self.mean} and std {self.std} must have one positive std for each mean")
