"""The control socket and the lock on data_dir: real sockets, real processes."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay import accepting, control
from relay.control import AlreadyRunning, ControlError, ControlServer, DirectoryLock, NotRunning, call, serve

Lines = dict[str, Any]


class Commands:
    """Handlers, and what became of them."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()

    async def echo(self, arguments: Lines, account: str) -> Lines:
        return {"arguments": arguments}

    async def whoami(self, arguments: Lines, account: str) -> Lines:
        return {"account": account}

    async def refuse(self, arguments: Lines, account: str) -> Lines:
        raise ControlError("no such message", "message")

    async def crash(self, arguments: Lines, account: str) -> Lines:
        raise ValueError("the secret detail")

    async def unserialisable(self, arguments: Lines, account: str) -> Lines:
        return {"value": object()}

    async def forever(self, arguments: Lines, account: str) -> Lines:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        return {}

    async def count(self, arguments: Lines, account: str) -> AsyncIterator[Lines]:
        for step in range(arguments["to"]):
            yield {"progress": {"step": step}}
        yield {"result": {"steps": arguments["to"]}}

    async def unfinished(self, arguments: Lines, account: str) -> AsyncIterator[Lines]:
        yield {"progress": 1}

    async def stream(self, arguments: Lines, account: str) -> AsyncIterator[Lines]:
        self.started.set()
        try:
            while True:
                yield {"progress": "x" * 1000}
        finally:
            self.ended.set()


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
async def server(tmp_path: Path, commands: Commands) -> AsyncIterator[ControlServer]:
    names = ("echo", "whoami", "refuse", "crash", "unserialisable", "forever", "count", "unfinished", "stream")
    server = await serve(tmp_path / "control.sock", {name: getattr(commands, name) for name in names})
    yield server
    await server.close()


async def ask(path: Path, command: str, arguments: Lines, on_progress: Any = None) -> Lines:
    return await asyncio.to_thread(call, path, command, arguments, on_progress)


