"""The network of the tutorial, in no zoo: branches that are concatenated, and a squeeze-and-excite gate behind them.

`python gated_net.py` trains it on scikit-learn's 8x8 digits, and writes three files into the current folder:
`weights.safetensors`, and the images that it was trained and tested on as `digits-train.npz` and `digits-test.npz`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

NUM_CLASSES = 10
#: What pixels in [0, 1] are normalised with: `dataset.mean` and `dataset.std` of search.yaml are the same.
MEAN, STD = 0.3, 0.37


class Gate(nn.Module):
    """Squeeze-and-excite: one factor for each channel, from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(means))))


class Block(nn.Module):
    """A 3x3 and a 1x1 branch side by side, concatenated, merged by a 3x3 convolution, and gated."""

    def __init__(self, inputs: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.wide = convolution(inputs, channels, 3, stride)
        self.narrow = convolution(inputs, channels // 2, 1, stride)
        self.merge = convolution(channels + channels // 2, channels, 3)
        self.gate = Gate(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.merge(torch.cat((self.wide(x), self.narrow(x)), dim=1)))


def convolution(inputs: int, outputs: int, window: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, window, stride=stride, padding=window // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class GatedNet(nn.Module):
    """(n, 1, 8, 8) to (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(1, 16, 3)
        self.blocks = nn.Sequential(Block(16, 32), Block(32, 64, stride=2))
        self.head = nn.Linear(64, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def make() -> nn.Module:
    """What `kerf models convert gated_net.py:make` calls."""
    return GatedNet()


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (1797, 8, 8) and their classes, in an order drawn by chance: the digits lie by writer."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[order], labels[order].astype(np.int64)


def normalised(images: np.ndarray) -> Tensor:
    """float32 (n, 1, 8, 8)."""
    return (torch.from_numpy(images)[:, None].float() / 255 - MEAN) / STD


def train(network: nn.Module, images: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    x, y = normalised(images), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    network.train()
    for epoch in range(epochs):
        losses = []
        for chosen in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.4f}", flush=True)


def accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    network.eval()
    with torch.no_grad():
        return float((network(normalised(images)).argmax(1).numpy() == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tutorial's network on digits.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("."), help="Folder for the three files.")
    options = parser.parse_args()
    torch.manual_seed(0)
    images, labels = read_digits()
    num_test = len(labels) // 5
    test, training = slice(num_test), slice(num_test, None)
    network = make()
    train(network, images[training], labels[training], options.epochs)
    print(f"test accuracy {accuracy(network, images[test], labels[test]):.2%}")
    options.output.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), options.output / "weights.safetensors")
    np.savez(options.output / "digits-train.npz", images=images[training], labels=labels[training])
    np.savez(options.output / "digits-test.npz", images=images[test], labels=labels[test])


if __name__ == "__main__":
    main()
