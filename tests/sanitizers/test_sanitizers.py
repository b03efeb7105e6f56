"""The loader, the check and all kernels under the address and undefined-behaviour sanitizers: `make test-sanitizers`.

Images have gaps between their regions, which the harness poisons: what strays from its region is reported even inside
of the image or the workspace.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from bench.image_harness import build_harness
from device_agent.native.build import find_compiler
from device_agent.native.library import Kind
from tests.sanitizers import corpus
from tests.unit.device_agent.native import image_samples as samples

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sanitizers")]

_BATCH = 500
EVERY_KIND = samples.spread(samples.image_of(samples.every_kind()))


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler here")
    target = tmp_path_factory.mktemp("harness") / "image_harness"
    build_harness(target, [compiler])
    return target


def run(harness: Path, images: Iterable[bytes], folder: Path) -> Iterator[list[str]]:
    """What the harness prints of each image, split into words: code of the check, then backend:hash."""
    remaining = iter(images)
    for number in itertools.count():
        batch = list(itertools.islice(remaining, _BATCH))
        if not batch:
            return
        paths = []
        for index, image in enumerate(batch):
            path = folder / f"{number}-{index}.kerf"
            path.write_bytes(image)
            paths.append(path)
        done = subprocess.run(["nice", harness, *paths], capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        assert done.returncode == 0, f"{lines[-1] if lines else ''}\n{done.stderr[:6000]}"
        for path in paths:
            path.unlink()
        yield from (line.split()[1:] for line in lines)


def assert_all_run(answers: Iterable[list[str]]) -> int:
    """Every image is sound, runs, and gives the same bits on all backends that fuse multiply and add."""
    count = 0
    for code, *runs in answers:
        count += 1
        assert code == "0"
        assert runs
        assert "too-long" not in runs
        assert len({answer.split(":")[1] for answer in runs if answer.split(":")[0] in ("avx512", "avx2", "neon")}) <= 1
    return count


def test_sound_images_run_without_a_report(harness: Path, tmp_path: Path) -> None:
    assert assert_all_run(run(harness, map(samples.spread, corpus.sound_images()), tmp_path)) > 100


def test_all_tilings_run_without_a_report(harness: Path, tmp_path: Path) -> None:
    images = list(corpus.tiling_images())
    steps = [step for image in images for step in samples.steps(image) if step.kind == Kind.CONV]
    seen = {(step.vector_length, step.row_vectors > 0, step.num_chunks > 1, step.pack_rows > 0) for step in steps}
    assert {length for length, *_ in seen} >= {4}
    assert {tuple(rest) for _, *rest in seen} >= {(False, True, True), (True, False, True), (True, True, True)}
    assert_all_run(run(harness, map(samples.spread, images), tmp_path))


def test_hostile_tilings_are_refused_or_harmless(harness: Path, tmp_path: Path) -> None:
    """A packed convolution has more lists and fields than one of the sample has at a time."""
    packed = [image for image in corpus.tiling_images(most=12) if any(s.pack_rows for s in samples.steps(image))]
    chosen = {}
    for image in packed:
        step = next(step for step in samples.steps(image) if step.pack_rows)
        has_strips = any(step.row_blocks for step in samples.steps(image))
        chosen[step.stride, step.row_vectors > 0, step.num_chunks > 1, has_strips] = samples.spread(image)
    assert len(chosen) >= 4
    for image in chosen.values():
        codes = codes_of(run(harness, corpus.damaged_images(image, 2000, seed=2), tmp_path))
        assert sum(count for code, count in codes.items() if code != "0") > 400


def codes_of(answers: Iterable[list[str]]) -> dict[str, int]:
    codes: dict[str, int] = {}
    for code, *_ in answers:
        codes[code] = codes.get(code, 0) + 1
    return codes


def test_hostile_fields_are_refused_or_harmless(harness: Path, tmp_path: Path) -> None:
    codes = codes_of(run(harness, corpus.hostile_images(EVERY_KIND), tmp_path))
    # Extents, reads, writes, references, indices: all reasons to refuse a step are met.
    assert set(codes) >= {"0", "-29", "-32", "-33", "-34", "-35", "-36"}


def test_random_damage_is_refused_or_harmless(harness: Path, tmp_path: Path) -> None:
    codes = codes_of(run(harness, corpus.damaged_images(EVERY_KIND, 5000, seed=1), tmp_path))
    assert sum(count for code, count in codes.items() if code != "0") > 1000
    assert codes["0"] > 500


def test_truncated_images_are_refused(harness: Path, tmp_path: Path) -> None:
    """Read from memory of exactly their size."""
    lengths = [*range(400), *range(400, len(EVERY_KIND), 61)]
    codes = codes_of(run(harness, (EVERY_KIND[:length] for length in lengths), tmp_path))
    assert set(codes) == {"-22"}


def test_the_harness_sees_what_strays_by_one_byte(harness: Path, tmp_path: Path) -> None:
    """It reads the byte before the first buffer itself: if that went unseen, so would all that the tests look for."""
    path = tmp_path / "image.kerf"
    path.write_bytes(EVERY_KIND)
    done = subprocess.run([harness, "--stray", path], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "use-after-poison" in done.stderr
