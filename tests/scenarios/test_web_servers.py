"""The settings for nginx and Caddy in docs/operations.md, as they stand there, before the real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.certificates import Certificate
from tests.exposition import ROOT
from tests.missing import missing
from tests.ports import dead_port
from tests.runbook import replaced
from tests.scenarios.world import LOOK, ORIGIN, world

pytestmark = pytest.mark.scenario

#: Seconds for a web server to begin. Reached only when a test fails.
PATIENCE = 20.0
NAME = "track.example.com"


def snippet(language: str) -> str:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    (found,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return found


def nginx(directory: Path, made: Certificate, port: int, behind: int) -> list[str]:
    server = replaced(
        snippet("nginx"),
        ("/etc/letsencrypt/live/track.example.com/fullchain.pem", str(made.cert)),
        ("/etc/letsencrypt/live/track.example.com/privkey.pem", str(made.key)),
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("listen [::]:443", f"listen [::1]:{port}"),
        ("listen 80", f"listen unix:{directory}/80"),
        ("listen [::]:80", f"listen unix:{directory}/80.6"),
        ("127.0.0.1:8080", f"127.0.0.1:{behind}"),
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    head = f"daemon off; user root; pid {directory}/pid; error_log stderr; events {{}}"
    (directory / "nginx.conf").write_text(f"{head}\nhttp {{ access_log off; {places}\n{server}}}\n")
    return ["-c", str(directory / "nginx.conf")]


def caddy(directory: Path, made: Certificate, port: int, behind: int) -> list[str]:
    server = replaced(
        snippet("caddy"),
        ("track.example.com {", f"https://{NAME}:{port} {{\n    bind 127.0.0.1\n    tls {made.cert} {made.key}"),
        ("127.0.0.1:8080", f"127.0.0.1:{behind}"),
    )
    options = "{\n    admin off\n    auto_https disable_redirects\n}\n"
    (directory / "Caddyfile").write_text(options + server)
    return ["run", "--config", str(directory / "Caddyfile"), "--adapter", "caddyfile"]


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        missing(f"NOT TESTED, the settings for {name}: it is not installed (Debian: apt-get install {name})")
    return found


@contextlib.asynccontextmanager
async def running(directory: Path, *command: str, port: int) -> AsyncIterator[None]:
    """A web server that listens; ended by its process id."""
    log = directory / "server.log"
    environment = {**os.environ, "HOME": str(directory), "XDG_DATA_HOME": str(directory)}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            assert process.returncode is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            await asyncio.sleep(LOOK)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.mark.parametrize("name", ["nginx", "caddy"])
async def test_the_documented_settings_do_what_is_said_of_them(name: str, tmp_path: Path) -> None:
    command = program(name)
    if name == "nginx" and os.geteuid() != 0:
        pytest.skip("NOT TESTED, the settings for nginx: only root can start one that is root's")
    made = Certificate.make(tmp_path, NAME)
    port = dead_port()
    settings = {
        "http": {"trusted_proxies": ["127.0.0.1/32"]},
        "limits": {"exempt": [], "binds_per_address_per_minute": 2},
    }
    async with world(tmp_path, settings) as relay:
        arguments = (nginx if name == "nginx" else caddy)(tmp_path, made, port, relay.daemon.http_port)
        context = ssl.create_default_context(cafile=made.authority)
        connector = aiohttp.TCPConnector(resolver=Loopback(), ssl=context)
        async with (
            running(tmp_path, command, *arguments, port=port),
            aiohttp.ClientSession(connector=connector) as http,
        ):
            public = f"https://{NAME}:{port}"
            async with http.get(f"{public}/healthz") as response:
                assert await response.json() == {"status": "ok"}
            for path in ("/metrics", "/readyz", "/openapi.json"):
                async with http.get(public + path) as response:
                    assert response.status in (401, 404), path
                    assert "relay_" not in await response.text()
            body = {"site": "pk_example", "page": f"{ORIGIN}/", "addresses": ["sales@example.test"]}
            statuses = []
            for number in range(4):  # each claims to be another client
                forged = {"X-Forwarded-For": f"198.51.100.{number}", "Forwarded": f"for=203.0.113.{number}"}
                headers = {"Origin": ORIGIN, "Content-Type": "text/plain", "User-Agent": "Mozilla/5.0 Firefox/140.0"}
                async with http.post(f"{public}/v1/bind", json=body, headers=headers | forged) as response:
                    statuses.append(response.status)
            assert statuses == [200, 200, 429, 429]
            assert await relay.rows("SELECT DISTINCT ip FROM visits") == [("127.0.0.1",)]


class Loopback(aiohttp.abc.AbstractResolver):
    """Every name is this machine's."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        return [
            aiohttp.abc.ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass
