"""Building and loading the library: what a machine without a compiler, or with a broken one, is told."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from device_agent.native import build, library
from device_agent.native.errors import NativeBuildError, NativeError
from tests.process_state import is_running


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No library anywhere and nothing on the path."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(library, "library_name", lambda: "libkerf_native-test.so")
    return tmp_path


def load_again() -> library.Library:
    return library.load_library.__wrapped__()


def test_no_compiler_is_said_with_a_remedy(empty_machine: Path) -> None:
    with pytest.raises(NativeBuildError, match=r"no C\+\+ compiler.*apt install g\+\+"):
        load_again()


def test_a_failing_compiler_is_quoted(empty_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = empty_machine / "broken"
    script.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('kerf_native.h: everything is wrong')\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(NativeBuildError, match="everything is wrong"):
        load_again()


def test_a_file_that_is_no_library_is_refused(empty_machine: Path) -> None:
    folder = empty_machine / "cache" / "kerf"
    folder.mkdir(parents=True)
    (folder / "libkerf_native-test.so").write_bytes(b"not a library")
    with pytest.raises(NativeError, match="cannot be loaded"):
        load_again()


def test_the_name_changes_with_the_sources_and_the_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {build.library_name("x86_64"), build.library_name("aarch64"), build.library_name("armv7l")}
    for path in build.SOURCE_DIR.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "vec.h").write_text("// changed\n")
    with monkeypatch.context() as changed:
        changed.setattr(build, "SOURCE_DIR", tmp_path)
        names.add(build.library_name("x86_64"))
    assert len(names) == 4
    # A wheel's library is found on a machine that has another compiler, or none.
    monkeypatch.setenv("CXX", "some-compiler")
    assert build.library_name("x86_64") in names


@pytest.mark.parametrize(
    ("machine", "pointer_bytes", "expected"),
    [
        ("x86_64", 8, "x86_64"),
        ("AMD64", 8, "x86_64"),
        ("arm64", 8, "aarch64"),
        ("aarch64", 4, "armv7l"),  # 32-bit Raspberry Pi OS on a 64-bit kernel
        ("armv8l", 4, "armv7l"),
        ("riscv64", 8, "riscv64"),
    ],
)
def test_machines_have_one_name(
    machine: str, pointer_bytes: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    monkeypatch.setattr(build.struct, "calcsize", lambda layout: pointer_bytes)
    assert build.this_machine() == expected


def test_every_architecture_has_a_backend() -> None:
    for machine in ("x86_64", "aarch64", "armv7l", "riscv64"):
        assert build.backends_for(machine)
    assert [b.name for b in build.backends_for("x86_64")] == ["avx512", "avx2", "sse2"]


def test_the_loaded_library_describes_itself() -> None:
    loaded = library.load_library()
    assert loaded is library.load_library()
    assert len(loaded.sha256) == 64
    assert loaded.compiler
    assert loaded.backends[-1].is_supported, "the last backend is the one that every machine runs"
    assert loaded.backend(None) == next(b for b in loaded.backends if b.is_supported)
    with pytest.raises(NativeError, match="no backend 'avx1024'"):
        loaded.backend("avx1024")


def test_a_step_of_unknown_kind_is_refused_and_not_run() -> None:
    loaded = library.load_library()
    step = library.Step(kind=99)
    backend = loaded.backend()
    assert loaded.run(backend.index, ctypes.addressof(step), 1, None) == 1
    with pytest.raises(NativeError, match="step 0 of 1 was refused"):
        loaded.time(backend.index, ctypes.addressof(step), 1, 1)
    with pytest.raises(NativeError, match="step 0 of 1 was refused"):
        loaded.profile(backend.index, ctypes.addressof(step), 1, 1)


def test_errors_are_codes_with_messages() -> None:
    loaded = library.load_library()
    step = library.Step(kind=library.Kind.ZERO)
    no_backend = loaded.run(len(loaded.backends), ctypes.addressof(step), 1, None)
    assert no_backend < 0
    assert "no backend" in loaded.error_message(no_backend)
    with pytest.raises(NativeError, match="is negative"):
        loaded.time(loaded.backend().index, ctypes.addressof(step), 1, -1)
    with pytest.raises(NativeError, match="is negative"):
        loaded.check(loaded.run(loaded.backend().index, ctypes.addressof(step), -1, None), -1)
    texts = [loaded.error_message(code) for code in (0, no_backend, -12345, 1)]
    assert len(set(texts)) == 4
    assert all(texts)


def test_the_fallback_backend_compiles_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose architecture has no backend of its own."""
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr(build, "backends_for", lambda machine: build._OTHER_BACKENDS)
    # How fast its kernels are is of no interest here.
    monkeypatch.setattr(build, "_FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in build._FLAGS))
    target = tmp_path / "sub" / "libkerf_native-test.so"
    build.build_library(target)
    assert os.listdir(target.parent) == [target.name]
    assert [b.name for b in library.Library(target).backends] == ["baseline"]


def test_an_interrupted_build_leaves_no_compiler_running(tmp_path: Path) -> None:
    started = tmp_path / "started"
    started.mkdir()
    # A driver that starts the real compiler, as gcc does.
    driver = _driver(tmp_path, f"sleep 300 &\necho $! > {started}/$$.part\nmv {started}/$$.part {started}/$$\nwait")
    code = (
        "import pathlib, signal; from device_agent.native.build import build_library; "
        # What a shell starts in the background ignores interruptions, and so do the tests then.
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"build_library(pathlib.Path({str(tmp_path / 'out' / 'lib.so')!r}), compiler={driver!r})"
    )
    building = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    while not (compilers := [path for path in started.iterdir() if path.suffix != ".part"]):
        assert building.poll() is None
        time.sleep(0.01)
    building.send_signal(signal.SIGINT)
    _, errors = building.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    for path in [path for path in started.iterdir() if path.suffix != ".part"] or compilers:
        assert not is_running(int(path.name))
        assert not is_running(int(path.read_text()))
    assert not list((tmp_path / "out").iterdir())


def test_a_compiler_that_starts_while_the_build_is_interrupted_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InterruptedAtTheStart(subprocess.Popen[bytes]):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            started.append(self.pid)
            os.kill(os.getpid(), signal.SIGINT)

    # Any thread may be the one that takes the signal.
    ended = threading.Event()
    threading.Thread(target=ended.wait, daemon=True).start()
    started: list[int] = []
    monkeypatch.setattr(build.subprocess, "Popen", InterruptedAtTheStart)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build.build_library(tmp_path / "out" / "lib.so", compiler=_driver(tmp_path, "sleep 300"))
    finally:
        heeded = signal.signal(signal.SIGINT, before)
        ended.set()
    assert heeded is signal.default_int_handler
    assert len(started) == 1
    assert not is_running(started[0])


def test_a_build_writes_nowhere_but_beside_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "absent"))
    driver = _driver(tmp_path, "echo broken >&2\nexit 3")
    with pytest.raises(build.CompilerError, match=r"failed:\nbroken"):
        build.build_library(tmp_path / "out" / "lib.so", compiler=driver)


