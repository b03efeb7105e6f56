"""Timing: samples, statistics, the state of the device, and a verdict on the result."""
