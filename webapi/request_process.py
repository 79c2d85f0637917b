"""Requests to receivers, made in a process of their own: what strangers answer is not parsed where the keys are.

    poster ── numbered requests ──▶ webapi/request_worker.py ──▶ receivers
           ◀── answers, as they come ──

When the process dies, what was under way has no answer (it may have arrived), and another is started.
"""

from __future__ import annotations

import asyncio
import os
import subprocess

import structlog

from relay import background
from relay.child import START, Child, patience, popen
from webapi.request_frames import ANSWERED, READY, check_lengths, pack_request, read_answer
from webapi.requests import OURS, TIMEOUT, Answer, NoAnswer, Request

log = structlog.get_logger()

#: Octets of address space of the process; seconds between two starts.
MEMORY = 1024 * 1024 * 1024
PAUSE = 1.0
#: Seconds beyond a request's time after which the process is taken to hang.
PATIENCE = 10.0
#: Octets of requests that may wait in the socket before others wait for that.
_BUFFER = 256 * 1024


class RequestProcess:
    """A Requester (webapi/requests.py) with ``connections`` at once."""

    def __init__(self, allow_private_addresses: bool, connections: int) -> None:
        self._arguments = [str(int(allow_private_addresses)), str(connections), str(MEMORY)]
        self._waiting: dict[int, asyncio.Future[Answer | NoAnswer]] = {}
        self._number = 0
        self._worker: Child | None = None
        self._ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process's, None while there is none."""
        return None if self._worker is None else self._worker.process.pid

    async def open(self) -> None:
        """Start the process and wait until it is ready; raises OSError."""
        self._worker = await self._start()
        self._ready.set()
        self._keeper = background.begin("requests to webhooks", self._keep)

    async def request(self, request: Request) -> Answer | NoAnswer:
        """Make it, and give it up a little later than the process should."""
        self._number = (self._number + 1) % 2**32
        number = self._number
        answer: asyncio.Future[Answer | NoAnswer] = asyncio.get_running_loop().create_future()
        try:
            async with patience(START):
                await self._ready.wait()
        except TimeoutError:
            return NoAnswer(OURS)  # _keep says why there is none
        worker = self._worker
        assert worker is not None
        try:
            async with patience(TIMEOUT + PATIENCE):
                self._waiting[number] = answer
                worker.write(pack_request(number, request))
                await worker.writer.drain()
                return await answer
        except TimeoutError:
            log.error("the process for requests hangs")
            worker.process.kill()
            return NoAnswer(OURS)
        except ConnectionError:
            return NoAnswer(OURS)  # _keep has seen it, too
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """End the process; what is under way has no answer."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._give_up()
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.end()

    async def _keep(self) -> None:
        """Take answers, and replace a process that died."""
        while True:
            worker = self._worker
            assert worker is not None
            try:
                await self._listen(worker)
            except (OSError, EOFError, ValueError) as error:
                log.error("the process for requests ended", reason=f"{type(error).__name__}: {error}")
            self._ready.clear()
            self._give_up()
            await worker.end()
            self._worker = await self._spawn()
            self._ready.set()

    async def _listen(self, worker: Child) -> None:
        reader = worker.reader
        while True:
            header = await reader.readexactly(ANSWERED.size)
            number, status, head, content = ANSWERED.unpack(header)
            check_lengths(head, content)
            found = read_answer(status, await reader.readexactly(head), await reader.readexactly(content))
            answer = self._waiting.pop(number, None)
            if answer is not None and not answer.done():
                answer.set_result(found)

    async def _spawn(self) -> Child:
        while True:
            await asyncio.sleep(PAUSE)
            try:
                return await self._start()
            except OSError as error:
                log.error("the process for requests can't be started", reason=str(error))

    async def _start(self) -> Child:
        worker = await Child.spawn(lambda channel: _popen(channel, self._arguments), READY, _BUFFER)
        worker.writer.transport.set_write_buffer_limits(_BUFFER)
        return worker

    def _give_up(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(NoAnswer(OURS))
        self._waiting.clear()


def _popen(channel: int, arguments: list[str]) -> subprocess.Popen[bytes]:
    """It also sees whom TLS trusts."""
    trust = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
    # Names are looked up in threads, and each reserves 64 MiB of the address space without this.
    return popen("webapi.request_worker", channel, arguments, {"MALLOC_ARENA_MAX": "2", **trust})
