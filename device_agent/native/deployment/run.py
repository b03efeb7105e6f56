"""Runs network.kerfnet in Python: `python run.py [INPUT.npy]`. Needs `pip install kerf`."""

import sys
import time
from pathlib import Path

import numpy as np

from device_agent.formats.packed import open_packed
from device_agent.native.executor import NativeNetwork

plan, tensors = open_packed(Path(__file__).parent / "network.kerfnet")
network = NativeNetwork(plan, tensors)
x = np.load(sys.argv[1], allow_pickle=False) if len(sys.argv) > 1 else np.zeros(plan.input_shape, np.float32)
output = network.run(x)
times_ns = []
for _ in range(100):
    start_ns = time.perf_counter_ns()
    network.invoke()
    times_ns.append(time.perf_counter_ns() - start_ns)
print(f"network: {plan.name}, input {plan.input_shape}, output {plan.output_shape}")
print(f"instruction set: {network.isa}")
print(f"top: {int(output.argmax())} ({output.max():g})")
print(f"shortest of 100 runs: {min(times_ns) / 1e6:.4f} ms")
print(f"median of 100 runs: {np.median(times_ns) / 1e6:.4f} ms")
