"""Which calls are struck and with what, the cases that a clean run gives, and the letters of a sweep over them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.injection import made
from tests.ledger import SOAK, Ledger
from tests.scenarios.world import World

KILL = "SIGKILL"
#: What is traced, in strace's words.
CALLS = "%file,%desc,%network"
_WRITES, _READS = ("EIO", "ENOSPC", "EINTR"), ("EIO", "EINTR")
#: The calls that are looked for, and what each may fail with. At all of them the process is killed.
FAULTS: dict[str, tuple[str, ...]] = {
    "openat": ("EIO", "ENOSPC", "EMFILE", "EINTR"),
    "read": _READS,
    "pread64": _READS,
    "write": _WRITES,
    "pwrite64": _WRITES,
    "fsync": _WRITES,
    "fdatasync": _WRITES,
    "ftruncate": _WRITES,
    "fallocate": _WRITES,
    "writev": _WRITES,
    "fcntl": (),  # it locks and unlocks a local file: no error but "locked" comes of that
    "lseek": ("EIO",),
    "newfstatat": ("EIO",),
    "statfs": _READS,
    "unlink": ("EIO",),
    "rename": ("EIO", "ENOSPC"),
    "close": _READS,
    "socket": ("EMFILE",),
    "accept4": ("EMFILE", "EINTR"),
    "connect": ("EINTR",),
    "sendto": ("EINTR", "ECONNRESET"),
    "recvfrom": ("EINTR", "ECONNRESET"),
    "sendmsg": ("EINTR",),
    "recvmsg": ("EINTR",),
    "ioctl": (),  # it makes a socket non-blocking
    "epoll_ctl": ("ENOSPC",),
    "epoll_wait": ("EINTR",),
    "epoll_pwait": ("EINTR",),
    "io_uring_enter": ("EINTR",),  # libuv hands over several epoll_ctl(2) at once by it; at EAGAIN it aborts
    "getsockname": (),
    "getpeername": (),
    "getsockopt": (),
    "setsockopt": (),
    "shutdown": (),
    # Not on every way: the write-ahead log's index grows, a library is loaded at its first use.
    "mmap": (),
    "fstat": (),
    "statx": (),
    "access": (),
    "readlink": (),
    "getdents64": (),
    "poll": ("EINTR",),
    # At the start of a process.
    "epoll_create1": ("EMFILE",),
    "eventfd2": ("EMFILE",),
    "pipe2": ("EMFILE",),
    "socketpair": ("EMFILE",),
    "io_uring_setup": ("EMFILE",),
    "getcwd": ("EIO",),
}
#: What they fail with besides on a connection, and on a socket for datagrams.
ON_SOCKETS: dict[str, dict[str, tuple[str, ...]]] = {
    "TCP": {
        "connect": ("ENETUNREACH",),
        "read": ("ECONNRESET",),
        "write": ("ECONNRESET", "EPIPE"),
        "writev": ("ECONNRESET", "EPIPE"),
        "sendmsg": ("ECONNRESET", "EPIPE"),
        "recvmsg": ("ECONNRESET",),
    },
    "UDP": {"sendmsg": ("ENETUNREACH", "EPERM"), "recvmsg": ("ENOMEM",)},  # EPERM: a packet filter's
}
#: Threads of which there are several with one name.
SHARED = ("readers", "pool")
#: Calls that a way has now and then.
RARE = ("statfs", "mmap", "fstat", "statx", "access", "readlink", "getdents64", "poll")
#: Seconds for one letter's whole way, and for what follows the post: the last commits.
A_WAY, THE_REST = 60.0, 0.3
#: Seconds that a letter's post is waited for when a fault may have put it off.
PUT_OFF = 1.0


@dataclass(frozen=True)
class Case:
    thread: str
    call: str
    number: int
    fault: str
    large: bool
    made: int  # so often by its thread in the clean run

    @property
    def is_certain(self) -> bool:
        """Whether every letter's way has this call.

        How often a thread waits, reads, writes and locks depends on what comes at once, by a tenth to a third; what
        several threads share out is now one's and now another's.
        """
        return self.thread not in SHARED and self.call not in RARE and self.number <= self.made / 2

    @property
    def rule(self) -> str:
        what = "signal" if self.fault == KILL else "error"
        return f"{self.call}:{what}={self.fault}:when={self.number}"


def errors_at(call: str, kind: str) -> tuple[str, ...]:
    """What a call may fail with; ``kind``: its descriptor's, see injection.made."""
    return FAULTS[call] + ON_SOCKETS.get(kind.removesuffix("v6"), {}).get(call, ())


