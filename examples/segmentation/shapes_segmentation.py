"""A task of one's own: which pixels are a square and which a disc.

`python shapes_segmentation.py FOLDER` writes the data and a trained network for `search.yaml` into FOLDER. The network
gives a map of half the input's height and width, since there are no kernels that enlarge one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_CLASSES = 3
SIDE = 16
STRIDE = 2


class ShapesSegmentation:
    """What `kerf.tasks` announces: cross-entropy of pixels, judged by the mean intersection over union."""

    metric_name = "mean IoU"
    #: A flipped image would need a flipped map.
    follows_geometry = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(n,) from (n, classes, h, w) and (n, h, w)."""
        return F.cross_entropy(outputs, targets, reduction="none").mean((1, 2))

    def metric(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Intersection over union of each class that is in an image or was seen there, averaged over those classes."""
        found = F.one_hot(outputs.argmax(1), NUM_CLASSES).bool()
        there = F.one_hot(targets, NUM_CLASSES).bool()
        intersection = (found & there).sum((1, 2))
        union = (found | there).sum((1, 2))
        return (intersection / union.clamp(min=1)).sum(1) / (union > 0).sum(1)


def make_network() -> nn.Module:
    """Grey images of 16 x 16 to scores of the classes on 8 x 8."""

    def layer(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(*layer(1, 8), *layer(8, 16, STRIDE), *layer(16, 16), nn.Conv2d(16, NUM_CLASSES, 1))


def make_data(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images, uint8 (n, 16, 16), and the class of every second pixel, int64 (n, 8, 8)."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    images = np.empty((count, SIDE, SIDE), dtype=np.uint8)
    masks = np.zeros((count, SIDE, SIDE), dtype=np.int64)
    for image, mask in zip(images, masks, strict=True):
        for label in (1, 2):
            radius = generator.integers(2, 5)
            row, column = generator.integers(radius, SIDE - radius, 2)
            away = np.abs(rows - row), np.abs(columns - column)
            mask[np.maximum(*away) <= radius if label == 1 else away[0] ** 2 + away[1] ** 2 <= radius**2] = label
        # Both are equally bright: what tells them apart is their shape.
        image[:] = np.clip(60 + 110 * (mask > 0) + generator.normal(0, 12, mask.shape), 0, 255)
    return images, masks[:, ::STRIDE, ::STRIDE]


def train(network: nn.Module, images: np.ndarray, targets: np.ndarray, epochs: int) -> nn.Module:
    """The network after plain training, in evaluation mode. Pixels are normalised as `search.yaml` says."""
    task = ShapesSegmentation()
    x = (torch.from_numpy(images)[:, None].float() / 255.0 - 0.3) / 0.2
    y = torch.from_numpy(targets)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            task.loss(network(x[chosen]), y[chosen]).mean().backward()
            optimizer.step()
    return network.eval()


def write(folder: Path, images: int = 1200, epochs: int = 20) -> None:
    """Write `shapes.npz` and `shapes.kerf` into `folder`."""
    from search.networks.convert import convert_module
    from search.networks.file import write_network

    torch.manual_seed(0)
    pixels, targets = make_data(images, seed=0)
    np.savez(folder / "shapes.npz", images=pixels, targets=targets)
    network = train(make_network(), pixels, targets, epochs)
    write_network(convert_module(network, torch.zeros(1, 1, SIDE, SIDE), "shapes").network, folder / "shapes.kerf")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
