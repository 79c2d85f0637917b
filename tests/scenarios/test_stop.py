"""SIGTERM while a message is being received: HTTP is served until that is over, and says that the daemon stops."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.scenarios.world import DOMAIN, World, unique_letter, world
from tests.smtp_client import SmtpClient

pytestmark = pytest.mark.scenario

BASE = f"plus@{DOMAIN}"
PASSWORD = "a horse, a staple"


async def session_of_somebody(relay: World) -> str:
    """What a browser sends as Cookie that a new user has just logged in with."""
    link = (await relay.command("user.create", name="ann", role="viewer"))["link"].rpartition("/")[2]
    async with relay.http.post(
        f"{relay.daemon.url}/ui/welcome/{link}",
        data={"password": PASSWORD, "again": PASSWORD},
        headers={"Sec-Fetch-Site": "same-origin"},
        allow_redirects=False,
    ) as response:
        assert response.status == 303, await response.text()
        return response.headers["Set-Cookie"].partition(";")[0]


async def test_readyz_answers_503_while_a_message_comes_to_its_end(tmp_path: Path) -> None:
    async with world(tmp_path) as relay:
        url = f"{relay.daemon.url}/readyz"
        async with (
            await SmtpClient.hello(relay.daemon.smtp_port) as sending,
            await SmtpClient.hello(relay.daemon.smtp_port) as idle,
        ):
            assert (await sending.start(f"<{BASE}>")).code == 354
            async with relay.http.get(url) as response:
                assert response.status == 200
            ending = asyncio.create_task(asyncio.to_thread(relay.daemon.stop))
            assert (await idle.answer()).short == "421 4.3.2"
            async with relay.http.get(url) as response:
                assert response.status == 503
                assert "stopping" in await response.text()
            await sending.send(unique_letter() + b".\r\n")
            assert (await sending.answer()).short == "250 2.0.0"
        assert await ending == 0


async def test_the_stream_of_an_open_history_ends_before_the_message_does(tmp_path: Path) -> None:
    async with world(tmp_path) as relay:
        cookie = await session_of_somebody(relay)
        async with (
            relay.http.get(f"{relay.daemon.url}/ui/history/events", headers={"Cookie": cookie}) as stream,
            await SmtpClient.hello(relay.daemon.smtp_port) as sending,
        ):
            assert (await sending.start(f"<{BASE}>")).code == 354
            ending = asyncio.create_task(asyncio.to_thread(relay.daemon.stop))
            # To its last chunk, without which read() raises: a stream that had to be cut off has none.
            assert (await stream.read()).startswith(b"retry: ")
            await sending.send(unique_letter() + b".\r\n")
            assert (await sending.answer()).short == "250 2.0.0"
        assert await ending == 0
