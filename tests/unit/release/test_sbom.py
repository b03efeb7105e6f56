"""Bills of materials, made from what pip tells of a resolution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cyclonedx", reason="needs cyclonedx-python-lib: pip install '.[release]'")

from release import sbom
from release.sbom import bill_of, text_of
from release.wheels import wheel_for_here

ENVIRONMENT = {"python_full_version": "3.11.7", "python_version": "3.11", "sys_platform": "linux"}
ENVIRONMENT |= {"platform_machine": "x86_64", "implementation_name": "cpython"}


def package(name: str, version: str, *needs: str, extras: tuple[str, ...] = (), **metadata: Any) -> dict[str, Any]:
    """A package as it stands in pip's report."""
    return {
        "download_info": {"archive_info": {"hashes": {"sha256": f"{len(name):064x}"}}},
        "requested_extras": list(extras),
        "metadata": {"name": name, "version": version, "requires_dist": list(needs), **metadata},
    }


def bill(*packages: dict[str, Any]) -> dict[str, Any]:
    text = text_of(bill_of({"install": list(packages), "environment": ENVIRONMENT}))
    found: dict[str, Any] = json.loads(text)
    return found


KERF = package("kerf", "0.1.0", "httpx>=0.28", 'Torch>=2; extra == "search"', 'ray; extra == "ray"', extras=("search",))
HTTPX = package("httpx", "0.28.1", 'colorama; sys_platform == "win32"', license="BSD-3-Clause")


def test_each_package_has_its_file_its_licence_and_its_needs() -> None:
    expression = "Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSD-3-Clause AND BSL-1.0 AND MIT"
    text = package("torch", "2.13.0", license_expression=expression, license="ignored")
    found = bill(KERF, HTTPX, text)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert found["metadata"]["component"]["purl"] == "pkg:pypi/kerf@0.1.0"
    told = {item["name"]: item["value"] for item in found["metadata"]["properties"]}
    assert told == {"kerf:python": "3.11.7", "kerf:platform": "linux x86_64", "kerf:extras": "search"}
    components = {item["name"]: item for item in found["components"]}
    assert set(components) == {"httpx", "torch"}
    assert components["httpx"]["purl"] == "pkg:pypi/httpx@0.28.1"
    assert components["httpx"]["hashes"] == [{"alg": "SHA-256", "content": f"{5:064x}"}]
    assert components["httpx"]["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]
    assert components["torch"]["licenses"][0]["expression"] == expression
    needs = {item["ref"]: item.get("dependsOn", []) for item in found["dependencies"]}
    # Neither what another extra needs nor what another system does.
    assert needs == {
        "kerf==0.1.0": ["httpx==0.28.1", "torch==2.13.0"],
        "httpx==0.28.1": [],
        "torch==2.13.0": [],
    }


@pytest.mark.parametrize(
    ("metadata", "licences"),
    [
        ({}, None),
        ({"license": "The text of a licence.\nAll of it."}, None),
        (
            {"license": "x" * 200, "classifier": ["License :: OSI Approved :: BSD License", "Topic :: Software"]},
            [{"license": {"name": "BSD License"}}],
        ),
        ({"license": "3-Clause BSD License"}, [{"license": {"name": "3-Clause BSD License"}}]),
    ],
)
def test_licences_as_packages_state_them(metadata: dict[str, Any], licences: list[Any] | None) -> None:
    (found,) = bill(package("kerf", "0.1.0", "thing"), package("thing", "1", **metadata))["components"]
    assert found.get("licenses") == licences


def test_a_package_without_a_hash_is_refused() -> None:
    checkout = package("thing", "1") | {"download_info": {"vcs_info": {}}}
    with pytest.raises(SystemExit, match=r"no SHA-256 of thing 1"):
        bill(package("kerf", "0.1.0"), checkout)


def test_what_pip_cannot_resolve_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"pip cannot resolve .*none\.whl"):
        sbom.resolved(str(tmp_path / "none.whl"))


def test_the_newest_wheel_for_this_machine(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run `make wheels` first"):
        wheel_for_here(tmp_path)
    for name in ("0.9.0-py3-none-any", "0.10.0-py3-none-any", "0.11.0-py3-none-manylinux_2_17_riscv64"):
        (tmp_path / f"kerf-{name}.whl").touch()
    assert wheel_for_here(tmp_path).name == "kerf-0.10.0-py3-none-any.whl"
