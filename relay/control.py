"""The control socket: how CLI commands that write reach the running daemon; and the lock that keeps it the only one.

``data_dir/control.sock`` (0600) speaks lines of JSON, one request a connection:

    → {"command": "queue.retry", "arguments": {"deliveries": [17]}, "account": "olga"}
    ← {"progress": {…}}                                    any number of them
    ← {"result": {…}}   or   {"error": "…", "field": "message"}   (field: null when no argument is to blame)

A client that goes away (Ctrl-C) cancels its command. Lines are bounded on both sides. The account is what the client
says: who may open the socket could write all that it guards as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import getpass
import json
import os
import socket
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog

from relay.accepting import Listener

log = structlog.get_logger()

MAX_REQUEST = 1024 * 1024  # octets of a request line
MAX_ANSWER = 16 * 1024 * 1024  # octets of an answer line
MAX_CLIENTS = 32
MAX_ACCOUNT = 100  # characters of an account's name that are kept
REQUEST_TIMEOUT = 10.0  # seconds for the request line to arrive
SILENCE_TIMEOUT = 600.0  # seconds a client waits for the next line

#: sizeof(sockaddr_un.sun_path) less the final NUL: unix(7), and sys/un.h of the BSDs and macOS.
MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103

Lines = dict[str, Any]
#: A command, given its arguments and the account that runs it: a coroutine function that answers the result, or an
#: async generator that yields the lines ``{"progress": …}`` themselves and ``{"result": …}`` as the last one.
Handler = Callable[[Lines, str], Awaitable[Lines] | AsyncIterator[Lines]]


class ControlError(Exception):
    """The command failed; the message is for the user, ``field`` names the argument to blame or is None.

    Raised by handlers on purpose, and by ``call`` for everything that a daemon answered or did not.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class NotRunning(ControlError):
    """No daemon answers at this socket."""


class AlreadyRunning(ControlError):
    """Another process holds this data_dir."""


def account() -> str:
    """Who runs this: in a container an account may have a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


class ControlServer:
    """A listening control socket. ``close`` stops listening, cancels running commands and removes the socket file."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._clients: set[asyncio.Task[None]] = set()
        self._listener: Listener | None = None

    def start(self) -> None:
        self._listener = Listener(self._protocol, _bind(self._path), None)

    async def close(self) -> None:
        if self._listener is None:
            return
        self._listener.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    def _protocol(self) -> asyncio.Protocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=MAX_REQUEST), self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._clients) >= MAX_CLIENTS:
                _write(writer, {"error": "too many commands at once", "field": None})
                return
            self._clients.add(task)
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client went away, or the daemon stops: nobody is left to answer
        finally:
            self._clients.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = "?"
        try:
            command, work = await self._request(reader)
            await _until_disconnect(reader, _run(work, writer))
        except ControlError as error:
            _write(writer, {"error": error.message, "field": error.field})
        except ConnectionError:
            raise
        except Exception:
            log.exception("control_command_failed", command=command)
            _write(writer, {"error": f"{command} failed, the daemon's log says why", "field": None})
        await writer.drain()

    async def _request(self, reader: asyncio.StreamReader) -> tuple[str, Awaitable[Lines] | AsyncIterator[Lines]]:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                line = await reader.readline()
        except TimeoutError as error:
            raise ControlError("no request came") from error
        except ValueError as error:  # what readline makes of LimitOverrunError
            raise ControlError(f"the request is longer than {MAX_REQUEST} octets") from error
        if not line.endswith(b"\n"):
            raise ConnectionResetError  # gone in the middle of it, or only asked whether somebody listens
        request = _parse(line)
        command, arguments = request.get("command"), request.get("arguments", {})
        if not isinstance(command, str) or command not in self._handlers:
            raise ControlError(f"unknown command {command!r:.80}", "command")
        if not isinstance(arguments, dict):
            raise ControlError("arguments must be an object", "arguments")
        who = str(request.get("account") or account())[:MAX_ACCOUNT]
        return command, self._handlers[command](arguments, who)


async def serve(path: Path, handlers: Mapping[str, Handler]) -> ControlServer:
    """Listen on ``path``; the returned server is closed by ``await server.close()``.

    A socket file that nobody answers is replaced. Raises AlreadyRunning when somebody does, and ControlError when the
    path cannot be a socket.
    """
    server = ControlServer(path, handlers)
    server.start()
    return server


async def _run(work: Awaitable[Lines] | AsyncIterator[Lines], writer: asyncio.StreamWriter) -> None:
    if not isinstance(work, AsyncIterator):
        _write(writer, {"result": await work})
        return
    try:
        async for line in work:
            _write(writer, line)
            await writer.drain()
            if "result" in line:
                return
        raise RuntimeError("the command ended without a result")
    finally:
        if isinstance(work, AsyncGenerator):
            await work.aclose()  # its finally blocks run now, not when the garbage collector comes round


