"""Files that people hand us, damaged byte by byte: each reader takes one or refuses it with its own error, in time.

    python -m tests.fuzz.files [--cases 3000] [--seed 0] [--folder out/fuzz-files] [--only TARGET]

The seeds are sound files of every form. An input that makes a reader say something new is kept in the folder, and is
itself changed from then on, as is what `tests/fuzz/corpus/TARGET/` holds: inputs that once were read wrongly. Ends with
code 1 where a reader raised anything else, or took longer than it may; the input lies in the folder as crash-*.
The loader of program images, which is C++, has a fuzzer of its own: `python -m bench.fuzz_loader`.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from device_agent.contracts import ContractError, KernelSpec, Op, PruningScheme, WeightPruning
from device_agent.formats.packed import read_packed, write_packed
from device_agent.formats.tflite import plan_to_tflite, read_plan
from device_agent.formats.tflite_tensors import read_plan_tensors
from device_agent.synthesis import kernel_plan, kernel_plan_tensors
from search.data.check import check_data
from search.data.dataset import DataError
from search.models.checkpoint import CheckpointError, read_tensors
from search.networks.file import read_network
from server.latency.exchange.tables import TableFormat, read_rows
from tests.unit.search.data.data_files import image_bytes, write_npz, write_parquet, write_zip
from tests.unit.search.networks.test_file import written as written_network

CORPUS = Path(__file__).with_name("corpus")
#: No seed takes a tenth of a second.
LIMIT_S = 20
MAX_BYTES = 64 << 10

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
_NUMBERS = (
    b"NaN",
    b"-1",
    b"1e999",
    b"0",
    b"99999999999999999999",
    b"null",
    b'"x"',
    b"[]",
    b"true",
    b"18446744073709551615",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A reader of files, sound ones, and how it may refuse."""

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...]


def targets(folder: Path) -> list[Target]:
    """All readers. `folder` is for making the seeds."""
    conv = KernelSpec(op=Op.CONV2D, in_channels=4, out_channels=4, input_h=5, input_w=5, kernel_h=3, kernel_w=3)
    sparse = KernelSpec(
        op=Op.CONV2D, in_channels=8, out_channels=8, input_h=4, input_w=4,
        pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.25),
    )  # fmt: skip
    kernels = (conv, sparse)
    packed = tuple(write_packed(kernel_plan(k), kernel_plan_tensors(k)) for k in kernels)
    tflite = tuple(plan_to_tflite(kernel_plan(k), kernel_plan_tensors(k)) for k in kernels)
    pictures = {f"{c}/{i}.png": image_bytes(10 * i + 5) for c in ("cat", "dog") for i in range(2)}
    jpegs = {f"{c}/{i}.jpg": image_bytes(30 * i, kind="JPEG") for c in ("cat", "dog") for i in range(2)}
    pixels = np.stack([np.full((4, 6, 3), v, dtype=np.uint8) for v in (10, 20, 30)])
    data = (
        write_zip(folder / "a", pictures).read_bytes(),
        write_zip(folder / "b", jpegs).read_bytes(),
        write_npz(folder / "c", images=pixels, labels=[0, 0, 1], class_names=["cat", "dog"]).read_bytes(),
        write_parquet(
            folder / "d", {"image": list(pictures.values()), "label": ["cat", "cat", "dog", "dog"]}
        ).read_bytes(),
    )
    array = io.BytesIO()
    np.save(array, np.arange(6.0).reshape(2, 3))
    tables: dict[TableFormat, bytes] = {
        TableFormat.CSV: b"device,op,in_channels,latency_ns\nboard,conv2d,8,1000.5\nboard,conv2d,16,2000\n",
        TableFormat.JSON: json.dumps([{"device": "board", "op": "conv2d", "latency_ns": 1000.5}]).encode(),
        TableFormat.PARQUET: write_parquet(folder / "e", {"device": ["board"], "latency_ns": [1.5]}).read_bytes(),
        TableFormat.NPY: array.getvalue(),
    }
    found = [
        Target(name="packed", seeds=packed, read=lambda p: read_packed(p.read_bytes()), refusals=(ContractError,)),
        Target(name="tflite", seeds=tflite, read=_read_tflite, refusals=(ContractError,)),
        Target(
            name="network",
            seeds=(written_network(folder).read_bytes(),),
            read=read_network,
            refusals=(ContractError,),
        ),
        Target(
            name="checkpoint",
            seeds=(save({"a": np.ones((2, 3), dtype=np.float32), "b": np.zeros(4, dtype=np.float16)}),),
            read=read_tensors,
            refusals=(CheckpointError,),
        ),
        Target(name="data", seeds=data, read=check_data, refusals=(DataError,)),
    ]
    for form, content in tables.items():
        if form in (TableFormat.CSV, TableFormat.JSON, TableFormat.PARQUET):
            found.append(
                Target(
                    name=f"table-{form.value}",
                    seeds=(content,),
                    read=lambda p, form=form: read_rows(p.read_bytes(), form),  # type: ignore[misc]
                    refusals=(ContractError,),
                )
            )
    return found


def _read_tflite(path: Path) -> object:
    model = path.read_bytes()
    plan = read_plan(model)
    return None if plan is None else read_plan_tensors(model, plan)


def changed(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """`data` with one to eight changes: bytes, numbers in texts, parts left out, doubled, moved or of another file."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        size = len(out)
        at = chance.randrange(size + 1)
        length = chance.choice((1, 1, 2, 4, 8, 64))
        kind = chance.randrange(8)
        if kind == 0 and size:
            out[min(at, size - 1)] = chance.randrange(256)
        elif kind == 1 and size:
            out[min(at, size - 1)] = chance.choice(_INTERESTING)
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            out[at : at + 4] = chance.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)).to_bytes(4, "little")
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            out[at : at + length] = other[start : start + chance.choice((4, 16, 256))]
        else:
            numbers = list(re.finditer(rb"-?\d+(\.\d+)?", bytes(out)))
            if numbers:
                number = chance.choice(numbers)
                out[number.start() : number.end()] = chance.choice(_NUMBERS)
    return bytes(out[:MAX_BYTES])


@dataclass(slots=True)
class FileFindings:
    """What came of one target."""

    cases: int = 0
    taken: int = 0
    corpus: int = 0
    wrong: dict[str, bytes] | None = None


def fuzz(target: Target, cases: int, seed: int, folder: Path) -> FileFindings:
    """Change and read `cases` files; seeds and what was once read wrongly come first, as they are."""
    chance = random.Random(f"{seed} {target.name}")
    kept = sorted((folder / "corpus" / target.name).glob("*")) + sorted((CORPUS / target.name).glob("*"))
    pool = [*target.seeds, *(path.read_bytes() for path in kept)]
    said: set[str] = set()
    findings = FileFindings(wrong={})
    assert findings.wrong is not None
    path = folder / f"{target.name}.input"
    for number in range(cases + len(pool)):
        data = pool[number] if number < len(pool) else changed(chance.choice(pool), chance, pool)
        path.write_bytes(data)
        findings.cases += 1
        what, is_sound = _outcome(target, path)
        findings.taken += what == "taken"
        if not is_sound:
            findings.wrong.setdefault(what, data)
        elif what not in said and number >= len(pool) and len(pool) < 500:
            pool.append(data)
        said.add(what)
    findings.corpus = len(pool)
    store = folder / "corpus" / target.name
    store.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(pool[len(target.seeds) :]):
        (store / f"{number:04}").write_bytes(data)
    path.unlink()
    return findings


def _outcome(target: Target, path: Path) -> tuple[str, bool]:
    """What a reader made of a file, without what differs each time; and whether it may."""
    signal.alarm(LIMIT_S)
    try:
        target.read(path)
    except target.refusals as error:
        return re.sub(r"[\d.]+|'[^']*'", "#", str(error))[:120], True
    except _TooLong:
        return f"took longer than {LIMIT_S} s", False
    except Exception:
        return traceback.format_exc()[-1500:], False
    finally:
        signal.alarm(0)
    return "taken", True


class _TooLong(BaseException):
    pass


def _on_alarm(*_: object) -> None:
    raise _TooLong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000, help="of each target (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("out/fuzz-files"))
    parser.add_argument("--only", help="one target's name")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, _on_alarm)
    result: dict[str, Any] = {}
    num_wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for target in targets(Path(scratch)):
            if options.only not in (None, target.name):
                continue
            found = fuzz(target, options.cases, options.seed, options.folder)
            assert found.wrong is not None
            result[target.name] = {"cases": found.cases, "taken": found.taken, "corpus": found.corpus}
            for number, (what, data) in enumerate(found.wrong.items()):
                num_wrong += 1
                crash = options.folder / f"crash-{target.name}-{number}"
                crash.write_bytes(data)
                print(f"{crash}: {what}", file=sys.stderr)
    print(json.dumps(result | {"wrong": num_wrong}, indent=1))
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
