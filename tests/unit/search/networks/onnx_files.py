"""ONNX files: from torch, and by hand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

OPSET = 20
IR_VERSION = 10


def exported(model: nn.Module, path: Path, shape: tuple[int, ...] = (3, 8, 8), **options: Any) -> Path:
    """`model` as torch's older exporter writes it, with an open number of images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (torch.randn(2, *shape),),
            path,
            **{"dynamo": False, "input_names": ["x"], "dynamic_axes": {"x": {0: "images"}}, **options},
        )
    return path


def onnx_model(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Any] | None = None,
    *,
    shape: Sequence[Any] = ("images", 3, 8, 8),
    outputs: Sequence[str] = ("y",),
    opset: int = OPSET,
    input_type: int = TensorProto.FLOAT,
) -> ModelProto:
    """A model of `nodes` that reads "x" and gives "y"."""
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info("x", input_type, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


def saved(model: ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def node(op: str, *inputs: str, output: str = "y", name: str = "", **attributes: Any) -> NodeProto:
    made = helper.make_node(op, list(inputs), [output], name=name or f"/{op}")
    # None of the helper's guesses: what is not given is not there.
    made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return made


def weights(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
