"""How much the loss grows when the outputs of single layers change.

Where a layer's outputs z change by dz, the cross-entropy of a network that fits its data grows, to second order, by

    1/2 E[(sum_p g_p^T dz_p)^2],

with g_p the gradient of an image's loss by the outputs at position p, and labels drawn from the network's own outputs:
the Fisher information (B. Hassibi, D. Stork: Optimal Brain Surgeon, NIPS 1992; S. Singh, D. Alistarh: WoodFisher, arXiv
2004.14340, whose empirical Fisher counts fitted images for nothing: F. Kunstner, L. Balles, P. Hennig, arXiv
1905.12558). Positions and channels are summed before the square is taken, as their errors are not independent: what a
missing channel takes from all outputs and positions alike costs many times what as large a random error would.

Changes that are linear in the inputs, dz_p = D (x_p - mean), need no pass of their own for each D: the sum is the inner
product of D and the image's gradient by the weights, sum_p g_p (x_p - mean)^T.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from device_agent.contracts import ContractError
from search.data.batches import Normalisation, as_tensors, network_input
from search.data.dataset import ImageData
from search.domain.network import NetworkSpec
from search.pareto import FloatArray
from search.pruning.fuse import FusedModules, fused_modules
from search.reconstruction.layer_errors import IndexArray
from search.reconstruction.moments import BATCH_SIZE, evaluated_with
from search.tasks.base import CLASSIFICATION, task_of

#: Of changes that are held at once, and of gradients by single weights.
_CHANGE_BYTES = 512 * 2**20
_GRADIENT_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerChanges:
    """Ways in which the outputs of one layer may change, made when they are asked for.

    `make` gives the changes D (out, in * kh * kw) in their order; `mean` (in * kh * kw,) as in
    `moments.LayerMoments`. `kept_outputs` are the output channels that are there, for each choice of them: changes of
    others cost nothing here, as whoever reads them counts them.
    """

    make: Callable[[], Iterator[FloatArray]]
    mean: FloatArray
    kept_outputs: Sequence[IndexArray]


def loss_growths(
    model: nn.Module,
    spec: NetworkSpec,
    images: ImageData,
    normalise: Normalisation,
    changes: Mapping[str, LayerChanges],
    *,
    on_batch: Callable[[int], None] = lambda layers_done: None,
) -> dict[str, FloatArray]:
    """Nats (changes, kept outputs) by operator. Labels are drawn from a fixed seed.

    As many changes are looked at in one pass over `images` as fit in memory.

    Args:
        model: The trained network. It is not changed.
        spec: Its description.
        images: Calibration images.
        normalise: As in training.
        changes: What is asked for, by operators of the plan.
        on_batch: Called with the layers that are done before each batch; what it raises ends the work.
    """
    if (task := task_of(images)) is not CLASSIFICATION:
        raise ContractError(
            f"the task {task.name!r} has no classes to draw labels from: use another method than 'exact'"
        )
    modules = fused_modules(model, spec.plan.input_shape)
    found: dict[str, list[FloatArray]] = {name: [] for name in changes}
    for held in _by_memory(changes):
        done = list(changes).index(next(iter(held)))
        # Taken out one by one, as each layer's are copied into one tensor.
        watched = {name: _Watched(model, modules[name], changes[name], held.pop(name)) for name in list(held)}
        _look(model, images, normalise, list(watched.values()), functools.partial(on_batch, done))
        for name, layer in watched.items():
            found[name].append(layer.sums.numpy() / (2 * len(images)))
    return {name: np.concatenate(rows) for name, rows in found.items()}


def _by_memory(changes: Mapping[str, LayerChanges]) -> Iterator[dict[str, list[Tensor]]]:
    """The changes in their order, as many at a time as may be held; one at least."""
    held: dict[str, list[Tensor]] = {}
    size = 0
    for name, layer in changes.items():
        for change in layer.make():
            row = torch.from_numpy(change.astype(np.float32))
            if held and size + row.nbytes > _CHANGE_BYTES:
                yield held
                held, size = {}, 0
            held.setdefault(name, []).append(row)
            size += row.nbytes
    if held:
        yield held


def _look(
    model: nn.Module,
    images: ImageData,
    normalise: Normalisation,
    watched: Sequence[_Watched],
    on_batch: Callable[[], None],
) -> None:
    """One pass over `images`, forward and back."""
    pixels, _ = as_tensors(images)
    generator = torch.Generator().manual_seed(0)
    with evaluated_with(model, [hook for layer in watched for hook in layer.attach()]):
        for batch in torch.split(pixels, BATCH_SIZE):
            on_batch()
            with torch.enable_grad():
                logits = model(network_input(batch, normalise)).float()
                labels = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)[:, 0]
                loss = F.cross_entropy(logits, labels, reduction="sum")
                gradients = torch.autograd.grad(loss, [layer.output for layer in watched])
            for layer, gradient in zip(watched, gradients, strict=True):
                layer.add(gradient)


class _Watched:
    """One layer in a pass. `sums` (changes, kept outputs): of the squares, over images."""

    def __init__(self, model: nn.Module, entry: FusedModules, layer: LayerChanges, changes: list[Tensor]) -> None:
        self._layer = model.get_submodule(entry.weights)
        self._last = self._layer if entry.norm is None else model.get_submodule(entry.norm)
        #: (out, d, changes)
        self._changes = torch.stack(changes, dim=2)
        self._mean = torch.from_numpy(layer.mean.astype(np.float32))
        self._is_kept = torch.zeros(len(layer.kept_outputs), len(self._changes))
        for row, kept in zip(self._is_kept, layer.kept_outputs, strict=True):
            row[torch.from_numpy(kept)] = 1.0
        self.sums = torch.zeros(len(changes), len(layer.kept_outputs), dtype=torch.float64)
        self._inputs = self.output = torch.empty(0)

    def attach(self) -> list[RemovableHandle]:
        return [
            self._layer.register_forward_pre_hook(self._see_input),
            self._last.register_forward_hook(self._see_output),
        ]

    def _see_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = inputs[0].detach()

    def _see_output(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # A later module may change the output in place (ReLU), which gradients by it would not survive.
        self.output = output if output.requires_grad else output.detach().requires_grad_()
        return self.output.clone()

    @torch.no_grad()
    def add(self, gradient: Tensor) -> None:
        """Take in the gradient of a batch's loss by the outputs, (n, out) or (n, out, h, w)."""
        out, d, _ = self._changes.shape
        count = max(1, _GRADIENT_BYTES // (4 * out * d))
        for x, g in zip(torch.split(self._inputs, count), torch.split(gradient, count), strict=True):
            # (out, n, d): each image's gradient by the weights.
            if isinstance(self._layer, nn.Conv2d):
                assert not isinstance(self._layer.padding, str)
                patches = F.unfold(x, self._layer.kernel_size, padding=self._layer.padding, stride=self._layer.stride)
                slopes = torch.bmm(g.flatten(2), patches.transpose(1, 2)).transpose(0, 1)
                slopes = slopes - g.flatten(2).sum(2).T[:, :, None] * self._mean
            else:
                slopes = g.T[:, :, None] * (x - self._mean)
            of_outputs = torch.bmm(slopes, self._changes)
            growth = torch.einsum("jo,onc->jnc", self._is_kept, of_outputs).double()
            self.sums += growth.square().sum(dim=1).T
        self._inputs = self.output = torch.empty(0)
