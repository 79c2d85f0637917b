"""The service manager's side of the daemon: sd_notify(3) messages and the sockets of sd_listen_fds(3).

Without systemd the environment variables are unset and everything here does nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


def notify(*fields: str) -> bool:
    """Send "KEY=value" fields as one datagram to NOTIFY_SOCKET; False when there is none or it does not take them.

    A service manager that is dead, or lives and does not read, must not take the mail down with it: no error is raised,
    and a full socket is not waited for. What it does not take is left out: the next ping of the watchdog comes soon,
    and a manager that misses readiness or the end of a reload acts by its own time limits.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as sock:
            sock.setblocking(False)
            sock.connect("\0" + path[1:] if path.startswith("@") else path)
            sock.sendall("\n".join(fields).encode())
    except OSError:
        return False
    return True


def ready(text: str) -> bool:
    """The daemon serves; also said again when a reload is done."""
    return notify("READY=1", status_field(text))


def reloading() -> bool:
    """A reload begins. ``ready`` must follow. MONOTONIC_USEC lets the manager tell it from an earlier one."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping(text: str) -> bool:
    return notify("STOPPING=1", status_field(text))


def status_field(text: str) -> str:
    """The line of ``systemctl status``; a line break in it would begin a field of its own."""
    return "STATUS=" + " ".join(text.split())


def watchdog_interval() -> float | None:
    """Seconds between two pings, half of what the manager waits; None when it does not watch this process."""
    limit = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "") or str(os.getpid())
    if not limit.isascii() or not limit.isdigit() or int(limit) == 0 or pid != str(os.getpid()):
        return None
    return int(limit) / 2_000_000


async def watchdog(healthy: Callable[[], bool]) -> None:
    """Ping the manager as long as the event loop turns and ``healthy()`` is true; returns at once when not watched.

    Runs until cancelled. A ping left out is how the manager learns that this process should be restarted.
    """
    interval = watchdog_interval()
    while interval is not None:
        if healthy():
            notify("WATCHDOG=1")
        await asyncio.sleep(interval)


def is_journal(descriptor: int) -> bool:
    """Whether what is written there goes to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        found = os.fstat(descriptor)
    except OSError:  # it is closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def take_sockets() -> dict[str, list[socket.socket]]:
    """The listening sockets handed over by the manager, by FileDescriptorName ("smtp", "http"; "unknown" without one).

    They are the caller's to close. The variables are removed, so children do not take them for their own.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    sockets: dict[str, list[socket.socket]] = {}
    if pid != str(os.getpid()) or not count.isascii() or not count.isdigit():
        return sockets
    for index in range(int(count)):
        sock = socket.socket(fileno=_FIRST_DESCRIPTOR + index)
        sock.setblocking(False)
        os.set_inheritable(sock.fileno(), False)
        name = names[index] if index < len(names) and names[index] else "unknown"
        sockets.setdefault(name, []).append(sock)
    return sockets
