"""Artifacts in an object store: a real S3 server of the test's own, and a folder through the same library."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from device_agent.contracts import ContractError
from server.accounts.tokens import SecretHasher
from server.artifacts.objects import ArtifactDamaged, ObjectArtifactStore
from server.artifacts.store import open_store
from server.database import Database
from server.errors import Unavailable, Unprocessable
from server.settings import Settings
from tests.unit.server.server_lab import ServerLab

DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()
OBJECT = f"{DIGEST[:2]}/{DIGEST[2:4]}/{DIGEST}"
URL = f"/v1/artifacts/sha256/{DIGEST}"


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    """An S3 server with a bucket named "kerf"."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/kerf", method="PUT"), timeout=30).close()
    yield address
    server.stop()


@pytest.fixture
def s3_url(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place on that server, with what the library needs in the environment."""
    variables = {
        "AWS_ENDPOINT_URL": s3_address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return f"s3://kerf/{secrets.token_hex(8)}"


@pytest.fixture(params=["s3", "file"])
def objects_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        (tmp_path / "shared").mkdir()
        return f"file://{tmp_path / 'shared'}"
    url: str = request.getfixturevalue("s3_url")
    return url


@pytest.fixture
def hosts(objects_url: str, sqlite_settings: Settings, tmp_path: Path) -> tuple[Settings, Settings]:
    """Two hosts with folders of their own, one database, one object store and one key of tokens."""
    url, key = sqlite_settings.url, "ab" * 32
    first = replace(sqlite_settings, artifacts_url=objects_url, database_url=url, token_key=key)
    (tmp_path / "second").mkdir()
    return first, replace(first, data_dir=tmp_path / "second")


def cached(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.artifacts_dir.rglob("*") if path.is_file())


def test_what_one_host_takes_the_other_gives(app: FastAPI, hosts: tuple[Settings, Settings]) -> None:
    first, second = hosts
    app.state.settings = first
    with TestClient(app) as client:
        lab = ServerLab(client, first)
        token = lab.user_token()
        assert [lab.request("PUT", URL, token, content=DATA).status_code for _ in range(2)] == [201, 200]
        lab.close()
    app.state.settings = second
    with TestClient(app) as client:
        lab = ServerLab(client, second)
        assert cached(second) == []
        assert lab.get(URL, token, headers={"Range": "bytes=5-9"}).content == DATA[5:10]
        assert cached(second) == [DIGEST]
        assert lab.get(URL, token).content == DATA
        assert lab.request("PUT", URL, token, content=DATA).status_code == 200
        lab.close()


def test_nothing_is_registered_that_the_object_store_did_not_take(
    app: FastAPI, s3_address: str, s3_url: str, sqlite_settings: Settings
) -> None:
    bucket = f"{s3_address}/short-lived"
    urllib.request.urlopen(urllib.request.Request(bucket, method="PUT"), timeout=30).close()
    settings = replace(sqlite_settings, artifacts_url="s3://short-lived")
    app.state.settings = settings
    with TestClient(app) as client:
        urllib.request.urlopen(urllib.request.Request(bucket, method="DELETE"), timeout=30).close()
        lab = ServerLab(client, settings)
        answer = lab.request("PUT", URL, content=DATA)
        assert (answer.status_code, answer.json()["code"]) == (503, "artifacts_unavailable")
        assert answer.json()["retryable"]
        assert "Debug" not in answer.json()["detail"]
        assert cached(settings) == []
        assert lab.get(URL).status_code == 404
        lab.close()


class TestStore:
    def test_a_missing_object_has_no_file(self, hosts: tuple[Settings, Settings]) -> None:
        store = open_store(hosts[0])
        assert not store.has(DIGEST)
        assert not store.path(DIGEST).exists()
        assert cached(hosts[0]) == []
        with pytest.raises(Unprocessable, match="no SHA-256"):
            store.path("../../etc/passwd")

    def test_a_file_larger_than_one_part(self, hosts: tuple[Settings, Settings], tmp_path: Path) -> None:
        data = DATA * 700
        source = tmp_path / "source"
        source.write_bytes(data)
        digest = open_store(hosts[0]).put_file(Database.from_settings(hosts[0]), source, created_by="test")
        assert open_store(hosts[1]).path(digest).read_bytes() == data

    def test_what_is_in_the_cache_alone_is_not_stored(self, hosts: tuple[Settings, Settings]) -> None:
        store = open_store(hosts[0])
        file = store.path(DIGEST)
        file.parent.mkdir(parents=True)
        file.write_bytes(DATA)
        assert not store.has(DIGEST)

    def test_a_damaged_object_is_refused(self, hosts: tuple[Settings, Settings]) -> None:
        import obstore
        from obstore.store import from_url

        store = open_store(hosts[0])
        obstore.put(from_url(hosts[0].artifacts_url), OBJECT, DATA[:-1])
        with pytest.raises(ArtifactDamaged, match=f"object {OBJECT} has the SHA-256"):
            store.path(DIGEST)
        assert cached(hosts[0]) == []

    def test_the_cache_keeps_what_was_used_last(self, tmp_path: Path) -> None:
        (tmp_path / "shared").mkdir()
        settings = Settings(
            data_dir=tmp_path / "host", artifacts_url=f"file://{tmp_path / 'shared'}", artifacts_cache_bytes=250
        )
        store = open_store(settings)
        assert isinstance(store, ObjectArtifactStore)
        digests = []
        for age_h in (4, 3, 2, 0):
            with store.upload() as upload:
                upload.write(bytes([age_h]) * 100)
                digests.append(upload.commit(None))
            used = time.time() - 3600 * age_h - 60
            os.utime(store.path(digests[-1]), (used, used))
        # The first two made room when the third and fourth came; all are still objects.
        assert cached(settings) == sorted(digests[2:])
        assert store.path(digests[0]).read_bytes() == bytes([4]) * 100
        assert all(store.has(digest) for digest in digests)

    def test_an_object_store_that_is_away(self, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from obstore.store import from_url

        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        objects = from_url(s3_url, retry_config={"max_retries": 0})
        store = ObjectArtifactStore(objects, tmp_path / "artifacts", 1 << 20)
        for use in (store.has, store.path):
            with pytest.raises(Unavailable, match="object store"):
                use(DIGEST)
        assert cached(Settings(data_dir=tmp_path)) == []


class TestSettings:
    def test_a_scheme_that_is_none(self) -> None:
        with pytest.raises(ContractError, match="artifacts_url 'ftp://x'"):
            Settings(artifacts_url="ftp://x")

    @pytest.mark.parametrize("url", ["s3://", "s3://no-such-bucket/artifacts", "file:///no/such/folder"])
    def test_a_url_that_leads_nowhere(self, s3_url: str, tmp_path: Path, url: str) -> None:
        with pytest.raises(ContractError, match="KERF_ARTIFACTS_URL"):
            open_store(Settings(data_dir=tmp_path, artifacts_url=url))

    def test_hosts_with_one_key_know_the_same_tokens(self, tmp_path: Path) -> None:
        first, second = (Settings(data_dir=tmp_path / name, token_key="0f" * 32) for name in "ab")
        assert SecretHasher.from_settings(first).hash("x") == SecretHasher.from_settings(second).hash("x")
        assert not first.key_file.exists()
        assert SecretHasher.from_settings(Settings(data_dir=tmp_path / "a")).hash("x") != SecretHasher.from_settings(
            first
        ).hash("x")

    @pytest.mark.parametrize("key", ["0f" * 31, "0f" * 32 + "0", "zz" * 32])
    def test_a_key_that_is_none_is_not_told(self, key: str) -> None:
        with pytest.raises(ContractError, match="64 hex digits") as refused:
            Settings(token_key=key)
        assert key not in str(refused.value)
        assert "0f0f" not in repr(Settings(token_key="0f" * 32))
        assert "secret" not in repr(Settings(database_url="postgresql://kerf:secret@host/kerf"))
