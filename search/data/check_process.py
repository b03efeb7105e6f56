"""A data set that somebody else made, checked in a process of its own with limits.

What reads images and Parquet is C code, and what it reads may have been made to break it: it then takes that process
down, and not the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from device_agent.contracts import decode, encode
from search.data.check import DataContents, check_data
from search.data.dataset import DataError
from search.limited_process import BrokenOff, Limits, answer_request, run_limited

LIMITS = Limits(memory_bytes=4 << 30, timeout_s=600)
#: Enough to meet what is wrong with all images alike; all are decoded where the search begins.
MAX_DECODED = 1000


def check_in_process(path: Path, class_names: Sequence[str] | None = None) -> DataContents:
    """`check_data` on `MAX_DECODED` images in a child process of bounded memory and time.

    Raises:
        DataError: What the check says, or that it broke off. The file is called by its name alone.
    """
    request = {"path": str(path), "class_names": None if class_names is None else list(class_names)}
    try:
        answer = run_limited(__name__, request, path, LIMITS)
    except BrokenOff as error:
        raise DataError(str(error)) from None
    if "error" in answer:
        raise DataError(str(answer["error"]))
    return decode(DataContents, answer["contents"])


def _check(request: dict[str, Any]) -> dict[str, Any]:
    try:
        contents = check_data(Path(request["path"]), class_names=request["class_names"], max_decoded=MAX_DECODED)
    except DataError as error:
        return {"error": str(error)}
    return {"contents": encode(contents)}


if __name__ == "__main__":
    answer_request(_check)
