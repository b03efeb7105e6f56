from __future__ import annotations

import numpy as np
import pytest

from search.data.dataset import DataError, ImageData
from search.data.digits import load_digits
from search.data.loading import load_data
from search.data.splits import split_dataset, stratified_split
from search.domain.config import DatasetConfig


def numbered_images(labels: np.ndarray, names: tuple[str, ...] = ("a", "b")) -> ImageData:
    """Images whose first pixel is their number, so that one can follow them."""
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ImageData(images=images, labels=labels.astype(np.int64), class_names=names)


def numbers(data: ImageData) -> set[int]:
    return set(data.images.ravel().tolist())


def test_parts_are_disjoint_and_stratified() -> None:
    train = numbered_images(np.repeat([0, 1], [40, 60]))
    test = numbered_images(np.array([0, 1]))

    split = split_dataset(train, test, holdout_fraction=0.25, calibration_images=16, seed=4)

    assert np.bincount(split.holdout.labels).tolist() == [10, 15]
    assert not numbers(split.train) & numbers(split.holdout)
    assert numbers(split.train) | numbers(split.holdout) == set(range(100))
    assert numbers(split.calibration) < numbers(split.train)
    assert len(split.calibration) == 16
    assert split.test is test


def test_equal_seeds_give_equal_splits() -> None:
    train = numbered_images(np.repeat([0, 1], 50))
    parts = [
        numbers(split_dataset(train, train, holdout_fraction=0.2, calibration_images=5, seed=s).holdout)
        for s in (1, 1, 2)
    ]

    assert parts[0] == parts[1] != parts[2]


def test_refuses_a_class_too_small_to_divide() -> None:
    with pytest.raises(DataError, match="class 1 has 2 images"):
        stratified_split(np.repeat([0, 1], [50, 2]), 0.1, np.random.default_rng(0))


def test_test_set_must_have_the_same_classes() -> None:
    train = numbered_images(np.repeat([0, 1], 50))
    with pytest.raises(DataError, match="classes of the test set"):
        split_dataset(
            train, numbered_images(np.array([0, 1]), ("a", "c")), holdout_fraction=0.2, calibration_images=5, seed=0
        )


def test_digits_cover_the_full_range() -> None:
    digits = load_digits()

    assert digits.image_shape == (1, 8, 8)
    assert len(digits) == 1797
    assert (digits.images.min(), digits.images.max()) == (0, 255)


def test_digits_replace_the_defaults_for_photographs() -> None:
    data = load_data(DatasetConfig(name="digits"), input_shape=(1, 8, 8), calibration_images=64)

    assert len(data.normalise.mean) == 1
    assert not data.augmentation.flip
    assert data.augmentation.crop_padding == 1
    sizes = [len(part) for part in (data.split.train, data.split.holdout, data.split.test)]
    assert sum(sizes) == 1797


def test_digits_do_not_fit_a_network_for_photographs() -> None:
    with pytest.raises(DataError, match="small_cnn"):
        load_data(DatasetConfig(name="digits"), input_shape=(3, 32, 32), calibration_images=64)


def test_normalisation_must_have_the_images_channels() -> None:
    with pytest.raises(DataError, match="one value for each channel"):
        load_data(
            DatasetConfig(name="digits", mean=(0.1, 0.2), std=(1.0, 1.0)), input_shape=(1, 8, 8), calibration_images=64
        )


def test_image_data_checks_its_arrays() -> None:
    images = np.zeros((2, 1, 1, 1), dtype=np.uint8)
    with pytest.raises(DataError, match="uint8"):
        ImageData(images=images.astype(np.float32), labels=np.zeros(2, dtype=np.int64), class_names=("a",))
    with pytest.raises(DataError, match="as many int64 labels"):
        ImageData(images=images, labels=np.zeros(3, dtype=np.int64), class_names=("a",))
    with pytest.raises(DataError, match="labels run from 0 to 1"):
        ImageData(images=images, labels=np.array([0, 1]), class_names=("a",))


def test_evenly_takes_images_from_end_to_end() -> None:
    labels = np.arange(10)
    data = ImageData(
        images=np.zeros((10, 1, 1, 1), dtype=np.uint8), labels=labels, class_names=tuple(str(n) for n in labels)
    )
    assert data.evenly(4).labels.tolist() == [0, 3, 6, 9]
    assert data.evenly(10) is data
    assert data.evenly(11) is data
