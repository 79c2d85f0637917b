"""MIME → subject, text, attachment list, in worker processes that are killed when they take too long.

The workers (relay/extract_worker.py) are processes of our own over a socket pair, not Pebble's pool: that one was
measured at 60 µs of this process per hand-off and is quick enough in batches, but it re-imports the daemon's main
module into each worker, answers in pickle, which whoever takes over a parser could use against the daemon, and
brings three threads, a polling loop and a resource tracker process. What is left to do here is this:

    extract() ─▶ waiting ─▶ batch (≤ BATCH messages, ≤ BATCH_OCTETS; a file is one of its own) ─▶ worker ─▶ callers
                   ▲                        │ crash, or no answer within a third of the time limit
                   └── again, in a new ◀────┘
                       worker: of a batch, each message alone; what was alone, carefully (its HTML is not laid out);
                       what was read carefully is given up: what its header says, ``partial``

A message is innocent until it has killed a worker alone, so a hostile one costs its neighbours a repetition only.
Batches exist because handing over costs as much as reading a small message; an idle worker never waits for one.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import structlog

from relay import background
from relay.child import Child, patience, popen
from relay.core.letter import Letter
from relay.core.mime import MAX_HEADER, Extracted
from relay.core.mimetext import headers_only
from relay.extract_frames import (
    CAREFUL,
    COUNT,
    HTML,
    IS_PATH,
    ITEM,
    LETTER,
    NOT_HANDED_OVER,
    READY,
    from_json,
    letter_from_json,
)

log = structlog.get_logger()

BATCH = 64
BATCH_OCTETS = 1024 * 1024
WAITING = 1024  # messages; further callers of extract() wait before they are let in
MEMORY = 1024 * 1024 * 1024  # octets of address space a worker may have
_LIFE = 50_000  # messages after which a worker is replaced: what libxml2 remembers of strangers' tags goes with it
_PAUSE = 5.0  # seconds between attempts to start a worker that can't be started
_MAX_ANSWER = 64 * 1024 * 1024  # octets; no message that keeps the limits comes near
_YIELD = 64 * 1024  # octets of answer after which the event loop gets its turn


class ExtractorClosed(RuntimeError):
    """The extractor was closed before the message was read."""


@dataclass(slots=True, eq=False)
class _Job:
    source: bytes | Path
    done: asyncio.Future[Any]  # Extracted, with LETTER Letter
    alone: bool  # a file, a letter, or a message whose batch has killed a worker
    flags: int  # HTML or LETTER
    careful: bool = False  # it has killed a worker alone
    again: bool = False  # the machine did not hand it over once: a read error, no more open files


class Extractor:
    """``workers`` processes; ``timeout``: seconds that the attempts to read one message may take together.

    ``memory`` is a worker's limit of address space in octets.
    """

    def __init__(self, workers: int = 1, timeout: float = 10.0, memory: int = MEMORY) -> None:
        self._attempt = timeout / 3  # a message has three: in a batch, alone, carefully
        self._memory = memory
        self._count = workers
        self._room = asyncio.Semaphore(WAITING)
        self._waiting: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._workers: set[_Worker] = set()
        self._closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are up."""
        return tuple(worker.pid for worker in self._workers)

    async def start(self) -> None:
        """Start the workers and wait until they are ready; one that can't be started now is tried again and again."""
        workers = await asyncio.gather(*(self._spawn() for _ in range(self._count)))
        self._tasks = [background.begin("reading", partial(self._run, worker)) for worker in workers]

    async def extract(self, source: bytes | Path, html: bool = False) -> Extracted:
        """Read one message in wire form: small ones as octets, large ones by the path of their file.

        With ``html`` its HTML form is given too: see ``Extracted.html``.
        Never raises for what the message holds: see ``Extracted.partial``. Waits while WAITING others wait.
        Raises ExtractorClosed.
        """
        result: Extracted = await self._ask(source, HTML if html else 0)
        return result

    async def letter(self, source: bytes | Path) -> Letter:
        """The HTML form of one message, made safe to show: ``source`` and what is raised as for :meth:`extract`.

        One that ends a worker, or takes a third of the time limit, gives no HTML.
        """
        result: Letter = await self._ask(source, LETTER)
        return result

    async def _ask(self, source: bytes | Path, flags: int) -> Any:
        async with self._room:
            if self._closed:
                raise ExtractorClosed
            alone = isinstance(source, Path) or bool(flags & LETTER)
            job = _Job(source, asyncio.get_running_loop().create_future(), alone, flags)
            self._waiting.append(job)
            self._arrived.set()
            return await job.done

    async def close(self) -> None:
        """End the workers; who still waits gets ExtractorClosed. May be called twice."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        while self._waiting:
            self._settle(self._waiting.popleft(), ExtractorClosed())
        for worker in tuple(self._workers):
            await self._end(worker)

    async def _run(self, worker: _Worker | None) -> None:
        """One worker's life, and its successors'; None is one that could not be started."""
        batch: list[_Job] = []
        try:
            if worker is None:
                await asyncio.sleep(_PAUSE)  # start() has just tried
                worker = await self._replace(None)
            while True:
                batch = await self._take()
                if worker.gone or worker.served > _LIFE:
                    # Another worker may be idle, and a new one takes its time.
                    self._waiting.extendleft(reversed(batch))
                    batch = []
                    self._arrived.set()
                    worker = await self._replace(worker)
                    continue
                try:
                    async with patience(self._attempt):
                        answers = await worker.ask(batch)
                    await self._deliver(batch, answers)
                    if NOT_HANDED_OVER in answers:
                        worker.retire()
                except Exception as error:  # it was killed, died, or answered what no worker of ours answers
                    log.warning("extraction worker ended", messages=len(batch), reason=_reason(error))
                    await self._failed(batch)
                    worker = await self._replace(worker)
                batch = []
        finally:
            for job in batch:
                self._settle(job, ExtractorClosed())

    async def _take(self) -> list[_Job]:
        """The next batch: whoever waits, up to the limits."""
        while self._waiting and self._waiting[0].done.done():
            self._waiting.popleft()  # its caller went away
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        batch = [self._waiting.popleft()]
        octets = _size(batch[0])
        while self._waiting and not batch[0].alone and not self._waiting[0].alone:
            octets += _size(self._waiting[0])
            if len(batch) == BATCH or octets > BATCH_OCTETS:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _deliver(self, batch: list[_Job], answers: list[bytes]) -> None:
        for job, answer in zip(batch, answers, strict=True):
            if answer == NOT_HANDED_OVER:
                await self._not_handed_over(job)
                continue
            self._settle(job, letter_from_json(answer) if job.flags & LETTER else from_json(answer))
            if len(answer) > _YIELD:
                await asyncio.sleep(0)

    async def _failed(self, batch: list[_Job]) -> None:
        for job in reversed(batch):
            if job.done.done():
                continue
            if job.careful:
                await self._give_up(job)
                continue
            job.careful = len(batch) == 1
            job.alone = True
            self._waiting.appendleft(job)
        self._arrived.set()

    async def _not_handed_over(self, job: _Job) -> None:
        if job.again:
            await self._give_up(job)
            return
        job.again = True
        self._waiting.appendleft(job)
        self._arrived.set()

    async def _give_up(self, job: _Job) -> None:
        self._settle(job, Letter(cut=True) if job.flags & LETTER else await self._header(job.source))

    @staticmethod
    async def _header(source: bytes | Path) -> Extracted:
        try:
            return await asyncio.to_thread(_from_header, source)
        except Exception:
            log.exception("header not read")
            return Extracted(None, None, False, (), True)

    @staticmethod
    def _settle(job: _Job, result: Extracted | Letter | ExtractorClosed) -> None:
        if job.done.done():
            return  # its caller went away
        if isinstance(result, ExtractorClosed):
            job.done.set_exception(result)
        else:
            job.done.set_result(result)

    async def _spawn(self) -> _Worker | None:
        """A worker that is ready; None when it can't be started, and the log says why."""
        try:
            worker = await _Worker.spawn(3 * self._attempt, self._memory)
        except OSError as error:
            log.error("extraction worker can't be started", reason=_reason(error))
            return None
        self._workers.add(worker)
        return worker

    async def _end(self, worker: _Worker) -> None:
        await worker.end()  # if this is cancelled, close() does it again
        self._workers.discard(worker)

    async def _replace(self, worker: _Worker | None) -> _Worker:
        if worker is not None:
            await self._end(worker)
        while True:
            successor = await self._spawn()
            if successor is not None:
                return successor
            await asyncio.sleep(_PAUSE)


