"""A limit on the memory of each of a worker's processes, and how reaching it is told from a defect."""

from __future__ import annotations

import resource
from pathlib import Path

from device_agent.contracts import ContractError

#: What must be free for a search once all libraries are there.
MIN_FREE_BYTES = 256 << 20

#: How torch's allocators tell it; numpy and Python raise MemoryError.
_TORCH_WORDS = ("can't allocate memory", "out of memory")


def limit_memory(most_bytes: int) -> None:
    """Let this process, and each that it starts from now on, take at most so much memory for data; 0 is no limit.

    Counted are heap and stacks of threads, not code and files. What asks for more fails inside its search, instead of
    bringing the kernel to end some process of this machine. Raises `ContractError` where too little would be left.
    """
    if most_bytes == 0:
        return
    taken = _data_bytes()
    if most_bytes < taken + MIN_FREE_BYTES:
        raise ContractError(
            f"worker_memory_bytes {most_bytes} leaves less than {MIN_FREE_BYTES >> 20} MiB to searches, as a worker "
            f"takes {taken} by itself: set KERF_WORKER_MEMORY_BYTES to {taken + MIN_FREE_BYTES} or more, or 0 for no "
            "limit"
        )
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WORDS)


def _data_bytes() -> int:
    """What counts towards the limit now; 0 where nothing tells."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
    except (OSError, StopIteration, ValueError):
        return 0
