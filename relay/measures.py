"""What the mail side of the daemon counts, for /metrics (webapi/metrics.py has the rest)."""

from __future__ import annotations

import functools
import os
import platform
import resource
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from relay.core.metrics import Family, counter, each, gauge, histogram
from relay.core.model import OutcomeKind
from relay.forward import Forwarder
from relay.intake import Intake
from relay.loopwatch import LoopWatch
from relay.smtp_in import SmtpServer
from relay.smtp_service import Tally
from webapi.poster_process import Posting

#: What the system says of this process; there is none but on Linux.
_PROC = Path("/proc/self")
#: How an attempt to post may end; shown from the start, so that the first failure is an increase.
_POST_STATES = ("delivered", "waiting", "failed", "withheld")
#: Replies that put mail off for trouble of our own, by command and code; shown from the start for the same reason.
_OWN_TROUBLE = [
    *((command, "451") for command in ("MAIL", "RCPT", "DATA", "BDAT")),
    *((command, "452") for command in ("MAIL", "DATA", "BDAT")),
]


@dataclass(frozen=True, slots=True)
class Measures:
    """Reads the parts of a running daemon. ``floor``: octets of free space below which mail is put off."""

    intake: Intake
    smtp: SmtpServer
    forwarder: Forwarder
    poster: Posting
    loop: LoopWatch
    floor: int

    def families(self) -> list[Family]:
        return [*self._smtp(), *self._forwarding(), *self._posting(), *self._machine(), *process()]

    def _smtp(self) -> Iterator[Family]:
        tally = self.smtp.tally
        yield gauge("relay_smtp_connections", "SMTP sessions that are open.", self.smtp.connections)
        yield gauge("relay_smtp_connections_max", "How many there may be.", self.smtp.most_connections)
        ends = {(end,): count for end, count in tally.ends.items()}
        yield each("counter", "relay_smtp_sessions_total", "SMTP sessions that have ended, by how.", "end", ends)
        about = "Messages by the class of the reply to their final dot."
        replies = {(reply,): tally.messages[reply] for reply in ("2xx", "4xx", "5xx")}
        yield each("counter", "relay_smtp_messages_total", about, "reply", replies)
        yield refusals(tally)
        yield histogram("relay_accept_seconds", "From the final dot of a message to its reply.", tally.accepting)

    def _forwarding(self) -> Iterator[Family]:
        outcomes = {(kind.value,): self.forwarder.outcomes[kind.value] for kind in OutcomeKind}
        yield each("counter", "relay_forward_attempts_total", "Attempts to forward, by outcome.", "outcome", outcomes)
        yield histogram("relay_forward_attempt_seconds", "Time of an attempt.", self.forwarder.durations)
        yield histogram("relay_forward_delay_seconds", "From receipt to delivery.", self.forwarder.delays)

    def _posting(self) -> Iterator[Family]:
        tally, about = self.poster.tally, "Attempts to post, by what became of the post."
        states = {(state,): tally.outcomes[state] for state in _POST_STATES}
        yield each("counter", "relay_webhook_attempts_total", about, "state", states)
        yield histogram("relay_webhook_attempt_seconds", "Time of an attempt.", tally.durations)
        yield histogram("relay_webhook_delay_seconds", "From an event to its delivery.", tally.delays)

    def _machine(self) -> Iterator[Family]:
        space = self.intake.space
        yield histogram(
            "relay_event_loop_lag_seconds", "How late the event loop was, twenty times a second.", self.loop.lag
        )
        yield gauge(
            "relay_event_loop_lag_max_seconds", "The largest of the last one to two minutes.", self.loop.largest
        )
        yield histogram(
            "relay_event_loop_busy_seconds", "CPU time of its thread between two such looks.", self.loop.busy
        )
        yield gauge("relay_disk_free_bytes", "Free space on the disk of data_dir.", space.free())
        yield gauge("relay_disk_size_bytes", "Size of that disk.", space.size())
        yield gauge("relay_disk_floor_bytes", "Below it mail is put off, below twice that page views.", self.floor)
        labels = {(_version(), platform.python_version(), sqlite3.sqlite_version): 1}
        yield each("gauge", "relay_build_info", "Always 1.", "version python sqlite", labels)


def refusals(tally: Tally) -> Family:
    values = {**dict.fromkeys(_OWN_TROUBLE, 0), **tally.refusals}
    return each("counter", "relay_smtp_refusals_total", "Replies of 4xx and 5xx.", "command code", values)


def process() -> Iterable[Family]:
    """The figures of this process, without its workers, by the names that Prometheus' client libraries give them."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield counter("process_cpu_seconds_total", "CPU time of the process.", used.ru_utime + used.ru_stime)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield gauge("process_max_fds", "File descriptors that it may have.", _limit(soft))
    if not _PROC.exists():
        return
    pages = int((_PROC / "statm").read_text().split()[1])
    yield gauge("process_resident_memory_bytes", "Resident memory.", pages * os.sysconf("SC_PAGE_SIZE"))
    yield gauge("process_open_fds", "Open file descriptors.", sum(1 for _ in (_PROC / "fd").iterdir()))
    ticks = int((_PROC / "stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks
    yield gauge("process_start_time_seconds", "When it began, in seconds since the epoch.", round(started, 2))


def _limit(number: int) -> float:
    return float("inf") if number == resource.RLIM_INFINITY else number


@functools.cache
def _version() -> str:
    try:
        return version("visit-relay")
    except PackageNotFoundError:
        return "source"
