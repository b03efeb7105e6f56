"""Compares the search methods.

python -m bench.search [--json FILE]              # 500, 2,000 and 8,192 evaluations, 5 seeds
python -m bench.search --quick [--json FILE]      # 500 and 2,000 evaluations, 3 seeds: under 50 s
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.search.a72 import A72Landscape, shared_data
from bench.search.operators import as_json, operator_rows, table_text

_FULL, _QUICK = (500, 2000, 8192), (500, 2000)
_FULL_SEEDS, _QUICK_SEEDS = 5, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    num_seeds = options.seeds or (_QUICK_SEEDS if options.quick else _FULL_SEEDS)
    rows = operator_rows(A72Landscape(shared_data()), _QUICK if options.quick else _FULL, range(num_seeds))
    print(table_text(rows))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"operators": as_json(rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