def is_on_socket(call: str, kind: str) -> bool:
    """Whether it makes a socket, or is made on one that may lead to another host."""
    return call == "socket" or kind.removesuffix("v6") in ON_SOCKETS


def cases(
    output: Path,
    role: Callable[[int], str | None],
    large: bool,
    faults: Callable[[str, str], tuple[str, ...]] = errors_at,
    wanted: Callable[[str, str], bool] = lambda call, kind: True,
) -> Iterator[Case]:
    """All of a clean run, by what was traced of it.

    ``role``: what a thread is called, None for one that is left out; of several with one name the busiest counts.
    ``wanted``: whether a call on a descriptor of such a kind is struck.
    """
    most: dict[tuple[str, str], list[str]] = {}
    for (thread, call), kinds in made(output).items():
        if (name := role(thread)) is not None:
            most[name, call] = max(most.get((name, call), []), kinds, key=len)
    counts = ", ".join(f"{name} {call} {len(kinds)}" for (name, call), kinds in sorted(most.items()))
    print(f"{'large' if large else 'small'}: {counts}")
    assert not (unknown := {call for _, call in most} - FAULTS.keys()), f"calls of which nobody has thought: {unknown}"
    for (name, call), kinds in most.items():
        for number, kind in enumerate(kinds, 1):
            for fault in (KILL, *faults(call, kind)) if wanted(call, kind) else ():
                yield Case(name, call, number, fault, large, len(kinds))


def chosen(found: list[Case], chance: random.Random, part: slice, kills: int, errors: int) -> list[Case]:
    """In the soak this ``part`` of them all, else so many. Errors first: what has failed often goes on being killed."""
    failing, killing = ([case for case in found if (case.fault == KILL) is wanted] for wanted in (False, True))
    if SOAK:
        return [*failing[part], *killing[part]]
    tried = chance.sample(one_of_each(failing, chance, lambda case: case.call), errors)  # however often it is made
    return [*tried, *chance.sample(killing, kills)]


def one_of_each(found: list[Case], chance: random.Random, kind: Callable[[Case], str]) -> list[Case]:
    """One case of each kind, by chance."""
    kinds: dict[str, list[Case]] = {}
    for case in found:
        kinds.setdefault(kind(case), []).append(case)
    return [chance.choice(kinds[name]) for name in sorted(kinds)]


@dataclass
class Sweep:
    """One data_dir: the letters sent to it, and the cases that were never reached."""

    relay: World
    ledger: Ledger
    large: set[int]
    missed: list[Case] = field(default_factory=list)

    async def send(self, *, large: bool = False) -> int:
        """Send a letter until it has its 250; its number."""
        number = self.ledger.begun
        if large:
            self.large.add(number)
        async with asyncio.timeout(A_WAY):
            await self.ledger.send(lambda: self.relay.daemon.smtp_port, 1, most=1)
        return number

    async def arrived(self, number: int) -> None:
        """Until the CRM has the post about a letter, whose way is almost over then."""

        async def found() -> bool:
            return any(post.json["subject"] == f"letter {number}" for post in self.relay.crm.posts)

        await self.relay.until(found, bool)
        await asyncio.sleep(THE_REST)

    def must_have_struck(self, tried: list[Case]) -> None:
        """Of what every letter's way has nothing was missed, and of the rest little."""
        assert not (untouched := [case for case in self.missed if case.is_certain]), untouched
        assert len(self.missed) <= 4 + len(tried) / 8, self.missed
