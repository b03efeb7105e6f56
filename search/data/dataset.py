"""Labelled images in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]
Int64Array = NDArray[np.int64]


class DataError(ValueError):
    """A data set cannot be used as it is. The text names the value and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageData:
    """Images with one label each. The arrays are shared, never written to.

    `images` is uint8 (n, h, w, c), the layout in which convolutions run fastest; `labels` is int64 (n,), indices into
    `class_names`.
    """

    images: UInt8Array
    labels: Int64Array
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise DataError(f"images must be uint8 (n, h, w, c), not {self.images.dtype} {self.images.shape}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.int64:
            raise DataError(f"{len(self.images)} images need as many int64 labels, not {self.labels.shape}")
        if len(self.images) == 0:
            raise DataError("the data set has no images")
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise DataError(
                f"labels run from {self.labels.min()} to {self.labels.max()}, but there are "
                f"{len(self.class_names)} classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, h, w), as networks state it."""
        _, height, width, channels = self.images.shape
        return (channels, height, width)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def subset(self, indices: Sequence[int] | Int64Array) -> ImageData:
        """The images at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ImageData(images=self.images[chosen], labels=self.labels[chosen], class_names=self.class_names)

    def evenly(self, count: int) -> ImageData:
        """At most `count` images, evenly over the data set, so that classes keep their shares."""
        if len(self) <= count:
            return self
        return self.subset(np.linspace(0, len(self) - 1, count).round().astype(np.int64))
