"""A check of a data set before it is used: what it holds, and whether that can be read. Nothing is kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from search.data.dataset import DataError
from search.data.pictures import decode_picture
from search.data.reading import detect_format, open_data, relabelled
from search.data.source import DataFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class DataContents:
    """What a data set holds. The order of the names is that of the labels.

    `class_counts` are images of each class, empty as the names are where there are targets of a task of one's own;
    `target_shape` is then that of one target. `decoded` images were decoded in the check.
    """

    format: DataFormat
    num_images: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    decoded: int
    target_shape: tuple[int, ...] | None = None


def check_data(
    path: Path,
    *,
    class_names: Sequence[str] | None = None,
    max_decoded: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataContents:
    """Check names, sizes, labels, checksums, and that images can be decoded.

    Args:
        path: A folder or zip of class folders, `.npz` or Parquet.
        class_names: The classes that must be there, for a test set.
        max_decoded: Decode so many images only, evenly spread and at least the first of each class; by default all.
        on_progress: Called with (decoded, all to decode) every hundred images.

    Raises:
        DataError: The data set is damaged, unsafe or too large, a class is empty or unexpected, or an image is
            undecodable. The text names the file and the remedy.
    """
    form = detect_format(path)
    with open_data(path) as source:
        labels, names = relabelled(source, class_names, str(path))
        if len(names) == 1:
            raise DataError(f"{path} has only the class {names[0]!r}: a network needs at least two to tell apart")
        count = len(labels)
        chosen = np.arange(count)
        if max_decoded is not None and max_decoded < count:
            even = np.linspace(0, count - 1, max_decoded).round().astype(np.int64)
            firsts = np.unique(labels, return_index=True)[1] if names else np.array([], dtype=np.int64)
            chosen = np.union1d(even, firsts[:max_decoded])
            source.check_stored()
        for done, stored in enumerate(source.images(chosen), start=1):
            if isinstance(stored.content, bytes):
                decode_picture(stored.content, stored.where)
            if on_progress is not None and (done % 100 == 0 or done == len(chosen)):
                on_progress(done, len(chosen))
    return DataContents(
        format=form,
        num_images=count,
        class_names=names,
        class_counts=tuple(int(n) for n in np.bincount(labels, minlength=len(names))) if names else (),
        decoded=len(chosen),
        target_shape=None if names else labels.shape[1:],
    )
