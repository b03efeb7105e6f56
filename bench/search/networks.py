"""The networks on which methods are compared by true evaluations: trained ResNets on CIFAR-10, as the examples say."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import nn

from search.accuracy.one_shot import OneShotEstimator
from search.data.loading import LoadedData, load_data
from search.domain.architectures import ARCHITECTURES
from search.domain.config import SearchConfig, parse_config
from search.domain.network import NetworkSpec
from search.domain.space import SearchSpace
from search.models.checkpoint import load_checkpoint
from search.models.zoo import build_model
from search.pruning.trace import trace_network
from search.space_builder import build_space

NETWORKS = ("resnet20", "resnet56")

#: Images for batch norm and for the loss of a one-shot estimate. Those of the deep network cost three times as much.
CALIBRATION_IMAGES = {"resnet20": 256, "resnet56": 128}
EVALUATION_IMAGES = {"resnet20": 512, "resnet56": 256}

_EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkCase:
    """A trained network, its data and the space of its example search."""

    name: str
    config: SearchConfig
    model: nn.Module
    spec: NetworkSpec
    space: SearchSpace
    data: LoadedData

    def one_shot(self) -> OneShotEstimator:
        """The one-shot estimator on fewer images than a search takes: the comparison asks for thousands."""
        return OneShotEstimator(
            self.model,
            self.spec,
            self.data.split.calibration.evenly(CALIBRATION_IMAGES[self.name]),
            self.data.split.holdout.evenly(EVALUATION_IMAGES[self.name]),
            self.data.normalise,
        )


def load_case(name: str, data_folder: Path, cache_folder: Path) -> NetworkCase:
    """The network `name` of `NETWORKS` with the shared data. Ends the program where the data is not there."""
    config = parse_config(yaml.safe_load((_EXAMPLES / f"cifar10-{name}.yaml").read_text(encoding="utf-8")))
    files = (config.model.checkpoint, config.dataset.train, config.dataset.test)
    checkpoint, train, test = (data_folder / (file or "") for file in files)
    for path in (checkpoint, train, test):
        if not path.is_file():
            sys.exit(f"{path} is missing: set KERF_SHARED_DATA to the folder that has it")
    input_shape = ARCHITECTURES[config.model.architecture].input_shape
    data = load_data(
        dataclasses.replace(config.dataset, train=str(train), test=str(test)),
        input_shape=input_shape,
        calibration_images=config.accuracy.calibration_images,
        cache_dir=cache_folder,
    )
    model = build_model(config.model.architecture, num_classes=data.split.train.num_classes, input_shape=input_shape)
    load_checkpoint(model, checkpoint)
    model.eval()
    spec = trace_network(model, input_shape, config.model.architecture)
    return NetworkCase(
        name=name, config=config, model=model, spec=spec, space=build_space(spec, config.space), data=data
    )
