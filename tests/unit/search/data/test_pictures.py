from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from search.data.batches import channel_statistics
from search.data.dataset import DataError
from search.data.pictures import decode_picture, fit_picture
from search.domain.config import ImageFit


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, kind, **options)
    return buffer.getvalue()


def stripes() -> np.ndarray:
    """Twice as wide as high: red, then blue, then red."""
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :, 0] = 255
    pixels[:, 4:12] = (0, 0, 255)
    return pixels


def test_stretch_keeps_all_and_crop_the_middle() -> None:
    image = decode_picture(encoded(stripes()), "x")

    stretched = fit_picture(image, (3, 8, 8), ImageFit.STRETCH, "x")
    cropped = fit_picture(image, (3, 8, 8), ImageFit.CROP, "x")

    assert stretched[0, 0].tolist() == [255, 0, 0]
    assert stretched[0, 4].tolist() == [0, 0, 255]
    assert (cropped == (0, 0, 255)).all()
    assert np.array_equal(fit_picture(stripes(), (3, 8, 8), ImageFit.CROP, "x"), cropped)


def test_photographs_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned by 90 degrees.
    content = encoded(np.zeros((8, 16, 3), dtype=np.uint8), "JPEG", exif=exif)
    assert decode_picture(content, "x").size == (8, 16)


def test_another_size_is_refused_where_targets_could_not_follow() -> None:
    assert fit_picture(stripes(), (3, 8, 16), None, "x").shape == (8, 16, 3)
    with pytest.raises(DataError, match="images/3 is 16 x 8, but the network takes 8 x 8"):
        fit_picture(stripes(), (3, 8, 8), None, "images/3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(np.zeros((2, 2), dtype=np.uint16)), "more than 8 bits a channel"),
        (encoded(np.zeros((2, 2, 3), dtype=np.uint8), "TIFF"), "no JPEG, PNG, BMP or WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no JPEG, PNG, BMP or WebP"),
        (encoded(np.zeros((2, 2, 3), dtype=np.uint8))[:44], "cannot be decoded"),
    ],
)
def test_refuses_what_would_be_wrong_or_dangerous(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_picture(content, "x")


def test_statistics_are_those_of_all_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (700, 3, 5, 2), dtype=np.uint8)
    images[..., 1] //= 4

    found = channel_statistics(images)

    assert found.mean == pytest.approx((images / 255).mean(axis=(0, 1, 2)))
    assert found.std == pytest.approx((images / 255).std(axis=(0, 1, 2)))
    with pytest.raises(DataError, match="channel 1 of the images has one value"):
        channel_statistics(images * np.array([1, 0], dtype=np.uint8))
