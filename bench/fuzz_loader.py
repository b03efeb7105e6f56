"""Fuzzes the loader of program images and the kernels behind it: libFuzzer, with both sanitizers.

    python -m bench.fuzz_loader [--minutes 10] [--clang clang++] [--folder out/bench/fuzz] [--json FILE]

Needs a clang with libFuzzer (Debian: clang and libclang-rt-14-dev or newer). The seeds are images of networks with all
kinds of steps, with gaps between their regions that no access may touch. Whatever passes the check is run on every
backend of this machine. The corpus is kept in the folder and is where the next run goes on. Ends with code 1 where
something was found: the input lies in the folder as crash-*.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.image_harness import build_harness

#: Inputs of networks with several layers; longer ones only slow it down.
MAX_INPUT_BYTES = 16_384
MAX_SEEDS = 150


def build_fuzzer(folder: Path, clang: str) -> Path:
    """The fuzzer, compiled into `folder`. Raises `RuntimeError` with the compiler's words."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "fuzzer"
    flags = ("-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all", "-DKERF_FUZZ")
    # The fuzzer explores the loader and the check. In kernels it would wander among tiles, and compile for long.
    kernel_flags = ("-fsanitize=address",)
    build_harness(target, [clang], flags, kernel_flags, link_flags=("-fsanitize=fuzzer,address,undefined",))
    return target


def write_seeds(folder: Path) -> int:
    """Sound images, each spread. Returns how many."""
    from tests.sanitizers.corpus import sound_images  # what tests are made from; nothing else here needs them
    from tests.unit.device_agent.native.image_samples import spread

    folder.mkdir(parents=True, exist_ok=True)
    images = [spread(image, gap_bytes=64) for image in sound_images()]
    images = sorted((image for image in images if len(image) <= MAX_INPUT_BYTES), key=len)[:MAX_SEEDS]
    for index, image in enumerate(images):
        (folder / f"seed-{index:03}").write_bytes(image)
    return len(images)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clang", default="clang++")
    parser.add_argument("--folder", type=Path, default=Path("out/bench/fuzz"))
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer's random choices")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    fuzzer = build_fuzzer(options.folder, options.clang)
    num_seeds = write_seeds(options.folder / "seeds")
    (options.folder / "corpus").mkdir(exist_ok=True)
    done = subprocess.run(
        [
            "nice", "-n", "15", str(fuzzer.resolve()),
            f"-max_total_time={60 * options.minutes:.0f}", f"-max_len={MAX_INPUT_BYTES}", f"-seed={options.seed}",
            "-timeout=60", "-rss_limit_mb=4096", "-len_control=0", "-print_final_stats=1", "corpus", "seeds",
        ],
        cwd=options.folder, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    (options.folder / "log.txt").write_text(done.stderr)
    result = {"seeds": num_seeds, "minutes": options.minutes, "found": done.returncode != 0} | _statistics(done.stderr)
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if done.returncode != 0:
        print(done.stderr[-6000:], file=sys.stderr)
    return 1 if done.returncode != 0 else 0


def _statistics(log: str) -> dict[str, int]:
    """From libFuzzer's last words. `edges` of the loader and the check, `corpus`: inputs that found new ones."""
    numbers = {
        "executions": r"stat::number_of_executed_units:\s+(\d+)",
        "executions_per_s": r"stat::average_exec_per_sec:\s+(\d+)",
        "edges": r".*\bcov: (\d+)",
        "features": r".*\bft: (\d+)",
        "corpus": r".*\bcorp: (\d+)",
    }
    found = {name: re.findall(pattern, log) for name, pattern in numbers.items()}
    return {name: int(values[-1]) for name, values in found.items() if values}


if __name__ == "__main__":
    sys.exit(main())
