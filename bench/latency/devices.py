"""This machine restricted to instruction sets, threads and runtimes, as so many distinct devices.

    python -m bench.latency.devices --work out/bench/devices --passes 3   # ten minutes; goes on where it was stopped
    python -m bench.latency.devices --work out/bench/devices --store      # keeps them with the source

All measure the same kernels, the first of those that the stored measurements drew by chance, one device after the other
for each kernel, so that what loads the machine loads all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.latency.attempts import done_keys, num_turns, read_records
from bench.latency.dataset import kernel_record
from bench.latency.stored import STORED, Dataset, from_records, machine_name, read_dataset, write_dataset
from device_agent.contracts import Clock, KernelSpec, MeasuringSetup, kernel_id
from device_agent.measuring.task import Surroundings
from device_agent.runtimes import Runtime, make_runtime
from device_agent.runtimes.native import NativeRuntime

NUM_KERNELS = 220
STORED_DEVICES = Path(__file__).with_name("devices")
#: Several threads are disturbed more often, and by less.
_BUDGET_S, _THREADS_BUDGET_S = 0.2, 0.4
_CI_HALF_WIDTH = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class RestrictedDevice:
    """This machine with a part of what it has. `isa` restricts the native runtime; None is the fastest."""

    name: str
    runtime: str = "native"
    isa: str | None = None
    threads: int = 1

    @property
    def setup(self) -> MeasuringSetup:
        return MeasuringSetup(
            runtime=self.runtime,
            threads=self.threads,
            # Thread-CPU time does not cover several threads.
            clock=Clock.THREAD_CPU if self.threads == 1 else Clock.WALL,
            budget_s=_BUDGET_S if self.threads == 1 else _THREADS_BUDGET_S,
            ci_half_width=_CI_HALF_WIDTH,
        )

    @property
    def surroundings(self) -> Surroundings:
        runtime: Runtime = NativeRuntime(isa=self.isa) if self.runtime == "native" else make_runtime(self.runtime)
        return Surroundings(make_runtime=lambda _name: runtime)

    @property
    def stored(self) -> Path:
        return STORED_DEVICES / f"{self.name}.json.gz"


DEVICES = (
    RestrictedDevice(name="native_avx2", isa="avx2"),
    RestrictedDevice(name="native_sse2", isa="sse2"),
    RestrictedDevice(name="native_2_threads", threads=2),
    RestrictedDevice(name="tflite", runtime="tflite"),
    RestrictedDevice(name="ncnn", runtime="ncnn"),
)


def read_device(device: RestrictedDevice) -> Dataset:
    """The stored measurements of a device. Raises `FileNotFoundError` where there are none."""
    return read_dataset(device.stored)


def measure_devices(work: Path, kernels: Sequence[KernelSpec], minutes: float, passes: int = 1) -> None:
    """Measure what is missing in `work`, everything `passes` times, for at most `minutes`, and again what the machine
    was slow or fast for.

    Kernels that a runtime cannot run are noted as such.
    """
    deadline = time.monotonic() + 60 * minutes
    paths = {device: work / f"{device.name}.jsonl" for device in DEVICES}
    around = {device: device.surroundings for device in DEVICES}
    for turn in range(num_turns(passes)):
        done = {device: done_keys(read_records(path), turn=turn, passes=passes) for device, path in paths.items()}
        missing = [(k, device) for k in kernels for device in DEVICES if kernel_id(k) not in done[device]]
        print(f"turn {turn + 1}: {len(missing)} of {len(kernels) * len(DEVICES)} to measure", file=sys.stderr)
        for kernel, device in missing:
            if time.monotonic() > deadline:
                print("out of time: run again to go on", file=sys.stderr)
                return
            with paths[device].open("a", encoding="utf-8") as file:
                file.write(json.dumps(kernel_record(kernel, device.setup, around[device])) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/bench/devices"))
    parser.add_argument("--kernels", type=int, default=NUM_KERNELS)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--passes", type=int, default=1, help="how often everything is measured")
    parser.add_argument("--store", action="store_true", help="keep what was measured with the source")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.store:
        kernels = [entry.kernel for entry in read_dataset(STORED).kernels[: options.kernels]]
        measure_devices(options.work, kernels, options.minutes, options.passes)
        return
    for device in DEVICES:
        records = read_records(options.work / f"{device.name}.jsonl")
        dataset = from_records(records, machine_name(), device.runtime)
        write_dataset(device.stored, dataset)


if __name__ == "__main__":
    main()
