"""Batches of uint8 images as network inputs: normalisation and augmentation as tensor operations on whole batches.

Images stay uint8 (n, h, w, c) in memory, and the network sees the channels-last view of that same layout; nothing is
transposed or loaded by worker processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from search.data.dataset import DataError, ImageData, UInt8Array

#: At a time, when statistics of pixels are computed.
_STATISTICS_IMAGES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """Mean and standard deviation for each channel, of pixel values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise DataError(f"mean {self.mean} and std {self.std} must have one positive std for each mean")

    def check(self, data: ImageData) -> None:
        """Raise `DataError` where the images have another number of channels."""
        channels = data.image_shape[0]
        if len(self.mean) != channels:
            raise DataError(
                f"the normalisation has {len(self.mean)} channels, but the images have {channels}: "
                "set dataset.mean and dataset.std to one value for each channel"
            )


def channel_statistics(images: UInt8Array) -> Normalisation:
    """Mean and standard deviation of each channel over all pixels of uint8 images (n, h, w, c).

    Raises `DataError` where a channel is the same everywhere.
    """
    sums = np.zeros((2, images.shape[3]))
    for start in range(0, len(images), _STATISTICS_IMAGES):
        pixels = images[start : start + _STATISTICS_IMAGES].reshape(-1, images.shape[3]) / 255.0
        sums += (pixels.sum(axis=0), (pixels**2).sum(axis=0))
    mean, square = sums / (images.size / images.shape[3])
    std = np.sqrt(np.maximum(0.0, square - mean**2))
    if not (std > 1e-6).all():
        raise DataError(
            f"channel {int(std.argmin())} of the images has one value everywhere: check the images, or set "
            "dataset.mean and dataset.std"
        )
    return Normalisation(mean=tuple(map(float, mean)), std=tuple(map(float, std)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Random horizontal flips, and random crops of the image with `crop_padding` black pixels around it."""

    flip: bool = True
    crop_padding: int = 4

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise DataError(f"crop_padding {self.crop_padding!r} must not be negative")


NO_AUGMENTATION = Augmentation(flip=False, crop_padding=0)


def as_tensors(data: ImageData) -> tuple[Tensor, Tensor]:
    """Images as uint8 (n, h, w, c) and labels as int64 (n,), or targets (n, ...), both without a copy."""
    return torch.from_numpy(data.images), torch.from_numpy(data.labels)


def network_input(images: Tensor, normalise: Normalisation, resolution: int | None = None) -> Tensor:
    """uint8 (n, h, w, c) to a normalised float32 (n, c, h, w) in channels-last layout, on the same device.

    With `resolution`, images are resized to that height and width, bilinearly with antialiasing.
    """
    scale = torch.tensor([1.0 / (255.0 * s) for s in normalise.std]).to(images.device)
    shift = torch.tensor([-m / s for m, s in zip(normalise.mean, normalise.std, strict=True)]).to(images.device)
    x = torch.addcmul(shift, images.float(), scale).permute(0, 3, 1, 2)
    if resolution is not None and x.shape[2:] != (resolution, resolution):
        x = F.interpolate(x, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """A randomly flipped and shifted copy of uint8 images (n, h, w, c), each by its own draw."""
    count, height, width, _ = images.shape
    padding = augmentation.crop_padding
    shifts = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    flipped = torch.randint(0, 2, (count, 1), generator=generator).bool() & augmentation.flip
    if padding:
        images = F.pad(images, (0, 0, padding, padding, padding, padding))
    rows = torch.arange(height) + shifts[0]
    columns = torch.arange(width)
    columns = torch.where(flipped, columns.flip(0), columns) + shifts[1]
    # One flat gather over pixels; each pixel's channels stay together.
    padded_width = width + 2 * padding
    pixels = (rows[:, :, None] * padded_width + columns[:, None, :]).reshape(count, -1)
    pixels += torch.arange(count)[:, None] * ((height + 2 * padding) * padded_width)
    return images.reshape(-1, images.shape[3])[pixels.reshape(-1)].reshape(count, height, width, -1)


def iterate_batches(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in order; the last may be smaller."""
    yield from zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
