"""Small data sets in every form, for tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def image_bytes(value: int, size: tuple[int, int] = (6, 4), kind: str = "PNG", **options: Any) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(buffer, kind, **options)
    return buffer.getvalue()


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_npz(path: Path, **arrays: Any) -> Path:
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def write_parquet(
    path: Path, columns: Mapping[str, Any], metadata: Mapping[bytes, bytes] | None = None, **options: Any
) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table(dict(columns))
    parquet.write_table(table if metadata is None else table.replace_schema_metadata(dict(metadata)), path, **options)
    return path
