"""What Kerf takes to download and on the disk, with what of it: `python -m release.sizes dist [--extras agent,...]`.

Downloaded are the wheels that pip chooses for this machine; installed is a folder of their own, with the compiled
modules that pip makes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

from release.wheels import wheel_for_here

DEFAULT = ("", "agent", "agent-legacy")


def measured(wheel: Path, extra: str) -> dict[str, object]:
    """Bytes in all and by package, the largest first. Raises `CalledProcessError` where pip fails."""
    requirement = f"{wheel}[{extra}]" if extra else str(wheel)
    with tempfile.TemporaryDirectory() as folder:
        wheels, installed = Path(folder) / "wheels", Path(folder) / "installed"
        _pip("download", "--dest", str(wheels), requirement)
        _pip("install", "--no-index", "--find-links", str(wheels), "--target", str(installed), requirement)
        files = [path for path in wheels.iterdir() if path.is_file()]
        packages = {found.name: _bytes_of(found) for found in distributions(path=[str(installed)])}
        return {
            "extra": extra,
            "downloaded_bytes": sum(path.stat().st_size for path in files),
            "installed_bytes": sum(path.stat().st_size for path in installed.rglob("*") if path.is_file()),
            "installed_by_package": dict(sorted(packages.items(), key=lambda item: -item[1])),
        }


def _pip(*arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", arguments[0], *quiet, *arguments[1:]], check=True)


def _bytes_of(package: Distribution) -> int:
    return sum(
        path.stat().st_size for path in map(Path, map(package.locate_file, package.files or ())) if path.exists()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the wheels are")
    parser.add_argument("--extras", default=",".join(DEFAULT), help="separated by commas; nothing is Kerf alone")
    arguments = parser.parse_args()
    wheel = wheel_for_here(arguments.folder)
    for extra in arguments.extras.split(","):
        print(json.dumps(measured(wheel, extra)))


if __name__ == "__main__":
    main()
