"""TLS: the reverse proxy's configuration that we ship, in front of a real server."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import kerf
from device_agent.client import ServerClient
from device_agent.contracts import EnrolmentRequest, LeaseRequest
from device_agent.errors import TryAgainLater
from server.accounts.service import Scope, mint_enrolment_code, mint_user_token
from server.accounts.tokens import SecretHasher
from server.context import TOKEN_COOKIE
from server.database import Database, upgrade
from server.searches.queries import insert_search
from server.settings import Settings
from tests.integration.running_site import wait_until
from tests.unit.server.server_lab import PROFILE, RUNTIMES, new_key, search_config

CONFIG = Path(__file__).parents[2] / "deploy" / "nginx.conf"
NGINX = os.environ.get("KERF_NGINX") or shutil.which("nginx") or "/usr/sbin/nginx"
OPENSSL = shutil.which("openssl")
NAME = "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSite:
    url: str
    certificate: Path
    database: Database
    hasher: SecretHasher

    def token(self, *scopes: Scope) -> str:
        with self.database.write() as session:
            return mint_user_token(session, self.hasher, name="ada", scopes=scopes)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def proxy_config(folder: Path, port: int, upstream: int) -> str:
    """The shipped file with other addresses and paths, inside what nginx needs around it."""
    text = CONFIG.read_text(encoding="utf-8")
    for shipped, ours in (
        ("127.0.0.1:8321", f"127.0.0.1:{upstream}"),
        ("listen 443 ", f"listen 127.0.0.1:{port} "),
        ("kerf.example.com", NAME),
        ("/etc/ssl/kerf/", f"{folder}/"),
    ):
        assert shipped in text
        text = text.replace(shipped, ours)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    return (
        f"{user}daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{paths}{text}}}\n"
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsSite]:
    if not Path(NGINX).is_file() or OPENSSL is None:
        pytest.skip("needs nginx (Debian: nginx-light, or KERF_NGINX) and openssl")
    folder = tmp_path_factory.mktemp("tls")
    certificate = folder / "fullchain.pem"
    subprocess.run(
        [OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}", "-keyout", str(folder / "privkey.pem"),
         "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    settings = Settings(data_dir=folder / "data")
    settings.data_dir.mkdir()
    upgrade(settings)
    port, upstream = free_port(), free_port()
    (folder / "nginx.conf").write_text(proxy_config(folder, port, upstream), encoding="utf-8")
    environment = {**os.environ, "KERF_DATA_DIR": str(settings.data_dir)}
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "server.cli", "server", "--port", str(upstream)], env=environment
    )
    proxy = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
    database = Database.from_settings(settings)
    url = f"https://{NAME}:{port}"
    found = TlsSite(
        url=url, certificate=certificate, database=database, hasher=SecretHasher.from_file(settings.key_file)
    )

    def is_up() -> bool:
        assert server.poll() is None
        assert proxy.poll() is None, (folder / "error.log").read_text()
        try:
            return httpx.get(f"{url}/readyz", verify=context_of(found)).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(is_up, "server and proxy")
        yield found
    finally:
        for process in (proxy, server):
            process.kill()
            process.wait()
        database.dispose()


def context_of(site: TlsSite) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(site.certificate))


@pytest.fixture
def browser(site: TlsSite) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, verify=context_of(site)) as client:
        yield client


def test_a_browser_signs_in_and_its_cookie_stays_on_tls(site: TlsSite, browser: httpx.Client) -> None:
    answer = browser.post("/login", data={"token": site.token(Scope.READ)}, headers={"Origin": site.url})
    assert answer.status_code == 303
    assert "Secure" in answer.headers["set-cookie"]
    assert "max-age" in answer.headers["strict-transport-security"]
    assert browser.cookies.get(TOKEN_COOKIE) is not None
    assert browser.get("/", headers={"Accept": "text/html"}).status_code == 200
    assert browser.post("/logout", headers={"Origin": "https://localhost:1"}).status_code == 403


def test_the_proxy_tells_no_stories_about_addresses(site: TlsSite, browser: httpx.Client) -> None:
    """Nobody reaches the open parts by saying that he is somebody else, and the figures stay inside."""
    assert browser.get("/metrics").status_code == 404
    for header in ("X-Forwarded-For", "Forwarded"):
        assert browser.get("/", headers={"Accept": "text/html", header: "127.0.0.1"}).status_code == 303


def test_events_and_uploads_pass_as_they_come(
    site: TlsSite, browser: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(site.certificate))
    token = site.token(Scope.ADMIN)
    with kerf.Client(site.url, token) as client:
        file = tmp_path / "file"
        # More than any buffer on the way.
        file.write_bytes(os.urandom(3 << 20))
        digest = client.artifacts.upload(file)
        client.artifacts.download(digest, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == file.read_bytes()
        device_id = enrol(site)[0]
        with site.database.write() as session:
            search_id = insert_search(
                session, name="s", device_id=device_id, config=search_config(device=device_id), created_by="test"
            ).id
        headers = {"Authorization": f"Bearer {token}"}
        with browser.stream("GET", f"/v1/searches/{search_id}/events", headers=headers) as stream:
            # The stream stays open: what is there arrives before its end.
            assert next(stream.iter_lines()).startswith("event: state")


def enrol(site: TlsSite) -> tuple[str, str]:
    """The device and token of an agent that enrolled through the proxy."""
    with site.database.write() as session:
        code = mint_enrolment_code(session, site.hasher)[0]
    request = EnrolmentRequest(
        code=code, agent_key=new_key(), device_name="board", profile=PROFILE, runtimes=RUNTIMES, agent_version="0.1.0"
    )
    with ServerClient(site.url) as client:
        answer = client.enrol(request)
    return answer.device_id, answer.token


def test_an_agent_polls_through_it_and_refuses_a_stranger(site: TlsSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(site.certificate))
    _, token = enrol(site)
    with ServerClient(site.url, token) as client:
        began = time.monotonic()
        assert client.lease(LeaseRequest(wait_s=1.0)).leases == ()
        assert time.monotonic() - began > 0.9
    monkeypatch.delenv("SSL_CERT_FILE")
    with ServerClient(site.url, token) as client, pytest.raises(TryAgainLater, match="CERTIFICATE_VERIFY_FAILED"):
        client.lease(LeaseRequest(wait_s=0.0))
