"""The latency database: kernels, measuring tasks, measurements."""
