"""`python -m bench.latency`: the figures of the latency database, one part after the other.

python -m bench.latency --parts model baselines --quick     # 10 held-out networks of the stored table, no device
python -m bench.latency --parts model baselines curve       # all of the stored table: minutes
python -m bench.latency --parts spread verdicts             # how far measurements can be trusted: some ten minutes
python -m bench.latency --parts transfer                    # a new device from the model of another: minutes
python -m bench.latency --parts imported_a72                # the published Cortex-A72 table, imported
python -m bench.latency.dataset && python -m bench.latency --measurements out/bench/latency    # measured anew, here
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.latency.active import BUDGETS_MINUTES, active_part
from bench.latency.attempts import read_records
from bench.latency.dataset import MEASUREMENTS_FILE
from bench.latency.imported_a72 import imported_a72
from bench.latency.model import baselines_part, curve_part, model_part, with_known
from bench.latency.spread import spread
from bench.latency.stored import STORED, Dataset, from_records, machine_name, read_dataset, write_dataset
from bench.latency.transfer import transfer_part
from bench.latency.verdicts import verdicts

_QUICK_NETWORKS = 10
#: Fitting takes the third power of their number.
_QUICK_KERNELS = 600
_QUICK_KNOWN = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a part is told: `quick` asks for under 20 s."""

    quick: bool
    measurements: Path | None

    def dataset(self) -> Dataset:
        """The measurements of the work folder or file, or those that came with the source."""
        dataset = self.all_measured()
        return with_known(dataset, _QUICK_KNOWN) if self.quick else dataset

    def all_measured(self) -> Dataset:
        if self.measurements is None or self.measurements.is_file():
            return read_dataset(self.measurements or STORED)
        return from_records(read_records(self.measurements / MEASUREMENTS_FILE), machine_name())

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """How many kernels and held-out networks are used; None is all."""
        return (_QUICK_KERNELS, _QUICK_NETWORKS) if self.quick else (None, None)


def _model(run: Run) -> dict[str, Any]:
    return model_part(run.dataset(), *run.limits)


def _baselines(run: Run) -> dict[str, Any]:
    return baselines_part(run.dataset(), *run.limits)


def _curve(run: Run) -> dict[str, Any]:
    return curve_part(run.dataset(), (50, 100, 200) if run.quick else (50, 100, 200, 500, 1000, 2000), run.limits[1])


def _active(run: Run) -> dict[str, Any]:
    return active_part(run.dataset(), BUDGETS_MINUTES[:1], 60, 1) if run.quick else active_part(run.dataset())


def _transfer(run: Run) -> dict[str, Any]:
    return transfer_part(run.dataset(), (0, 20), 1) if run.quick else transfer_part(run.dataset())


def _spread(run: Run) -> dict[str, Any]:
    return spread(run.quick)


def _verdicts(run: Run) -> dict[str, Any]:
    return verdicts(run.quick)


def _imported_a72(run: Run) -> dict[str, Any]:
    try:
        return imported_a72()
    except FileNotFoundError as error:
        return {"left_out": f"{error}: set KERF_SHARED_DATA to the folder with the published table"}


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "model": _model,
    "baselines": _baselines,
    "curve": _curve,
    "active": _active,
    "transfer": _transfer,
    "spread": _spread,
    "verdicts": _verdicts,
    "imported_a72": _imported_a72,
}
#: What `--quick` runs where `--parts` names none.
QUICK_PARTS = ("model", "baselines", "active", "verdicts", "imported_a72")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), help="run these alone")
    parser.add_argument("--quick", action="store_true", help="fewer measurements and networks: seconds for each part")
    parser.add_argument(
        "--measurements",
        type=Path,
        help="the work folder of bench.latency.dataset, or a stored file; else the stored ones",
    )
    parser.add_argument("--store", action="store_true", help="make --measurements the stored ones")
    parser.add_argument("--json", type=Path, default=Path("bench/results/latency.json"), help="file of the figures")
    arguments = parser.parse_args()
    run = Run(quick=arguments.quick, measurements=arguments.measurements)
    if arguments.store:
        write_dataset(STORED, run.all_measured())
    for name in arguments.parts or (QUICK_PARTS if arguments.quick else tuple(PARTS)):
        figures = PARTS[name](run)
        # Other parts' figures stay: each part may be run on its own.
        known = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**known, name: figures}, indent=1) + "\n")
        print(f"{name}: {json.dumps(figures, indent=1)}", flush=True)


if __name__ == "__main__":
    main()
