"""`python -m search.data.check_process`: a data set that somebody else made, checked in a process with limits.

What reads images and Parquet is C code, and what it reads may have been made to break it: it then takes this process
down, and not the server. Started by `check_in_process`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from device_agent.contracts import decode, encode
from search.data.check import DataContents, check_data
from search.data.dataset import DataError

MAX_MEMORY_BYTES = 4 << 30
TIMEOUT_S = 600
#: Enough to meet what is wrong with all images alike; all are decoded where the search begins.
MAX_DECODED = 1000


def check_in_process(path: Path, class_names: Sequence[str] | None = None) -> DataContents:
    """`check_data` on `MAX_DECODED` images in a child process of bounded memory and time.

    Raises:
        DataError: What the check says, or that it broke off. The file is called by its name alone.
    """
    request = json.dumps({"path": str(path), "class_names": None if class_names is None else list(class_names)})
    # One thread: the libraries' pools would each reserve memory of their own.
    environment = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "search.data.check_process"],
            input=request,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"{path.name} could not be checked within {TIMEOUT_S} s: make it smaller") from None
    try:
        answer = json.loads(ended.stdout)
    except ValueError:
        raise DataError(
            f"{path.name} broke the check off (exit {ended.returncode}), as a damaged file does: make it again"
        ) from None
    if "error" in answer:
        raise DataError(str(answer["error"]).replace(f"{path.parent}{os.sep}", ""))
    return decode(DataContents, answer["contents"])


def main() -> None:
    """Read the request from standard input, and write the answer to standard output."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT_S, TIMEOUT_S))
    request = json.load(sys.stdin)
    try:
        contents = check_data(Path(request["path"]), class_names=request["class_names"], max_decoded=MAX_DECODED)
    except DataError as error:
        answer: dict[str, object] = {"error": str(error)}
    except MemoryError:
        name = Path(request["path"]).name
        answer = {"error": f"{name} takes more than {MAX_MEMORY_BYTES >> 30} GiB to read: make it smaller"}
    else:
        answer = {"contents": encode(contents)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
