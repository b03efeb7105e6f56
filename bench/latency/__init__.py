"""Benchmarks of measuring and of latency models."""
