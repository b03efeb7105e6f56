"""From a `DatasetConfig` to split data with its normalisation and augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from search.data.batches import Augmentation, Normalisation, channel_statistics
from search.data.dataset import DataError, ImageData
from search.data.digits import DIGITS_MEAN, DIGITS_STD, load_digits
from search.data.reading import read_data
from search.data.splits import TEST_FRACTION, Split, split_dataset, split_off
from search.domain.config import DIGITS, DatasetConfig
from search.tasks.base import LearningTask


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
    on_progress: Callable[[int, int], None] | None = None,
    task: LearningTask | None = None,
) -> LoadedData:
    """Read and split the data set of a search.

    `config.train` and `config.test` are paths here. Without a test set, a part of the training set becomes one.
    The digits are never flipped, as a mirrored digit is another sign, and shifted by one pixel at most.

    Args:
        config: The `dataset` part of a search config.
        input_shape: (channels, h, w) of the network's input; images are decoded to that size.
        calibration_images: See `split_dataset`.
        cache_dir: See `read_data`.
        on_progress: See `read_data`.
        task: What is learnt; None is classification.

    Raises:
        DataError: The data cannot be used; the text names the value and the remedy.
    """
    if task is not None and task.follows_geometry and (config.flip or config.crop_padding):
        raise DataError(
            f"the targets of the task {task.name!r} say where things are in an image, and would be wrong for a "
            "flipped or shifted one: set dataset.flip to false and dataset.crop_padding to 0"
        )
    # Where targets would have to be resized as well, images are not.
    fit = None if task is not None and task.follows_geometry else config.fit
    if config.name == DIGITS:
        train = _digits(input_shape)
        augmentation = Augmentation(flip=False, crop_padding=min(1, config.crop_padding))
    else:
        if config.train is None:
            raise DataError(f"the data set {config.name!r} needs the path of its training images")
        train = read_data(
            Path(config.train), image_shape=input_shape, fit=fit, cache_dir=cache_dir, on_progress=on_progress
        )
        augmentation = Augmentation(flip=config.flip, crop_padding=config.crop_padding)
    if task is None and not train.class_names:
        raise DataError(
            "the data set has targets and no classes: name the task that learns them in 'task', or save labels instead"
        )
    train = replace(train, task=task)
    if config.test is None:
        fraction = TEST_FRACTION if config.test_fraction is None else config.test_fraction
        kept, tested = split_off(train, fraction, np.random.default_rng(config.split_seed), "test_fraction")
        train, test = train.subset(kept), train.subset(tested)
    else:
        test = read_data(
            Path(config.test),
            image_shape=input_shape,
            fit=fit,
            class_names=train.class_names,
            cache_dir=cache_dir,
            on_progress=on_progress,
        )
    test = replace(test, task=task)
    normalise = _normalisation(config, train)
    normalise.check(train)
    split = split_dataset(
        train,
        test,
        holdout_fraction=config.holdout_fraction,
        calibration_images=calibration_images,
        seed=config.split_seed,
    )
    return LoadedData(split=split, normalise=normalise, augmentation=augmentation)


def _digits(input_shape: tuple[int, int, int]) -> ImageData:
    digits = load_digits()
    if digits.image_shape != input_shape:
        raise DataError(
            f"the digits have the shape {digits.image_shape}, but the network takes {input_shape}: "
            "choose the architecture 'small_cnn' or 'small_resnet', or other data"
        )
    return digits


def _normalisation(config: DatasetConfig, train: ImageData) -> Normalisation:
    """What the config says, or the mean and standard deviation of the training images."""
    if config.mean is not None and config.std is not None:
        return Normalisation(mean=config.mean, std=config.std)
    if config.name == DIGITS:
        return Normalisation(mean=DIGITS_MEAN, std=DIGITS_STD)
    return channel_statistics(train.images)
