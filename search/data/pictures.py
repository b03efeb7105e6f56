"""Single images: decoded safely, and brought to the size and channels that a network takes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from search.data.dataset import DataError, UInt8Array
from search.data.limits import MAX_PIXELS
from search.domain.config import ImageFit

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})

#: Nothing else is tried, whatever the content looks like: Pillow starts other programs for some formats.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")

#: Modes with more than 8 bits a channel, which Pillow would clip and not scale.
_DEEP_MODES = ("I", "F")

_UNDECODABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode_picture(content: bytes, where: str) -> Image.Image:
    """An encoded image, upright as its EXIF orientation says.

    Args:
        content: A JPEG, PNG, BMP or WebP file.
        where: What an error calls it.

    Raises:
        DataError: It cannot be decoded, is too large, or has more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{where} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}: shrink it")
            if image.mode.partition(";")[0] in _DEEP_MODES:
                raise DataError(f"{where} has more than 8 bits a channel ({image.mode}): save it with 8")
            image.load()
            return ImageOps.exif_transpose(image)
    except _UNDECODABLE as error:
        if isinstance(error, DataError):
            raise
        # Pillow names its buffer, which tells nobody anything.
        reason = "no JPEG, PNG, BMP or WebP" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{where} cannot be decoded ({reason}): replace or remove it") from None


def fit_picture(
    image: Image.Image | UInt8Array, image_shape: tuple[int, int, int], fit: ImageFit | None, where: str
) -> UInt8Array:
    """The image as uint8 (h, w, c) for a network that takes `image_shape`, (channels, h, w).

    Grey becomes colour by repeating it, colour grey by its luma (ITU-R BT.601, as Pillow has it), and transparency is
    dropped. `fit` says how other sizes are brought to this one; both ways resize bilinearly with antialiasing. With
    None, another size is refused with a `DataError` that calls the image `where`.
    """
    channels, height, width = image_shape
    if isinstance(image, np.ndarray):
        pixels: UInt8Array = image[:, :, np.newaxis] if image.ndim == 2 else image
        if pixels.shape == (height, width, channels):
            return pixels
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    converted = image.convert("L" if channels == 1 else "RGB")
    if converted.size != (width, height):
        if fit is None:
            raise DataError(
                f"{where} is {converted.width} x {converted.height}, but the network takes {width} x {height}, and the "
                "task's targets could not be resized with it: save images of that size"
            )
        if fit is ImageFit.CROP:
            converted = ImageOps.fit(converted, (width, height), Image.Resampling.BILINEAR)
        else:
            converted = converted.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(converted, dtype=np.uint8).reshape(height, width, channels)