async def raw(path: Path, sent: bytes) -> bytes:
    """What the server answers to exactly these octets."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(sent)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.usefixtures("server")
class TestCommands:
    async def test_a_result_comes_back(self, tmp_path: Path) -> None:
        result = await ask(tmp_path / "control.sock", "echo", {"name": "Тест", "n": [1, None]})
        assert result == {"arguments": {"name": "Тест", "n": [1, None]}}

    async def test_arguments_may_be_left_out(self, tmp_path: Path) -> None:
        assert await raw(tmp_path / "control.sock", b'{"command":"echo"}\n') == b'{"result":{"arguments":{}}}\n'

    @pytest.mark.parametrize(
        ("sent", "account"),
        [("", control.account()), (',"account":"olga"', "olga"), (f',"account":"{"x" * 1000}"', "x" * 100)],
        ids=["of an older client", "told", "long"],
    )
    async def test_the_account_of_who_asks_comes_with_it(self, tmp_path: Path, sent: str, account: str) -> None:
        answer = await raw(tmp_path / "control.sock", f'{{"command":"whoami"{sent}}}\n'.encode())
        assert json.loads(answer) == {"result": {"account": account}}

    async def test_progress_comes_before_the_result(self, tmp_path: Path) -> None:
        seen: list[Any] = []
        result = await ask(tmp_path / "control.sock", "count", {"to": 3}, seen.append)
        assert seen == [{"step": 0}, {"step": 1}, {"step": 2}]
        assert result == {"steps": 3}

    async def test_progress_that_nobody_wants_is_passed_over(self, tmp_path: Path) -> None:
        assert await ask(tmp_path / "control.sock", "count", {"to": 3}) == {"steps": 3}

    async def test_a_refusal_names_the_field(self, tmp_path: Path) -> None:
        with pytest.raises(ControlError, match="no such message") as caught:
            await ask(tmp_path / "control.sock", "refuse", {})
        assert caught.value.field == "message"

    @pytest.mark.parametrize("command", ["crash", "unserialisable", "unfinished"])
    async def test_a_broken_command_tells_no_detail_and_the_next_one_works(self, tmp_path: Path, command: str) -> None:
        with pytest.raises(ControlError) as caught:
            await ask(tmp_path / "control.sock", command, {})
        assert str(caught.value) == f"{command} failed, the daemon's log says why"
        assert await ask(tmp_path / "control.sock", "echo", {}) == {"arguments": {}}

    async def test_an_unknown_command_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ControlError, match="unknown command 'nonsense'") as caught:
            await ask(tmp_path / "control.sock", "nonsense", {})
        assert caught.value.field == "command"

    @pytest.mark.parametrize(
        ("sent", "error"),
        [
            (b"\n", "not a line of JSON"),
            (b"\xff\xfe\n", "not a line of JSON"),
            (b"[" * 100_000 + b"\n", "not a line of JSON"),
            (b"[1]\n", "not a JSON object"),
            (b"{}\n", "unknown command None"),
            (b'{"command":["echo"]}\n', "unknown command ['echo']"),
            (b'{"command":"echo","arguments":[1]}\n', "arguments must be an object"),
            (b"x" * (control.MAX_REQUEST + 10) + b"\n", f"the request is longer than {control.MAX_REQUEST} octets"),
        ],
    )
    async def test_a_nonsense_request_gets_one_clear_answer(self, tmp_path: Path, sent: bytes, error: str) -> None:
        answer = json.loads(await raw(tmp_path / "control.sock", sent))
        assert answer["error"] == error

    async def test_an_overlong_request_is_not_even_sent(self, tmp_path: Path) -> None:
        with pytest.raises(ControlError, match="the request is longer than"):
            await ask(tmp_path / "control.sock", "echo", {"x": "x" * control.MAX_REQUEST})

    async def test_an_overlong_answer_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control, "MAX_ANSWER", 100)
        with pytest.raises(ControlError, match="answer is longer than 100 octets"):
            await ask(tmp_path / "control.sock", "echo", {"x": "x" * 200})

    async def test_commands_run_side_by_side(self, tmp_path: Path) -> None:
        results = await asyncio.gather(*(ask(tmp_path / "control.sock", "echo", {"n": n}) for n in range(8)))
        assert [result["arguments"]["n"] for result in results] == list(range(8))

    async def test_more_clients_than_allowed_are_told_so(
        self, tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control, "MAX_CLIENTS", 1)
        _, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
        writer.write(b'{"command":"forever"}\n')
        await commands.started.wait()
        with pytest.raises(ControlError, match="too many commands at once"):
            await ask(tmp_path / "control.sock", "echo", {})
        writer.close()
        await writer.wait_closed()

    async def test_without_a_descriptor_a_command_waits_for_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(accepting, "PAUSE", 0.01)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX) as sock, capture_logs() as entries:
            sock.setblocking(False)
            with Path(os.devnull).open() as file:
                lowest = file.fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                sock.connect(str(tmp_path / "control.sock"))
                sock.sendall(b'{"command":"echo"}\n')
                async with asyncio.timeout(5):
                    while not entries:
                        await asyncio.sleep(0)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            async with asyncio.timeout(5):
                answer = await asyncio.get_running_loop().sock_recv(sock, 1000)
        assert answer == b'{"result":{"arguments":{}}}\n'
        assert entries[0]["event"] == "out of system resource, connections wait"

    @pytest.mark.parametrize("command", ["forever", "stream"])
    async def test_a_client_that_goes_away_cancels_its_command(
        self, tmp_path: Path, commands: Commands, command: str
    ) -> None:
        _, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
        writer.write(f'{{"command":"{command}"}}\n'.encode())
        await commands.started.wait()
        writer.close()
        await writer.wait_closed()
        await asyncio.wait_for(commands.ended.wait(), 5)

    async def test_a_client_killed_by_ctrl_c_cancels_its_command(self, tmp_path: Path, commands: Commands) -> None:
        program = "import sys,pathlib; from relay.control import call; call(pathlib.Path(sys.argv[1]), 'forever', {})"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(tmp_path / "control.sock"), stderr=asyncio.subprocess.DEVNULL
        )
        await commands.started.wait()
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(commands.ended.wait(), 5)
        await process.wait()

    async def test_a_request_cut_off_in_the_middle_is_forgotten(self, tmp_path: Path) -> None:
        _, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
        writer.write(b'{"command":"ec')
        writer.close()
        await writer.wait_closed()
        assert await ask(tmp_path / "control.sock", "echo", {}) == {"arguments": {}}

    async def test_a_client_that_sends_nothing_is_cut_off(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control, "REQUEST_TIMEOUT", 0.05)
        assert json.loads(await raw(tmp_path / "control.sock", b""))["error"] == "no request came"

    async def test_a_daemon_that_says_nothing_is_given_up(self, tmp_path: Path) -> None:
        with pytest.raises(ControlError, match=r"has said nothing for 0\.05 seconds"):
            await asyncio.to_thread(call, tmp_path / "control.sock", "forever", {}, None, 0.05)

    async def test_only_the_owner_may_connect(self, tmp_path: Path) -> None:
        assert (tmp_path / "control.sock").stat().st_mode & 0o777 == 0o600

    async def test_a_second_server_on_the_same_path_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(AlreadyRunning, match=r"a daemon answers at .*control\.sock"):
            await serve(tmp_path / "control.sock", {})
        assert await ask(tmp_path / "control.sock", "echo", {}) == {"arguments": {}}


async def test_closing_cancels_running_commands_and_removes_the_socket(
    tmp_path: Path, server: ControlServer, commands: Commands
) -> None:
    asked = asyncio.create_task(ask(tmp_path / "control.sock", "forever", {}))
    await commands.started.wait()
    await server.close()
    assert commands.ended.is_set()
    with pytest.raises(ControlError, match="the daemon stopped before the command was done"):
        await asked
    assert not (tmp_path / "control.sock").exists()
    with pytest.raises(NotRunning, match="no daemon is running at"):
        await ask(tmp_path / "control.sock", "echo", {})


async def test_closing_a_server_that_never_started_does_nothing(tmp_path: Path) -> None:
    await ControlServer(tmp_path / "control.sock", {}).close()


def test_without_a_daemon_the_call_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="no daemon is running at"):
        call(tmp_path / "control.sock", "echo", {})
    with pytest.raises(NotRunning, match="no daemon is running at"):
        call(tmp_path / "missing" / "control.sock", "echo", {})


def stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))


async def test_a_socket_file_that_nobody_answers_is_replaced(tmp_path: Path, commands: Commands) -> None:
    stale_socket(tmp_path / "control.sock")
    with pytest.raises(NotRunning):
        await ask(tmp_path / "control.sock", "echo", {})
    server = await serve(tmp_path / "control.sock", {"echo": commands.echo})
    assert await ask(tmp_path / "control.sock", "echo", {}) == {"arguments": {}}
    await server.close()


async def test_something_that_is_not_a_socket_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "control.sock").write_text("precious")
    with pytest.raises(ControlError, match="is in the way and is not a socket"):
        await serve(tmp_path / "control.sock", {})
    assert (tmp_path / "control.sock").read_text() == "precious"
    with pytest.raises(NotRunning):
        call(tmp_path / "control.sock", "echo", {})


async def test_a_directory_that_is_missing_or_no_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="No such file or directory"):
        await serve(tmp_path / "missing" / "control.sock", {})
    (tmp_path / "file").touch()
    with pytest.raises(ControlError, match="Not a directory"):
        await serve(tmp_path / "file" / "control.sock", {})


def deep(directory: Path) -> Path:
    long = directory / ("d" * 100) / ("e" * 100)
    long.mkdir(parents=True)
    return long / "control.sock"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/fd")
async def test_a_path_too_long_for_a_socket_address_works_all_the_same(tmp_path: Path, commands: Commands) -> None:
    path = deep(tmp_path)
    stale_socket(tmp_path / "stale")
    (tmp_path / "stale").rename(path)
    server = await serve(path, {"echo": commands.echo})
    assert path.stat().st_mode & 0o777 == 0o600
    assert await ask(path, "echo", {}) == {"arguments": {}}
    with pytest.raises(AlreadyRunning):
        await serve(path, {})
    await server.close()
    assert not path.exists()


async def test_a_path_too_long_where_there_is_no_proc_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = deep(tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ControlError, match="octets: choose a shorter data_dir") as caught:
        await serve(path, {})
    assert caught.value.field == "data_dir"
    with pytest.raises(ControlError, match="choose a shorter data_dir"):
        call(path, "echo", {})


def answering(path: Path, answer: bytes) -> subprocess.Popen[bytes]:
    """A process that listens on ``path``, reads one line, answers and goes away."""
    program = (
        "import socket,sys\n"
        "s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print('up', flush=True)\n"
        "c,_=s.accept(); c.makefile('rb').readline(); c.sendall(bytes.fromhex(sys.argv[2]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path), answer.hex()], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "the daemon stopped before the command was done"),
        (b'{"progress":1}\n', "the daemon stopped before the command was done"),
        (b"garbage\n", "not a line of JSON"),
        (b"[]\n", "not a JSON object"),
    ],
)
def test_a_daemon_that_answers_nonsense_or_dies_is_a_clear_error(tmp_path: Path, answer: bytes, message: str) -> None:
    with answering(tmp_path / "control.sock", answer) as process:
        with pytest.raises(ControlError, match=message):
            call(tmp_path / "control.sock", "echo", {})
        process.wait()


def test_the_lock_is_exclusive_and_names_the_process_that_holds_it(tmp_path: Path) -> None:
    program = (
        "import sys,pathlib; from relay.control import DirectoryLock\n"
        "with DirectoryLock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "data")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning) as caught:
            DirectoryLock(tmp_path / "data").acquire()
        assert str(caught.value) == f"{tmp_path / 'data'} is in use by another relay (process {process.pid})"
        process.kill()
        process.wait()
    with DirectoryLock(tmp_path / "data"):
        assert (tmp_path / "data" / "lock").read_text() == f"{os.getpid()}\n"


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    with pytest.raises(AlreadyRunning):
        DirectoryLock(tmp_path).acquire()
    lock.release()
    lock.release()
    with DirectoryLock(tmp_path):
        pass


def test_it_holds_although_its_file_is_removed(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path):
        (tmp_path / "lock").unlink()
        with pytest.raises(AlreadyRunning, match="is in use by another relay"):
            DirectoryLock(tmp_path).acquire()
    with DirectoryLock(tmp_path):
        pass


def test_a_file_system_that_locks_no_directory_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_directories(descriptor: int, how: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        lock(descriptor, how)

    lock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", no_directories)
    with capture_logs() as entries, DirectoryLock(tmp_path), pytest.raises(AlreadyRunning):
        DirectoryLock(tmp_path).acquire()
    assert [entry["event"] for entry in entries] == ["data_dir locked by its file alone"]


def test_the_data_directory_is_created_for_the_owner_only(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "new" / "data"):
        assert (tmp_path / "new" / "data").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "new" / "data" / "lock").stat().st_mode & 0o777 == 0o600


def test_a_data_directory_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ControlError, match="file: File exists") as caught:
        DirectoryLock(tmp_path / "file").acquire()
    assert caught.value.field == "data_dir"


def test_a_lock_without_a_process_number_yet_is_still_a_lock(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(AlreadyRunning, match=r"\(process unknown\)"):
            DirectoryLock(tmp_path).acquire()
