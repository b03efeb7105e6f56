"""The latency of candidates: the table of measured kernels, interpolation, and whole networks."""
