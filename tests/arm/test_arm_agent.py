"""The whole agent on emulated aarch64 processors: enrols at a real server, measures, and says that it is emulated."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import select

from device_agent.contracts import (
    TFLITE_SPARSE_RUNTIME,
    DeviceProfile,
    KernelSpec,
    KernelTask,
    MeasuringSetup,
    NetworkFormat,
    NetworkTask,
    RuntimeInfo,
    Source,
    VerdictReason,
    decode,
    encode,
)
from device_agent.formats.packed import write_packed
from device_agent.native.executor import NativeKernel, NativeNetwork
from device_agent.native.library import load_library
from device_agent.synthesis import kernel_inputs, synthesize_input
from server.accounts.service import mint_user_token
from server.artifacts.store import ArtifactStore
from server.latency.source import MeasurementSummary
from server.models import DeviceRow
from tests.arm import output_hashes
from tests.arm.environment import ArmEnvironment
from tests.integration.running_site import Site, wait_until

pytestmark = pytest.mark.xdist_group("arm")

#: Emulated, on cores that other tests use as well.
TIMEOUT_S = 240.0
#: As little as the protocol allows: the times mean nothing here.
SETUP = {"budget_s": 0.2, "min_warmup_s": 0.0, "min_blocks": 2, "max_blocks": 2, "samples_per_block": 2}
CORES = {"cortex-a72": "Cortex-A72", "neoverse-n1": "Neoverse-N1"}


@dataclass(frozen=True)
class Run:
    """What an emulated agent did: its device as the server knows it, and its results by the tasks asked for."""

    cpu: str
    site: Site
    profile: DeviceProfile
    runtimes: dict[str, RuntimeInfo]
    kernels: list[KernelTask]
    network: NetworkTask
    results: list[Any]
    network_output: tuple[float, ...]


@pytest.fixture(scope="module", params=["cortex-a72", pytest.param("neoverse-n1", marks=pytest.mark.slow)])
def run(
    request: pytest.FixtureRequest, arm: ArmEnvironment, agent_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    """An agent that was started on a bare board, got its tasks, measured all of them, and was stopped."""
    folder = tmp_path_factory.mktemp("site")
    # No compiler and no other program of this machine is found: an emulated program would start them unemulated.
    (folder / "empty").mkdir()
    board = arm.variables(request.param, agent_folder) | {"PATH": str(folder / "empty"), "HOME": str(folder)}
    site = Site(folder)
    try:
        site.start_server(KERF_OPEN_DASHBOARD="1")
        site.start_agent("--name", request.param, python=arm.python, environment=board)
        wait_until(site.has_device, "the agent enrols", TIMEOUT_S)
        kernels, network = _tasks(site)
        ids = site.ask([*kernels, network])
        site.wait_for(ids, timeout_s=TIMEOUT_S)
        assert site.agent is not None
        site.agent.send_signal(signal.SIGTERM)
        assert site.agent.wait(TIMEOUT_S) == 0, site.log("agent")
        with site.database.read() as session:
            profile, runtimes = session.execute(select(DeviceRow.profile, DeviceRow.runtimes)).one()
        results = site.source.results(ids)
        assert all(isinstance(r, MeasurementSummary) for r in results.values()), results
        yield Run(
            cpu=request.param,
            site=site,
            profile=decode(DeviceProfile, profile),
            runtimes={info["name"]: decode(RuntimeInfo, info) for info in runtimes},
            kernels=kernels,
            network=network,
            results=[results[task_id] for task_id in ids],
            network_output=site.source.measurement(ids[-1]).outputs[0],
        )
    finally:
        site.close()


def _tasks(site: Site) -> tuple[list[KernelTask], NetworkTask]:
    """Two native kernels and two of TFLite, one on its sparse path; then a whole network on the native kernels."""
    native, tflite, tflite_sparse = (
        MeasuringSetup(runtime=name, **SETUP)  # type: ignore[arg-type]
        for name in ("native", "tflite", TFLITE_SPARSE_RUNTIME)
    )
    chosen = {output_hashes.describe(kernel): kernel for kernel in output_hashes.kernels()}
    sparse, strided = chosen["conv2d 3x3/1 11-18 group 4x1"], chosen["conv2d 3x3/2 11-18 dense 1x1"]
    kernels = [
        KernelTask(kernel=sparse, setup=native),
        KernelTask(kernel=strided, setup=native),
        KernelTask(kernel=strided, setup=tflite),
        KernelTask(kernel=chosen["conv2d 1x1/1 11-18 unstructured 1x1"], setup=tflite_sparse),
    ]
    plan = output_hashes.network()
    data = write_packed(plan, output_hashes.network_tensors(plan))
    network = NetworkTask(
        artifact_sha256=ArtifactStore(site.settings.artifacts_dir).put_bytes(site.database, data, created_by="test"),
        artifact_bytes=len(data),
        format=NetworkFormat.PACKED,
        input_shape=plan.input_shape,
        setup=native,
        num_outputs=1,
    )
    return kernels, network


def test_the_device_is_what_is_emulated_and_says_so(run: Run) -> None:
    assert run.profile.emulated
    assert not run.profile.simulated
    assert run.profile.machine == "aarch64"
    assert {cluster.model for cluster in run.profile.clusters} == {CORES[run.cpu]}
    assert ("asimddp" in run.profile.isa_features) is (run.cpu == "neoverse-n1")
    assert "event=emulated_device" in run.site.log("agent")


def test_the_runtimes_are_there_without_a_compiler(run: Run) -> None:
    assert run.runtimes["native"].unavailable is None
    assert run.runtimes["native"].isa == "neon"
    assert "clang" in run.runtimes["native"].version
    assert run.runtimes["tflite"].unavailable is None
    assert run.runtimes[TFLITE_SPARSE_RUNTIME].unavailable is None
    assert run.runtimes["tflite"].version.startswith("ai-edge-litert")


def test_every_output_is_right(run: Run) -> None:
    """The agent compares each kernel with its own reference; what it would find is a reason of the verdict."""
    for task, result in zip([*run.kernels, run.network], run.results, strict=True):
        assert VerdictReason.WRONG_OUTPUT not in result.reasons, task
        assert VerdictReason.WRONG_DELEGATE not in result.reasons, task
        assert VerdictReason.SPARSE_PATH_NOT_TAKEN not in result.reasons, task
        assert result.runtime == task.setup.runtime


def test_native_outputs_have_the_bits_of_this_machine(run: Run) -> None:
    if not load_library().backend().has_fma:
        pytest.skip("this machine has no fused multiply-add: its outputs are rounded differently")
    native = [(t.kernel, r) for t, r in zip(run.kernels, run.results, strict=False) if t.setup.runtime == "native"]
    assert len(native) == 2
    for kernel, result in native:
        assert result.output_sha256 == _here(kernel)
    plan = output_hashes.network()
    here = NativeNetwork(plan, output_hashes.network_tensors(plan), tune=False, exact=True)
    output = here.run(synthesize_input(plan.input_shape, 0))
    assert run.results[-1].output_sha256 == hashlib.sha256(output.tobytes()).hexdigest()
    # What was timed may have taken a way that rounds differently.
    np.testing.assert_allclose(run.network_output, output.reshape(-1), rtol=1e-4, atol=1e-4)


def _here(kernel: KernelSpec) -> str:
    native = NativeKernel(kernel, tune=False, exact=True)
    return hashlib.sha256(native.run(*kernel_inputs(kernel)).tobytes()).hexdigest()


def test_every_number_is_marked_as_emulated(run: Run) -> None:
    assert {result.source for result in run.results} == {Source.EMULATED}
    with run.site.database.write() as session:
        headers = {"authorization": f"Bearer {mint_user_token(session, run.site.hasher, name='reader')}"}
    with httpx.Client(base_url=run.site.url, headers=headers) as client:
        measured = {s: client.get("/v1/measurements", params={"source": s}).json()["items"] for s in Source}
        assert {source: len(items) for source, items in measured.items() if items} == {Source.EMULATED: 5}
        kernel = run.kernels[0]
        query = {"device_id": run.site.device_id, "kernels": [encode(kernel.kernel)], "setup": encode(kernel.setup)}
        answer = client.post("/v1/latency:query", content=json.dumps(query)).json()
        assert answer["latencies"][0]["median_ns"] > 0
        assert answer["series"]["source"] == "emulated"
        assert client.get(f"/v1/devices/{run.site.device_id}").json()["profile"]["emulated"] is True
        for page in ("/", f"/devices/{run.site.device_id}"):
            assert "emulated" in client.get(page, headers={"accept": "text/html"}, follow_redirects=True).text, page
