"""From a `DatasetConfig` to split data with its normalisation and augmentation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from search.data.batches import Augmentation, Normalisation
from search.data.dataset import DataError
from search.data.digits import DIGITS_MEAN, DIGITS_STD, load_digits
from search.data.image_zip import load_image_zip
from search.data.splits import Split, split_dataset, stratified_split
from search.domain.config import DatasetConfig

_DIGITS_TEST_FRACTION = 0.2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedData:
    """All that training and estimating need to know of a data set."""

    split: Split
    normalise: Normalisation
    augmentation: Augmentation


def load_data(
    config: DatasetConfig,
    *,
    input_shape: tuple[int, int, int],
    calibration_images: int,
    cache_dir: Path | None = None,
) -> LoadedData:
    """Read and split the data set of a search.

    `config.train` and `config.test` are paths here. For the digits, the test set is a fifth of them; their own mean and
    standard deviation replace the defaults, which are those of colour photographs; they are never flipped, as a
    mirrored digit is another sign, and shifted by one pixel at most.

    Args:
        config: The `dataset` part of a search config.
        input_shape: (channels, h, w) of the network's input; images are decoded to that size.
        calibration_images: See `split_dataset`.
        cache_dir: See `load_image_zip`.

    Raises:
        DataError: The data cannot be used; the text names the value and the remedy.
    """
    normalise = Normalisation(mean=config.mean, std=config.std)
    augmentation = Augmentation(flip=config.flip, crop_padding=config.crop_padding)
    if config.name == "digits":
        digits = load_digits()
        if digits.image_shape != input_shape:
            raise DataError(
                f"the digits have the shape {digits.image_shape}, but the network takes {input_shape}: "
                "choose the architecture 'small_cnn' or 'small_resnet', or other data"
            )
        kept, tested = stratified_split(digits.labels, _DIGITS_TEST_FRACTION, np.random.default_rng(config.split_seed))
        train, test = digits.subset(kept), digits.subset(tested)
        if (config.mean, config.std) == _default_normalisation():
            normalise = Normalisation(mean=DIGITS_MEAN, std=DIGITS_STD)
        augmentation = Augmentation(flip=False, crop_padding=min(1, config.crop_padding))
    else:
        if config.train is None or config.test is None:
            raise DataError("the data set needs the paths of its training and its test zip")
        train = load_image_zip(Path(config.train), image_shape=input_shape, cache_dir=cache_dir)
        test = load_image_zip(
            Path(config.test), image_shape=input_shape, class_names=train.class_names, cache_dir=cache_dir
        )
    normalise.check(train)
    split = split_dataset(
        train,
        test,
        holdout_fraction=config.holdout_fraction,
        calibration_images=calibration_images,
        seed=config.split_seed,
    )
    return LoadedData(split=split, normalise=normalise, augmentation=augmentation)


def _default_normalisation() -> tuple[tuple[float, ...], tuple[float, ...]]:
    defaults = {field.name: field.default for field in dataclasses.fields(DatasetConfig)}
    mean, std = defaults["mean"], defaults["std"]
    assert isinstance(mean, tuple)
    assert isinstance(std, tuple)
    return mean, std
