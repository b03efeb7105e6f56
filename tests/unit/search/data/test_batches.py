from __future__ import annotations

import pytest
import torch

from search.data.batches import NO_AUGMENTATION, Augmentation, Normalisation, augment, network_input
from search.data.dataset import DataError

COLOUR = Normalisation(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


def test_normalises_each_channel_in_channels_last_layout() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(2, 4, 6, 3).contiguous()

    x = network_input(images, COLOUR)

    assert x.shape == (2, 3, 4, 6)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x[0, :, 0, 0].tolist() == pytest.approx([-1.0, 3.0, 0.2])


def test_resizes_to_another_resolution() -> None:
    images = torch.full((1, 8, 8, 3), 100, dtype=torch.uint8)

    x = network_input(images, COLOUR, resolution=6)

    assert x.shape == (1, 3, 6, 6)
    torch.testing.assert_close(x, network_input(images, COLOUR)[:, :, :6, :6])


def test_augmented_images_are_shifted_or_mirrored_originals() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(1, 256, (5, 4, 3), generator=generator, dtype=torch.uint8)
    padded = torch.zeros(9, 8, 3, dtype=torch.uint8)
    padded[2:7, 2:6] = image
    windows = [padded[r : r + 5, c : c + 4] for r in range(5) for c in range(5)]
    allowed = [*windows, *(w.flip(1) for w in windows)]

    batch = augment(image.expand(200, 5, 4, 3).contiguous(), Augmentation(flip=True, crop_padding=2), generator)

    found = {next(i for i, a in enumerate(allowed) if torch.equal(a, crop)) for crop in batch}
    assert len(found) > 30


def test_without_augmentation_images_stay() -> None:
    images = torch.randint(0, 256, (3, 4, 4, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    assert torch.equal(augment(images, NO_AUGMENTATION, torch.Generator()), images)


def test_augmentation_follows_its_generator() -> None:
    images = torch.randint(0, 256, (8, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crops = [augment(images, Augmentation(), torch.Generator().manual_seed(s)) for s in (1, 1, 2)]

    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])


def test_refuses_impossible_settings() -> None:
    with pytest.raises(DataError, match="positive std"):
        Normalisation(mean=(0.0,), std=(0.0,))
    with pytest.raises(DataError, match="crop_padding -1"):
        Augmentation(crop_padding=-1)
