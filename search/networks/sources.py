"""What a user names as the network to convert: a function in code of their own, or an exported program."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.export import ExportedProgram

from device_agent.contracts import ContractError

_PICKLED = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".tar", ".mar")
_REMEDY = (
    "name the function that makes the network, `module.py:factory`, and give its weights with --weights as safetensors "
    "(safetensors.torch.save_file(model.state_dict(), 'weights.safetensors'))"
)


def check_source(source: str, *, trust_file: bool) -> None:
    """Refuse files that are not read. Raises `ContractError` with the remedy."""
    suffix = Path(source).suffix.lower()
    if suffix in _PICKLED:
        raise ContractError(f"{source}: files of pickles can run any code and are not read: {_REMEDY}")
    if suffix == ".safetensors":
        raise ContractError(f"{source} holds weights without a network: {_REMEDY}")
    if suffix == ".pt2" and not trust_file:
        raise ContractError(
            f"{source}: loading a .pt2 file can run code that is in it: give --trust-file if you made it yourself, or "
            f"{_REMEDY}"
        )
    if suffix != ".pt2" and trust_file:
        raise ContractError(f"--trust-file is for .pt2 files, not for {source}: leave it out")


def is_onnx(source: str) -> bool:
    """Whether `source` names an ONNX file."""
    return Path(source).suffix.lower() == ".onnx"


def load_program(path: Path) -> ExportedProgram:
    """Load an exported program. It can run code: only for files that the user trusts."""
    if not path.is_file():
        raise ContractError(f"there is no file {path}: check the path")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise ContractError(
            f"{path} cannot be loaded by torch {torch.__version__} ({type(error).__name__}: {str(error)[:200]}): "
            "export it again with this version, torch.export.save"
        ) from None


def load_module(source: str) -> nn.Module:
    """Call the factory that `source` names, "module.py:factory" or "package.module:factory". It runs the user's code.

    Raises `ContractError` where there is none, or it gives no torch module.
    """
    where, separator, name = source.rpartition(":")
    if not separator or not where or not name.isidentifier():
        raise ContractError(f"{source!r} names no network: use `module.py:factory`, or `package.module:factory`")
    factory = getattr(_import(where, source), name, None)
    if factory is None:
        raise ContractError(f"{where} has no {name!r}: check the name in {source!r}")
    try:
        model = factory if isinstance(factory, nn.Module) else factory()
    except Exception as error:
        raise ContractError(
            f"{source} failed ({type(error).__name__}: {error}): it must make the network without arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise ContractError(f"{source} gave {type(model).__name__}, and no torch.nn.Module")
    return model


def _import(where: str, source: str) -> ModuleType:
    path = Path(where)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise ContractError(f"there is no file {path}: check the path in {source!r}")
    # As `python FILE` and `python -m MODULE` have it: what lies beside the file, or in the current folder, is found.
    with _first_on_path(path.parent.resolve() if is_file else Path.cwd()):
        try:
            if not is_file:
                return importlib.import_module(where)
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except Exception as error:
            raise ContractError(f"{where} cannot be imported ({type(error).__name__}: {error})") from error
        return module


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
