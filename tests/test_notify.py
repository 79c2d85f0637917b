"""sd_notify(3) and sd_listen_fds(3), against a real datagram socket and real handed-over descriptors."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay import notify
from relay.cli.root import cli
from tests.daemon import Daemon


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_without_a_service_manager_nothing_is_sent() -> None:
    assert notify.notify("READY=1") is False
    assert notify.ready("serving") is False
    assert notify.take_sockets() == {}
    assert notify.watchdog_interval() is None


async def test_without_a_watchdog_the_task_ends_at_once() -> None:
    await notify.watchdog(lambda: True)


def test_readiness_comes_with_a_status_in_one_datagram(manager: socket.socket) -> None:
    assert notify.ready("serving 2 sites") is True
    assert manager.recv(4096) == b"READY=1\nSTATUS=serving 2 sites"


def test_stopping_is_sent_with_a_status(manager: socket.socket) -> None:
    notify.stopping("draining")
    assert manager.recv(4096) == b"STOPPING=1\nSTATUS=draining"


def test_a_line_break_in_a_status_cannot_start_another_field(manager: socket.socket) -> None:
    notify.ready("a\nMAINPID=1")
    assert manager.recv(4096) == b"READY=1\nSTATUS=a MAINPID=1"


def test_reloading_carries_the_monotonic_time(manager: socket.socket) -> None:
    notify.reloading()
    first, second = manager.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    assert second.startswith(b"MONOTONIC_USEC=")
    assert second.removeprefix(b"MONOTONIC_USEC=").isdigit()


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("abstract sockets exist on Linux only")
    name = f"relay-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify.notify("READY=1") is True
        assert sock.recv(4096) == b"READY=1"


@pytest.mark.parametrize("path", ["/nonexistent/notify", "relative", "@nobody-listens-here"])
def test_a_manager_that_is_gone_is_no_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert notify.notify("WATCHDOG=1") is False


def test_a_manager_that_lives_and_does_not_read_holds_nothing_up(manager: socket.socket) -> None:
    def fill() -> int:
        taken = 0
        while notify.notify("WATCHDOG=1"):
            taken += 1
        return taken

    with ThreadPoolExecutor(1) as beside:
        filling = beside.submit(fill)
        try:
            taken = filling.result(30)
        except TimeoutError:
            manager.close()  # the thread would wait for it for ever
            raise
    assert taken > 0
    assert notify.ready("serving") is False
    assert manager.recv(4096) == b"WATCHDOG=1"
    assert notify.ready("serving") is True


def test_the_watchdog_interval_is_half_of_what_the_manager_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert notify.watchdog_interval() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.watchdog_interval() == 15.0


@pytest.mark.parametrize("value", ["", "0", "-1", "soon", "²"])
def test_a_nonsense_watchdog_limit_is_no_watchdog(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", value)
    assert notify.watchdog_interval() is None


def test_the_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert notify.watchdog_interval() is None


async def test_the_watchdog_pings_while_healthy_and_not_otherwise(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    answers = [True, False, True]
    asked = asyncio.Event()

    def healthy() -> bool:
        if not answers:
            asked.set()
            return False
        return answers.pop(0)

    task = asyncio.create_task(notify.watchdog(healthy))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    manager.setblocking(False)
    assert [manager.recv(4096), manager.recv(4096)] == [b"WATCHDOG=1", b"WATCHDOG=1"]
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


# What the daemon does, in a process of its own: the descriptors must be 3, 4, 5 as a service manager hands them over.
CHILD = """
import os, sys
from relay.notify import take_sockets
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
sockets = take_sockets()
for name in sorted(sockets):
    for sock in sockets[name]:
        print(name, sock.getsockname()[1], sock.getblocking(), sock.get_inheritable())
        sock.close()
