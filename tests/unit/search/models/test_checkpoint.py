from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from search.models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from search.models.zoo import build_model


def test_round_trip(tmp_path: Path) -> None:
    source = build_model("small_cnn", generator=torch.Generator().manual_seed(3))
    target = build_model("small_cnn")

    save_checkpoint(source, tmp_path / "folder" / "weights.safetensors")
    load_checkpoint(target, tmp_path / "folder" / "weights.safetensors")

    assert all(torch.equal(target.state_dict()[n], t) for n, t in source.state_dict().items())
    assert [f.name for f in (tmp_path / "folder").iterdir()] == ["weights.safetensors"]


def test_batch_norm_counters_may_be_missing(tmp_path: Path) -> None:
    model = build_model("small_cnn")
    tensors = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "weights.safetensors")

    load_checkpoint(model, tmp_path / "weights.safetensors")


def test_names_the_tensors_that_do_not_fit_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_checkpoint(build_model("small_cnn", num_classes=5), path)
    model = build_model("small_cnn", generator=torch.Generator().manual_seed(3))
    before = {n: t.clone() for n, t in model.state_dict().items()}

    with pytest.raises(CheckpointError, match=r"linear\.weight has shape \(5, 64\) instead of \(10, 64\).*classes"):
        load_checkpoint(model, path)

    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())


def test_names_missing_and_surplus_tensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_checkpoint(build_model("resnet32"), path)

    with pytest.raises(CheckpointError, match=r"layer1\.3\.bn1\.bias is not part of the network; .* more"):
        load_checkpoint(build_model("resnet20"), path)
    with pytest.raises(CheckpointError, match=r"layer1\.5\.conv1\.weight.* is missing"):
        load_checkpoint(build_model("resnet44"), path)


def test_refuses_values_that_are_not_finite(tmp_path: Path) -> None:
    model = build_model("small_cnn")
    tensors = {n: t.clone() for n, t in model.state_dict().items()}
    tensors["conv2.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, tmp_path / "weights.safetensors")

    with pytest.raises(CheckpointError, match=r"conv2\.weight holds values that are not finite"):
        load_checkpoint(model, tmp_path / "weights.safetensors")


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all", b"\xff" * 64])
def test_says_what_is_wrong_with_the_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        load_checkpoint(build_model("small_cnn"), path)
