"""Dividing a data set by seed, with the same share of every class in each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


#: Of a data set that comes without test images.
TEST_FRACTION = 0.2


def second_count(images: int, second_fraction: float, what: str, setting: str) -> int:
    """How many of `images` go to the second of two parts. Raises `DataError` where one of them would be empty."""
    count = round(second_fraction * images)
    if not 1 <= count < images:
        raise DataError(
            f"{what} has {images} images, too few to hold out a fraction of {second_fraction}: add images or change "
            f"{setting}"
        )
    return count


def stratified_split(
    labels: NDArray[np.int64],
    second_fraction: float,
    generator: np.random.Generator,
    *,
    class_names: Sequence[str] = (),
    setting: str = "holdout_fraction",
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of two parts, each sorted. Every class gives its rounded `second_fraction` to the second part.

    Raises `DataError` where a class is too small to be in both; `class_names` and `setting` are what its text names.
    """
    first, second = [], []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        name = f"class {class_names[label]!r}" if class_names else f"class {label}"
        count = second_count(len(members), second_fraction, name, setting)
        first.append(members[count:])
        second.append(members[:count])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def split_off(
    data: ImageData, second_fraction: float, generator: np.random.Generator, setting: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of two parts of `data`: see `stratified_split`. Where there are no classes, chance alone decides."""
    labels = data.labels if data.class_names else np.zeros(len(data), dtype=np.int64)
    return stratified_split(
        labels.astype(np.int64, copy=False),
        second_fraction,
        generator,
        class_names=data.class_names or ("the data set",),
        setting=setting,
    )


def check_counts(class_counts: Mapping[str, int], *, test_fraction: float | None, holdout_fraction: float) -> None:
    """Whether every class has enough training images to be divided, without having them here.

    Args:
        class_counts: Images of each class.
        test_fraction: What is split off first as the test set, or None where there is one.
        holdout_fraction: What is held out of the rest.

    Raises:
        DataError: A class has too few; the text names it.
    """
    for name, images in class_counts.items():
        kept = images
        if test_fraction is not None:
            kept -= second_count(images, test_fraction, f"class {name!r}", "test_fraction")
        second_count(kept, holdout_fraction, f"class {name!r}", "holdout_fraction")


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
    if test.labels.shape[1:] != train.labels.shape[1:] or test.labels.dtype != train.labels.dtype:
        raise DataError(
            f"the targets of the test set are {test.labels.dtype} {test.labels.shape[1:]}, those of the training set "
            f"{train.labels.dtype} {train.labels.shape[1:]}: save both alike"
        )
    generator = np.random.default_rng(seed)
    kept, held_out = split_off(train, holdout_fraction, generator, "holdout_fraction")
    calibration = generator.permutation(kept)[:calibration_images]
    return Split(
        train=train.subset(kept), calibration=train.subset(calibration), holdout=train.subset(held_out), test=test
    )
