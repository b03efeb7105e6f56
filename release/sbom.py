"""Bills of materials: every package that pip installs with Kerf, as CycloneDX files beside the wheels.

    python -m release.sbom dist

pip resolves the newest releases for this machine and this Python, and installs nothing. Each package has the SHA-256 of
the file that was chosen, its licence as it states it, and what it needs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release.wheels import wheel_for_here

#: A bill for each of these: what a board installs, and what a server with its workers does.
BILLS: Mapping[str, tuple[str, ...]] = {"agent": ("agent",), "server": ("server", "search")}

SCHEMA = SchemaVersion.V1_6

#: Longer is the text of a licence, not its name.
_MAX_NAME_CHARS = 80


def resolved(requirement: str) -> dict[str, Any]:
    """pip's report on what it would install. Raises `SystemExit` with what pip says where it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--disable-pip-version-check", "--report", str(report), requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"pip cannot resolve {requirement}:\n{done.stderr}")
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def bill_of(report: Mapping[str, Any]) -> Bom:
    """The bill of a report whose first package is what was asked for."""
    items = {canonicalize_name(item["metadata"]["name"]): item for item in report["install"]}
    components = {name: _component(name, item) for name, item in items.items()}
    root = next(iter(items))
    components[root].type = ComponentType.APPLICATION
    bom = Bom(components=[component for name, component in components.items() if name != root])
    bom.metadata.component = components[root]
    environment: dict[str, str] = dict(report["environment"])
    told = {
        "kerf:python": environment["python_full_version"],
        "kerf:platform": f"{environment['sys_platform']} {environment['platform_machine']}",
        "kerf:extras": ",".join(sorted(items[root].get("requested_extras", ()))),
    }
    bom.metadata.properties.update(Property(name=name, value=value) for name, value in told.items())
    for name, item in items.items():
        bom.register_dependency(components[name], [components[need] for need in _needs(item, environment)])
    return bom


def text_of(bom: Bom) -> str:
    """The bill as JSON that keeps to its schema. Raises `SystemExit` where it would not."""
    text: str = make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=1)
    problem = JsonStrictValidator(SCHEMA).validate_str(text)
    if problem is not None:
        raise SystemExit(f"the bill of materials does not keep to CycloneDX {SCHEMA.to_version()}: {problem}")
    return text + "\n"


def _component(name: str, item: Mapping[str, Any]) -> Component:
    metadata = item["metadata"]
    version = metadata["version"]
    sha256 = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
    if sha256 is None:
        raise SystemExit(f"pip names no SHA-256 of {name} {version}: its source must be a file, not a checkout")
    licence = _license(metadata)
    return Component(
        name=metadata["name"],
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}=={version}",
        purl=PackageURL(type="pypi", name=name, version=version),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        licenses=[] if licence is None else [licence],
    )


def _license(metadata: Mapping[str, Any]) -> License | None:
    """As the package states it: an expression, a short name, or its classifier. None where it says nothing."""
    told = str(metadata.get("license_expression") or "")
    if not told:
        told = str(metadata.get("license") or "").strip()
        if not 0 < len(told) <= _MAX_NAME_CHARS or "\n" in told:
            kinds = [line for line in metadata.get("classifier", ()) if line.startswith("License ::")]
            told = " and ".join(line.rpartition(" :: ")[2] for line in kinds)
    return LicenseFactory().make_from_string(told) if told else None


def _needs(item: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """The packages that this one asks for here, with the extras that somebody asked of it."""
    extras = ("", *item.get("requested_extras", ()))
    found = {}
    for line in item["metadata"].get("requires_dist", ()):
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate({**environment, "extra": extra}) for extra in extras):
            found[canonicalize_name(need.name)] = None
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the wheels are, and the bills go")
    folder = parser.parse_args().folder
    wheel = wheel_for_here(folder)
    for name, extras in BILLS.items():
        bom = bill_of(resolved(f"{wheel}[{','.join(extras)}]"))
        target = folder / f"{'-'.join(wheel.name.split('-')[:2])}-{name}.cdx.json"
        target.write_text(text_of(bom), encoding="utf-8")
        print(f"{target}: {len(bom.components)} packages")


if __name__ == "__main__":
    main()
