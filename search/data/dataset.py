"""Labelled images in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from search.tasks.base import LearningTask

UInt8Array = NDArray[np.uint8]
Int64Array = NDArray[np.int64]
#: What is to be learnt of each image.
Targets = Int64Array | NDArray[np.float32]


class DataError(ValueError):
    """A data set cannot be used as it is. The text names the value and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageData:
    """Images with one label each. The arrays are shared, never written to.

    `images` is uint8 (n, h, w, c), the layout in which convolutions run fastest; `labels` is int64 (n,), indices into
    `class_names`. Without class names, `labels` are the targets of a task of one's own: int64 or float32 (n, ...).
    `task` says what is learnt of them; None is classification (see `search.tasks.base.task_of`).
    """

    images: UInt8Array
    labels: Targets
    class_names: tuple[str, ...]
    task: LearningTask | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise DataError(f"images must be uint8 (n, h, w, c), not {self.images.dtype} {self.images.shape}")
        if len(self.images) == 0:
            raise DataError("the data set has no images")
        if not self.class_names:
            if self.labels.shape[:1] != self.images.shape[:1] or self.labels.dtype not in (np.int64, np.float32):
                raise DataError(
                    f"{len(self.images)} images need as many int64 or float32 targets, not {self.labels.dtype} "
                    f"{self.labels.shape}"
                )
            return
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.int64:
            raise DataError(f"{len(self.images)} images need as many int64 labels, not {self.labels.shape}")
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
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def evenly(self, count: int) -> ImageData:
        """At most `count` images, evenly over the data set, so that classes keep their shares."""
        if len(self) <= count:
            return self
        return self.subset(np.linspace(0, len(self) - 1, count).round().astype(np.int64))
