"""Linear algebra on one thread.

Matrices of a search method have some hundred rows. Sharing them out costs more than it saves, and where other processes
keep the cores busy, threads that wait for each other made a fit 25 times slower (measured on two cores).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, numpy's and scipy's linear algebra uses the calling thread alone."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> ThreadpoolController:
    # Looking for the libraries takes milliseconds.
    return ThreadpoolController()