print(sorted(key for key in os.environ if key.startswith("LISTEN_")))
"""


def hand_over(count: int, environment: dict[str, str], pid_offset: int = 0) -> tuple[list[int], list[str]]:
    """Run CHILD with ``count`` listening sockets from descriptor 3 on; their ports and what it printed."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    # A shell moves them into place; first out of the way, so that no move overwrites one still to be moved.
    high = [os.dup2(listener.fileno(), 100 + index, inheritable=True) for index, listener in enumerate(listeners)]
    redirections = " ".join(f"{3 + index}<&{descriptor}" for index, descriptor in enumerate(high))
    try:
        done = subprocess.run(
            ["bash", "-c", f'exec "$@" {redirections}', "bash", sys.executable, "-c", CHILD, str(pid_offset)],
            env={**os.environ, **environment},
            pass_fds=high,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    finally:
        for descriptor in high:
            os.close(descriptor)
        for listener in listeners:
            listener.close()
    return ports, done.stdout.splitlines()


def test_handed_over_sockets_are_found_by_name_and_not_inherited_further() -> None:
    ports, lines = hand_over(3, {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "smtp:http:smtp"})
    assert lines == [
        f"http {ports[1]} False False",
        f"smtp {ports[0]} False False",
        f"smtp {ports[2]} False False",
        "[]",
    ]


def test_sockets_without_names_are_unknown() -> None:
    ports, lines = hand_over(1, {"LISTEN_FDS": "1"})
    assert lines == [f"unknown {ports[0]} False False", "[]"]


def test_sockets_meant_for_another_process_are_left_alone() -> None:
    _, lines = hand_over(1, {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "smtp"}, pid_offset=1)
    assert lines == ["[]"]


def test_a_nonsense_count_is_no_socket() -> None:
    _, lines = hand_over(1, {"LISTEN_FDS": "many", "LISTEN_FDNAMES": "smtp"})
    assert lines == ["[]"]


#: Prints the port of a new listening socket and becomes the given command, to which that is handed over.
ACTIVATES = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
own = str(os.getpid())
os.environ.update(LISTEN_PID=own, LISTEN_FDS="1", LISTEN_FDNAMES="smtp", WATCHDOG_PID=own)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_the_daemon_takes_its_socket_from_the_manager_tells_it_of_its_life_and_prints_no_link_into_its_journal(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    journal = tmp_path / "printed.txt"
    journal.touch()
    monkeypatch.setenv("JOURNAL_STREAM", f"{journal.stat().st_dev}:{journal.stat().st_ino}")
    with Daemon(tmp_path, {"smtp": {"listen": "systemd"}}, by=(sys.executable, "-c", ACTIVATES)) as daemon:
        first, line = daemon.printed
        port = int(first)
        assert line.startswith("Nobody can log in yet. `relay user create NAME --role admin` prints ")
        words = ["user", "create", "anna", "--role", "admin", "--config", str(daemon.config)]
        assert "/ui/welcome/" in CliRunner().invoke(cli, words).stdout
        assert manager.recv(4096) == f"READY=1\nSTATUS=SMTP [{port}], HTTP [{daemon.http_port}]".encode()
        assert [manager.recv(4096), manager.recv(4096)] == [b"WATCHDOG=1", b"WATCHDOG=1"]
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            assert client.recv(4096).startswith(b"220 ")
        with ThreadPoolExecutor(1) as beside:
            ended = beside.submit(daemon.stop)
            while (said := manager.recv(4096)) == b"WATCHDOG=1":
                pass
            assert said.startswith(b"STOPPING=1\n")
            assert ended.result() == 0
        assert [entry for entry in daemon.log if "/ui/welcome/" in str(entry)] == []


class TestJournal:
    def test_it_is_what_systemd_has_connected_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with (tmp_path / "journal").open("wb") as journal, (tmp_path / "other").open("wb") as other:
            assert not notify.is_journal(journal.fileno())
            found = os.fstat(journal.fileno())
            monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
            assert notify.is_journal(journal.fileno())
            assert not notify.is_journal(other.fileno())
        assert not notify.is_journal(999_999)
