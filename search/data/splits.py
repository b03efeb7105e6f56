"""Dividing a data set by seed, with the same share of every class in each part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.data.dataset import DataError, ImageData


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The parts of a data set. `train` and `holdout` share no image; `calibration` is a part of `train`.

    Accuracy estimates of the search are taken on `holdout`; `test` is for final figures only.
    """

    train: ImageData
    calibration: ImageData
    holdout: ImageData
    test: ImageData


def stratified_split(
    labels: NDArray[np.int64], second_fraction: float, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of two parts, each sorted. Every class gives its rounded `second_fraction` to the second part.

    Raises `DataError` where a class is too small to be in both.
    """
    first, second = [], []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = round(second_fraction * len(members))
        if not 1 <= count < len(members):
            raise DataError(
                f"class {label} has {len(members)} images, too few to hold out a fraction of {second_fraction}: "
                "add images or change holdout_fraction"
            )
        first.append(members[count:])
        second.append(members[:count])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def split_dataset(
    train: ImageData, test: ImageData, *, holdout_fraction: float, calibration_images: int, seed: int
) -> Split:
    """Hold out a part of `train`, and choose the images on which batch norm is recalibrated.

    Args:
        train: All training images.
        test: The test images; only passed on.
        holdout_fraction: Part of `train` that is held out, in (0, 1).
        calibration_images: Number of calibration images; at most all remaining training images.
        seed: Equal seeds give equal splits.
    """
    if test.class_names != train.class_names:
        raise DataError(f"the classes of the test set {test.class_names} differ from {train.class_names}")
    generator = np.random.default_rng(seed)
    kept, held_out = stratified_split(train.labels, holdout_fraction, generator)
    calibration = generator.permutation(kept)[:calibration_images]
    return Split(
        train=train.subset(kept), calibration=train.subset(calibration), holdout=train.subset(held_out), test=test
    )
