"""What a trained network's layers see, from a calibration set.

How much the outputs of a pruned layer change follows from the second moments of its inputs alone (Optimal Brain
Compression, arXiv 2208.11580, section 3: ||WX - W'X||^2 depends on X through H = X X^T).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from device_agent.contracts import ContractError, Op
from search.algorithms.threads import one_thread
from search.data.batches import Normalisation, as_tensors, network_input
from search.data.dataset import ImageData
from search.domain.network import NetworkSpec
from search.evaluation import in_mode
from search.pareto import FloatArray
from search.pruning.fuse import FusedModules, fused_modules

#: Input patches of a layer that are looked at, all images together.
_MAX_PATCHES = 8192
#: Images in one pass.
BATCH_SIZE = 64

_WEIGHTED = frozenset({Op.CONV2D, Op.FULLY_CONNECTED})

FloatTensor = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerMoments:
    """One convolution or linear layer.

    `weight` is (out, in, kh, kw). `mean` (in * kh * kw,) is that of the input patches where batch norm follows, which
    takes means away, and 0 otherwise. `root` is (r, in * kh * kw): root^T root is the second moment of the input
    patches around `mean`. `gain` (out,) is batch norm's factor, None without batch norm.
    """

    weight: FloatArray
    mean: FloatArray
    root: FloatArray
    gain: FloatArray | None


@torch.no_grad()
def layer_moments(
    model: nn.Module,
    spec: NetworkSpec,
    images: ImageData,
    normalise: Normalisation,
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, LayerMoments]:
    """The moments of every convolution (but the depthwise ones) and linear layer of the plan, by operator.

    Args:
        model: The trained network, in evaluation mode. It is not changed.
        spec: Its description.
        images: Calibration images.
        normalise: As in training.
        on_batch: Called before each batch; what it raises ends the work.

    Raises `ContractError` for a network with grouped convolutions.
    """
    grouped = [op.name for op in spec.plan.ops if op.kernel.op is Op.CONV2D and op.kernel.groups > 1]
    if grouped:
        raise ContractError(
            f"errors of grouped convolutions, such as {grouped[0]!r}, cannot be estimated layer by layer: use another "
            "method, such as 'jcw'"
        )
    modules = fused_modules(model, spec.plan.input_shape)
    ops = {op.name: op.kernel for op in spec.plan.ops if op.kernel.op in _WEIGHTED}
    patches = max(1, _MAX_PATCHES // len(images))
    collectors = {name: _Collector(model, modules[name], patches) for name in ops}
    pixels, _ = as_tensors(images)
    with evaluated_with(model, [collector.attach() for collector in collectors.values()]):
        for batch in torch.split(pixels, BATCH_SIZE):
            on_batch()
            model(network_input(batch, normalise))
    shapes = {name: (k.out_channels, k.in_channels, k.kernel_h, k.kernel_w) for name, k in ops.items()}
    with one_thread():
        return {name: collector.result(shapes[name]) for name, collector in collectors.items()}


@contextmanager
def evaluated_with(model: nn.Module, hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    """Evaluation mode while the hooks are there; after it they are gone, and the mode is as it was."""
    try:
        with in_mode(model, training=False):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _Collector:
    """Gathers patches of one layer's inputs."""

    def __init__(self, model: nn.Module, entry: FusedModules, patches: int) -> None:
        self._layer = model.get_submodule(entry.weights)
        self._norm = None if entry.norm is None else model.get_submodule(entry.norm)
        self._num_patches = patches
        self._inputs: list[FloatTensor] = []
        self._rng = np.random.default_rng(0)

    def attach(self) -> RemovableHandle:
        return self._layer.register_forward_pre_hook(self._see_input)

    def _see_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        if isinstance(self._layer, nn.Linear):
            self._inputs.append(x.reshape(-1, x.shape[-1]).numpy())
        else:
            assert isinstance(self._layer, nn.Conv2d)
            self._inputs.append(_sampled_patches(x, self._layer, self._num_patches, self._rng))

    def result(self, shape: tuple[int, int, int, int]) -> LayerMoments:
        weight = self._layer.weight
        assert isinstance(weight, Tensor)
        inputs = np.concatenate(self._inputs).astype(np.float64)
        mean = np.zeros(inputs.shape[1]) if self._norm is None else inputs.mean(axis=0)
        return LayerMoments(
            weight=weight.detach().numpy().astype(np.float64).reshape(shape),
            mean=mean,
            root=_root((inputs - mean) / np.sqrt(len(inputs))),
            gain=None if self._norm is None else _gain(self._norm, shape[0]),
        )


def _sampled_patches(x: Tensor, layer: nn.Conv2d, count: int, rng: np.random.Generator) -> FloatTensor:
    """(n * count, in * kh * kw): what the kernel meets at `count` random output positions of each image."""
    (kh, kw), (sh, sw) = layer.kernel_size, layer.stride
    assert not isinstance(layer.padding, str)
    ph, pw = layer.padding
    padded = F.pad(x, (pw, pw, ph, ph)).contiguous().numpy()
    heights, widths = (padded.shape[2] - kh) // sh + 1, (padded.shape[3] - kw) // sw + 1
    count = min(count, heights * widths)
    rows, columns = np.divmod(
        np.stack([rng.choice(heights * widths, count, replace=False) for _ in range(len(padded))]), widths
    )
    images = np.arange(len(padded))[:, None, None, None]
    found = padded.transpose(0, 2, 3, 1)[
        images,
        (rows * sh)[:, :, None, None] + np.arange(kh)[:, None],
        (columns * sw)[:, :, None, None] + np.arange(kw),
    ]
    return np.ascontiguousarray(found.transpose(0, 1, 4, 2, 3)).reshape(len(padded) * count, -1)


def _root(inputs: FloatArray) -> FloatArray:
    """A matrix with the same Gram matrix as `inputs` (n, d), of at most d rows."""
    if len(inputs) <= inputs.shape[1]:
        return inputs
    values, vectors = np.linalg.eigh(inputs.T @ inputs)
    root: FloatArray = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return root


def _gain(norm: nn.Module, channels: int) -> FloatArray:
    weight = getattr(norm, "weight", None)
    return np.ones(channels) if weight is None else weight.detach().numpy().astype(np.float64)