def test_a_thread_other_than_the_main_one_builds(tmp_path: Path) -> None:
    """Python does not let it touch signals."""
    errors: list[str] = []

    def build_there() -> None:
        try:
            build.build_library(tmp_path / "out" / "lib.so", compiler=_driver(tmp_path, "echo broken >&2\nexit 3"))
        except build.CompilerError as error:
            errors.append(str(error))

    thread = threading.Thread(target=build_there)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert errors[0].endswith("failed:\nbroken")


def test_nobody_waits_for_the_other_compilers_where_one_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.os, "cpu_count", lambda: 2)
    pid = tmp_path / "pid"
    first = f"mkdir {tmp_path}/first 2> /dev/null && echo $$ > {pid} && exec sleep 300"
    second = f"while ! test -s {pid}; do sleep 0.01; done\necho $$ is broken >&2\nexit 3"
    with pytest.raises(build.CompilerError, match=r"failed:\n\d+ is broken"):
        build.build_library(tmp_path / "out" / "lib.so", compiler=_driver(tmp_path, f"{first}\n{second}"))
    assert not is_running(int(pid.read_text()))


def test_a_compiler_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "COMPILE_TIMEOUT_S", 0.0)
    with pytest.raises(build.CompilerError, match="did not end within 0 s"):
        build.build_library(tmp_path / "out" / "lib.so", compiler=_driver(tmp_path, "exec sleep 300"))


def _driver(folder: Path, script: str) -> list[str]:
    """The command of a compiler that is this shell script."""
    path = folder / "driver"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return [str(path)]
