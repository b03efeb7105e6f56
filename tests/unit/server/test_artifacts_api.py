"""Artifacts: streamed in, checked, and out in ranges; whole or not at all."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient

from device_agent.contracts import NetworkFormat, NetworkTask
from server.accounts.service import Scope
from server.artifacts.store import ArtifactStore
from server.settings import Settings
from tests.unit.server.server_lab import SETUP, ServerLab

DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()
URL = f"/v1/artifacts/sha256/{DIGEST}"


def stored_files(lab: ServerLab) -> list[Path]:
    return [path for path in lab.settings.artifacts_dir.rglob("*") if path.is_file()]


class TestPut:
    def test_stored_once(self, lab: ServerLab) -> None:
        codes = [lab.request("PUT", URL, content=DATA).status_code for _ in range(2)]
        assert codes == [201, 200]
        assert [path.name for path in stored_files(lab)] == [DIGEST]

    def test_in_chunks_without_a_length(self, sqlite_lab: ServerLab) -> None:
        def chunks() -> Iterator[bytes]:
            for start in range(0, len(DATA), 1000):
                yield DATA[start : start + 1000]

        assert sqlite_lab.request("PUT", URL, content=chunks()).status_code == 201
        assert sqlite_lab.get(URL).content == DATA

    def test_an_empty_file(self, sqlite_lab: ServerLab) -> None:
        url = f"/v1/artifacts/sha256/{hashlib.sha256().hexdigest()}"
        assert sqlite_lab.request("PUT", url, content=b"").status_code == 201
        assert sqlite_lab.get(url).content == b""

    def test_other_content_than_promised(self, sqlite_lab: ServerLab) -> None:
        response = sqlite_lab.request("PUT", URL, content=DATA[:-1])
        assert (response.status_code, response.json()["code"]) == (422, "digest_mismatch")
        assert stored_files(sqlite_lab) == []

    @pytest.mark.parametrize("digest", ["xyz", DIGEST.upper(), "..%2f..%2fetc%2fpasswd", DIGEST + "0"])
    def test_no_digest(self, sqlite_lab: ServerLab, digest: str) -> None:
        assert sqlite_lab.request("PUT", f"/v1/artifacts/sha256/{digest}", content=DATA).status_code in (404, 422)
        assert stored_files(sqlite_lab) == []

    def test_too_large(self, app: FastAPI, sqlite_settings: Settings) -> None:
        app.state.settings = replace(sqlite_settings, max_artifact_bytes=len(DATA) - 1)
        with TestClient(app) as client:
            lab = ServerLab(client, sqlite_settings)
            assert lab.request("PUT", URL, content=DATA).status_code == 413
            assert stored_files(lab) == []
            lab.close()

    def test_needs_the_scope(self, sqlite_lab: ServerLab) -> None:
        reader = sqlite_lab.user_token(Scope.READ)
        assert sqlite_lab.request("PUT", URL, reader, content=DATA).status_code == 403
        assert sqlite_lab.request("PUT", URL, sqlite_lab.agent().token, content=DATA).status_code == 403


class TestGet:
    @pytest.fixture(autouse=True)
    def _stored(self, lab: ServerLab) -> None:
        assert lab.request("PUT", URL, content=DATA).status_code == 201

    def test_whole(self, lab: ServerLab) -> None:
        response = lab.get(URL)
        assert response.content == DATA
        assert response.headers["etag"] == f'"{DIGEST}"'
        assert "immutable" in response.headers["cache-control"]

    def test_head(self, lab: ServerLab) -> None:
        response = lab.request("HEAD", URL)
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-length"] == str(len(DATA))
        assert lab.request("HEAD", URL.replace(DIGEST, "0" * 64)).status_code == 404

    @pytest.mark.parametrize(
        ("asked", "part"), [("bytes=0-9", DATA[:10]), ("bytes=10000-", DATA[10000:]), ("bytes=-5", DATA[-5:])]
    )
    def test_ranges(self, lab: ServerLab, asked: str, part: bytes) -> None:
        response = lab.get(URL, headers={"Range": asked})
        assert (response.status_code, response.content) == (206, part)
        assert response.headers["content-range"].endswith(f"/{len(DATA)}")

    def test_if_range(self, lab: ServerLab) -> None:
        for tag, status in ((f'"{DIGEST}"', 206), ('"another"', 200)):
            assert lab.get(URL, headers={"Range": "bytes=0-9", "If-Range": tag}).status_code == status

    def test_a_range_behind_the_end(self, lab: ServerLab) -> None:
        assert lab.get(URL, headers={"Range": f"bytes={len(DATA)}-"}).status_code == 416

    @pytest.mark.parametrize("tags", [f'"{DIGEST}"', f'"x", W/"{DIGEST}"', "*"])
    def test_what_the_client_has_is_not_sent_again(self, lab: ServerLab, tags: str) -> None:
        response = lab.get(URL, headers={"If-None-Match": tags})
        assert (response.status_code, response.content) == (304, b"")
        assert lab.get(URL, headers={"If-None-Match": '"x"'}).status_code == 200

    def test_an_agent_reads_what_its_tasks_need(self, lab: ServerLab) -> None:
        agent, stranger = lab.agent(), lab.agent()
        assert lab.get(URL, agent.token).status_code == 404
        task = NetworkTask(
            artifact_sha256=DIGEST,
            artifact_bytes=len(DATA),
            format=NetworkFormat.PACKED,
            input_shape=(1, 8, 8),
            setup=SETUP,
        )
        lab.source.request(agent.device_id, [task], lab.search(agent.device_id))
        assert lab.get(URL, agent.token).content == DATA
        assert lab.get(URL, stranger.token).status_code == 404

    def test_a_file_that_was_removed_can_be_sent_again(self, lab: ServerLab) -> None:
        ArtifactStore(lab.settings.artifacts_dir).path(DIGEST).unlink()
        assert lab.get(URL).status_code == 404
        assert lab.request("PUT", URL, content=DATA).status_code == 201
        assert lab.get(URL).content == DATA


class TestAbandoned:
    @staticmethod
    def partial(lab: ServerLab, name: str, idle_s: float) -> Path:
        """A file as a process that was killed leaves it behind."""
        path = lab.settings.artifacts_dir / "incoming" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DATA)
        os.utime(path, (time.time() - idle_s,) * 2)
        return path

    def test_old_ones_are_removed_and_told_of(self, sqlite_lab: ServerLab) -> None:
        store = ArtifactStore(sqlite_lab.settings.artifacts_dir)
        assert store.remove_abandoned() == 0
        assert sqlite_lab.request("PUT", URL, content=DATA).status_code == 201
        os.utime(store.path(DIGEST), (0, 0))
        old, young = (self.partial(sqlite_lab, name, s) for name, s in (("old", 86500.0), ("young", 86000.0)))
        with structlog.testing.capture_logs() as lines:
            assert store.remove_abandoned() == 1
        assert lines == [{"event": "abandoned_uploads_removed", "files": 1, "bytes": len(DATA), "log_level": "warning"}]
        assert (old.exists(), young.exists(), store.has(DIGEST)) == (False, True, True)

    def test_a_server_removes_them_when_it_starts(self, app: FastAPI, sqlite_settings: Settings) -> None:
        lab = ServerLab(TestClient(app), sqlite_settings)
        old = self.partial(lab, "old", 86500.0)
        app.state.settings = sqlite_settings
        with TestClient(app):
            while old.exists():
                time.sleep(0.01)
        lab.close()


class TestStore:
    def test_put_bytes_and_put_file(self, lab: ServerLab, tmp_path: Path) -> None:
        store = ArtifactStore(lab.settings.artifacts_dir)
        assert store.put_bytes(lab.database, DATA, created_by="worker") == DIGEST
        file = tmp_path / "file"
        file.write_bytes(DATA + b"!")
        digest = store.put_file(lab.database, file, created_by="worker")
        assert store.path(digest).read_bytes() == DATA + b"!"
        assert lab.get(f"/v1/artifacts/sha256/{digest}").status_code == 200
        assert not list((lab.settings.artifacts_dir / "incoming").iterdir())
