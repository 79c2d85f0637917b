"""Receivers of webhooks in a process of their own, of the lowest priority: some sound, five sick as real ones are.

    python -m benchmarks.receivers SOUND [SECRET]

It prints {name: port} and takes orders on standard input, each answered by one line; the end of the input is its end:

    redirect URL    where "redirect" sends its posts to                     ok
    stat            {name: {"requests": …, "accepted": …, "events": …}}     JSON
    dump FILE       {name: {webhook-id: [letter, requests, accepted, at]}}  ok; at: when the first one came (monotonic)

With SECRET every signature is checked, "unverified" counts the bad ones, and "letter N" is read from the subject. What
is kept of an event are four numbers and its id, so a run may have as many as it likes.

    sound0, …   200 at once                          sleeper     200 after SLEEP seconds
    flaky       500 to the first attempt of every    streamer    200, and octets for ever
                second event, else 200               redirect    307
    closed      nobody listens
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from benchmarks.processes import give_way

ROOT = Path(__file__).resolve().parent.parent
#: Longer than the daemon waits for an answer.
SLEEP = 20.0
SICK = ("flaky", "sleeper", "streamer", "redirect", "closed")
#: Octets that the streamer writes at once, and seconds for the process to start, answer and end.
CHUNK = b"x" * 65536
PATIENCE = 60.0
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"


@dataclass(slots=True)
class Receiver:
    """One of them. ``events``: webhook-id → [number of the letter or -1, requests, those answered with 200, the first's
    time in seconds of the system's monotonic clock]."""

    name: str
    webhook: Webhook | None
    to: str = ""  # where it redirects to
    requests: int = 0
    unverified: int = 0
    events: dict[str, list[Any]] = field(default_factory=dict)

    def take(self, headers: dict[str, str], body: bytes) -> bytes:
        """Note one request; the answer, none when it is the peer's to give later."""
        self.requests += 1
        letter = -1
        if self.webhook is not None:
            try:
                subject = self.webhook.verify(body, headers)["subject"] or ""
                letter = int(subject.removeprefix("letter ")) if subject.startswith("letter ") else -1
            except WebhookVerificationError:
                self.unverified += 1
        event = self.events.setdefault(headers.get("webhook-id", ""), [letter, 0, 0, time.monotonic()])
        event[1] += 1
        answer = self._answer(event[1] == 1 and len(self.events) % 2 == 0)
        event[2] += answer.startswith(b"HTTP/1.1 200")
        return answer

    def _answer(self, is_first_of_a_second: bool) -> bytes:
        if self.name == "flaky" and is_first_of_a_second:
            return _FAILED
        if self.name == "redirect":
            return f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {self.to}\r\nContent-Length: 0\r\n\r\n".encode()
        if self.name == "sleeper":
            return b""
        return _STREAM if self.name == "streamer" else _OK

    def figures(self) -> dict[str, int]:
        accepted = sum(event[2] for event in self.events.values())
        found = {"requests": self.requests, "accepted": accepted, "events": len(self.events)}
        return found if self.webhook is None else {**found, "unverified": self.unverified}


class _Peer(asyncio.Protocol):
    """A connection: requests with a Content-Length, one after the other."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._in = bytearray()
        self._transport: asyncio.Transport | None = None
        self._later: asyncio.TimerHandle | None = None
        self._streaming = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._in += data
        while (end := self._in.find(b"\r\n\r\n")) >= 0:
            lines = self._in[:end].decode("latin-1").split("\r\n")[1:]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            size = end + 4 + int(headers.get("content-length", "0"))
            if len(self._in) < size:
                return
            body = bytes(self._in[end + 4 : size])
            del self._in[:size]
            self._answer(self._receiver.take(headers, body))

    def _answer(self, answer: bytes) -> None:
        assert self._transport is not None
        if not answer:
            self._later = asyncio.get_running_loop().call_later(SLEEP, self._transport.write, _OK)
            return
        self._transport.write(answer)
        if answer is _STREAM:
            self._streaming = True
            self._stream()

    def _stream(self) -> None:
        assert self._transport is not None
        while self._streaming and not self._transport.is_closing():
            self._transport.write(CHUNK)  # calls pause_writing when the other side has to read first

    def pause_writing(self) -> None:
        self._streaming = False

    def resume_writing(self) -> None:
        self._streaming = True
        self._stream()

    def connection_lost(self, error: Exception | None) -> None:
        self._streaming = False
        if self._later is not None:
            self._later.cancel()


def obey(receivers: dict[str, Receiver], order: str) -> str:
    """Carry out one order; the line that answers it."""
    command, _, argument = order.partition(" ")
    if command == "redirect":
        receivers["redirect"].to = argument
    elif command == "dump":
        kept = {name: receiver.events for name, receiver in receivers.items()}
        Path(argument).write_text(json.dumps(kept))
    elif command == "stat":
        return json.dumps({name: receiver.figures() for name, receiver in receivers.items()})
    else:
        return f"no such order: {order}"
    return "ok"


async def _serve(sound: int, secret: str | None) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    webhook = Webhook(secret) if secret else None
    names = [f"sound{number}" for number in range(sound)] + [name for name in SICK if name != "closed"]
    receivers = {name: Receiver(name, webhook) for name in names}
    ports, servers = {}, []
    for name, receiver in receivers.items():
        server = await loop.create_server(_peer(receiver), "127.0.0.1", 0, backlog=1000)
        servers.append(server)
        ports[name] = server.sockets[0].getsockname()[1]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # without listen: the port is refused, and stays ours
        ports["closed"] = closed.getsockname()[1]
        print(json.dumps(ports), flush=True)
        pending = bytearray()

        def read() -> None:
            data = os.read(sys.stdin.fileno(), 65536)
            pending.extend(data)
            while (end := pending.find(b"\n")) >= 0:
                order = pending[:end].decode()
                del pending[: end + 1]
                print(obey(receivers, order), flush=True)
            if not data and not ended.done():
                ended.set_result(None)

        loop.add_reader(sys.stdin.fileno(), read)
        await ended
        loop.remove_reader(sys.stdin.fileno())


def _peer(receiver: Receiver) -> Callable[[], _Peer]:
    return lambda: _Peer(receiver)


class Receivers:
    """The process, for its driver: ``urls`` by name, sound ones first. It ends when its driver does."""

    def __init__(self, sound: int, secret: str = "") -> None:
        self._command = [sys.executable, "-m", "benchmarks.receivers", str(sound), *filter(None, [secret])]
        self._process: subprocess.Popen[str] | None = None
        self.urls: dict[str, str] = {}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def order(self, order: str) -> str:
        """Give an order; the answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._line()

    def figures(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = json.loads(self.order("stat"))
        return found

    def dump(self, file: Path) -> dict[str, dict[str, list[Any]]]:
        """What each has received, by webhook-id: number of the letter, requests, those answered with 200, time."""
        assert self.order(f"dump {file}") == "ok"
        found: dict[str, dict[str, list[Any]]] = json.loads(file.read_text())
        return found

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the receivers ended with {self._process.wait(PATIENCE)}")
        return line.rstrip("\n")

    def __enter__(self) -> Receivers:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(self._command, cwd=ROOT, **pipes)
        self.urls = {name: f"http://127.0.0.1:{port}/hook" for name, port in json.loads(self._line()).items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()


if __name__ == "__main__":
    give_way()
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
