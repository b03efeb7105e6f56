"""Torch runs on one thread in these tests: their networks are small, and several test processes share the cores."""

import os

# Read when torch is imported, which the test modules do after this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
