"""Scikit-learn's handwritten digits: 1797 grey images of 8x8 pixels that come with the library."""

from __future__ import annotations

import numpy as np

from search.data.dataset import ImageData

#: Of all pixels, as parts of full brightness.
DIGITS_MEAN = (0.3055,)
DIGITS_STD = (0.3764,)

_FULL_BRIGHTNESS = 16


def load_digits() -> ImageData:
    """All digits as images (1797, 8, 8, 1)."""
    # Scikit-learn takes a second to import, and only the demo needs it.
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = np.rint(bunch.images * (255 / _FULL_BRIGHTNESS)).astype(np.uint8)[..., np.newaxis]
    return ImageData(
        images=images, labels=bunch.target.astype(np.int64), class_names=tuple(str(digit) for digit in range(10))
    )