async def _until_disconnect(reader: asyncio.StreamReader, work: Any) -> None:
    """Await ``work``; cancel it when the client closes its end first. Whatever else the client sends is read away."""
    running = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_end(reader))
    try:
        await asyncio.wait((running, gone), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ConnectionResetError
        await running
    finally:
        gone.cancel()
        running.cancel()
        await asyncio.gather(gone, running, return_exceptions=True)


async def _end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(4096):
            pass


def _write(writer: asyncio.StreamWriter, line: Lines) -> None:
    """Raises ConnectionResetError when the client is known to be gone."""
    if writer.is_closing():
        raise ConnectionResetError
    writer.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")


def _parse(line: bytes) -> Lines:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ControlError("not a line of JSON") from error
    if not isinstance(value, dict):
        raise ControlError("not a JSON object")
    return value


def call(
    path: Path,
    command: str,
    arguments: Lines,
    on_progress: Callable[[Any], None] | None = None,
    timeout: float = SILENCE_TIMEOUT,
) -> Lines:
    """Run one command in the daemon that listens on ``path`` and return its result; blocking.

    ``on_progress`` gets the value of every progress line. ``timeout`` is the longest silence in seconds. Raises
    NotRunning when nobody listens, ControlError with the daemon's own words when the command failed.
    """
    request = json.dumps({"command": command, "arguments": arguments, "account": account()}).encode() + b"\n"
    if len(request) > MAX_REQUEST:
        raise ControlError(f"the request is longer than {MAX_REQUEST} octets")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            _connect(sock, path)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise NotRunning(f"no daemon is running at {path}") from error
        except OSError as error:
            raise ControlError(f"{path}: {error.strerror}") from error
        try:
            with contextlib.suppress(BrokenPipeError):  # it has answered already, and that says why
                sock.sendall(request)
            with sock.makefile("rb") as answers:
                return _result(iter(lambda: answers.readline(MAX_ANSWER + 1), b""), on_progress)
        except TimeoutError as error:
            raise ControlError(f"the daemon has said nothing for {timeout:g} seconds") from error
        except OSError as error:
            raise ControlError(f"the connection to the daemon broke: {error.strerror}") from error


def _result(lines: Iterator[bytes], on_progress: Callable[[Any], None] | None) -> Lines:
    for line in lines:
        if len(line) > MAX_ANSWER:
            raise ControlError(f"the daemon's answer is longer than {MAX_ANSWER} octets")
        answer = _parse(line)
        if "error" in answer:
            raise ControlError(str(answer["error"]), answer.get("field"))
        if "result" in answer:
            result: Lines = answer["result"]
            return result
        if on_progress is not None:
            on_progress(answer.get("progress"))
    raise ControlError("the daemon stopped before the command was done")


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for ``path`` that fits into a socket address: through /proc when the real one is too long."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        yield str(path)
        return
    if sys.platform != "linux":
        raise ControlError(f"{path} is longer than {MAX_SOCKET_PATH} octets: choose a shorter data_dir", "data_dir")
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _connect(sock: socket.socket, path: Path) -> None:
    with _short(path) as address:
        sock.connect(address)


def _bind(path: Path) -> socket.socket:
    """Bind, then restrict, then (the caller) listen: nobody can connect while the mode is still the umask's."""
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as address:
            sock.bind(address)
        path.chmod(0o600)
    except OSError as error:
        sock.close()
        raise ControlError(f"{path}: {error.strerror}", "data_dir") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror}", "data_dir") from error
    if not stat.S_ISSOCK(mode):
        raise ControlError(f"{path} is in the way and is not a socket: move it away", "data_dir")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(REQUEST_TIMEOUT)
        try:
            _connect(probe, path)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # its daemon died without cleaning up
        except OSError as error:
            raise ControlError(f"{path}: {error.strerror}", "data_dir") from error
        else:
            raise AlreadyRunning(f"a daemon answers at {path}")


def _lock_as_well(directory: int) -> None:
    """As far as its file system lets a directory be locked: some of the network do not. Raises OSError when it is."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        log.warning("data_dir locked by its file alone", error=error.strerror)


class DirectoryLock:
    """Exclusive use of a data_dir by one process: an flock(2) on ``data_dir/lock``, which also says whose it is.

    The kernel drops the lock with the process, however that ends, so there are no stale locks; the file stays. The
    directory itself is locked, too: somebody may remove the file as if it were stale.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "lock"
        self._descriptors: tuple[int, ...] = ()

    def acquire(self) -> None:
        """Take the lock, creating data_dir (0700) if needed. Raises AlreadyRunning, or ControlError on an OS error."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._descriptors = (directory,)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._descriptors = (descriptor, directory)
        except OSError as error:
            self.release()
            raise ControlError(f"{error.filename or self._path}: {error.strerror}", "data_dir") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _lock_as_well(directory)
        except OSError as error:
            holder = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
            self.release()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ControlError(f"{self._path}: {error.strerror}", "data_dir") from error
            raise AlreadyRunning(f"{self._path.parent} is in use by another relay (process {holder})") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = ()

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
