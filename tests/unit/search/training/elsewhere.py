"""A second device for tests on machines without one: it computes on the processor, and what is apart is an error.

torch calls it "meta", a device that every build knows. With `elsewhere()`, tensors that are moved or made there keep
their numbers. As on a GPU, an operator's tensors must all be there or none, but for those of a single number.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")


#: What may have tensors of both.
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class _Held(Tensor):
    """A tensor of the other device, and the one on the processor that has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _Held:
        made: _Held = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class _Elsewhere(TorchDispatchMode):
    def __init__(self, used: Counter[str]) -> None:
        super().__init__()
        self._used = used

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(isinstance(value, _Held) for value in tree_flatten((args, kwargs))[0]):
            self._used[func.overloadpacket.__name__] += 1
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    held = [tensor for tensor in tensors if isinstance(tensor, _Held)]
    apart = [tensor for tensor in tensors if not isinstance(tensor, _Held) and tensor.dim() > 0]
    if held and apart and func not in _MOVES:
        raise RuntimeError(f"{func}: tensors are on {ELSEWHERE} and on {apart[0].device}")
    wanted = kwargs.get("device")
    on_other = bool(held) if wanted is None else torch.device(wanted) == ELSEWHERE
    here = {**kwargs, "device": torch.device("cpu")} if wanted is not None else kwargs
    result = func(*tree_map(_numbers, args), **tree_map(_numbers, here))
    if func._schema.is_mutable:
        # What was written to, as itself.
        return args[0] if isinstance(result, Tensor) else result
    return tree_map(lambda value: _Held(value) if on_other and isinstance(value, Tensor) else value, result)


def _numbers(value: Any) -> Any:
    return value.held if isinstance(value, _Held) else value


@contextlib.contextmanager
def elsewhere() -> Iterator[Counter[str]]:
    """Within, the device is there. Gives how often each operator had tensors of it."""
    used: Counter[str] = Counter()
    with _Elsewhere(used):
        yield used