class _Worker:
    """One of the processes, and how many messages it has read."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.served = 0

    @classmethod
    async def spawn(cls, seconds: float, memory: int) -> _Worker:
        """Start a process and wait for its READY; raises OSError."""
        arguments = [str(seconds), str(memory)]
        return cls(await Child.spawn(lambda channel: _popen(channel, arguments), READY, BATCH_OCTETS))

    @property
    def pid(self) -> int:
        return self._child.process.pid

    @property
    def gone(self) -> bool:
        return self._child.reader.at_eof()

    async def ask(self, jobs: Sequence[_Job]) -> list[bytes]:
        """The answer for each message; raises OSError, EOFError or ValueError when the worker dies or lies."""
        bodies = [job.source if isinstance(job.source, bytes) else os.fsencode(job.source) for job in jobs]
        items = [ITEM.pack(_flags(job), len(body)) for job, body in zip(jobs, bodies, strict=True)]
        self._child.write(b"".join([COUNT.pack(len(bodies)), *items, *bodies]))
        lengths = struct.unpack(f"!{len(bodies)}I", await self._child.reader.readexactly(COUNT.size * len(bodies)))
        if sum(lengths) > _MAX_ANSWER:
            raise ValueError(f"an answer of {sum(lengths)} octets")
        answers = await self._child.reader.readexactly(sum(lengths))
        self.served += len(bodies)
        return [answers[end - length : end] for end, length in zip(accumulate(lengths), lengths, strict=True)]

    def retire(self) -> None:
        """Read no more: the next batch is another's."""
        self.served = _LIFE + 1

    async def end(self) -> None:
        await self._child.end()


def _popen(channel: int, arguments: list[str]) -> subprocess.Popen[bytes]:
    return popen("relay.extract_worker", channel, arguments)


def _flags(job: _Job) -> int:
    return (IS_PATH if isinstance(job.source, Path) else 0) | (CAREFUL if job.careful else 0) | job.flags


def _size(job: _Job) -> int:
    return len(job.source) if isinstance(job.source, bytes) else 0


def _from_header(source: bytes | Path) -> Extracted:
    if isinstance(source, bytes):
        return headers_only(source)
    try:
        with source.open("rb") as file:
            return headers_only(file.read(MAX_HEADER))
    except OSError:
        return headers_only(b"")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
