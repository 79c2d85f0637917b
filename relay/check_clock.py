"""Whether the time is believable: after what was written last, and kept right by something."""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

from relay.check_findings import FAIL, OK, WARN, Finding, Subject
from relay.store.store import DATABASE

#: Seconds by which the clock may be behind the newest file before it is called wrong.
SLACK = 120.0
#: adjtimex(2): the clock is not synchronised.
_TIME_ERROR = 5
#: Octets that struct timex takes at most.
_TIMEX = 512


async def clock(subject: Subject) -> list[Finding]:
    """The clock cannot be before what was written already. To the second it is right where something keeps it so."""
    base = subject.config.data_dir
    files = (base / DATABASE, base / "lock", Path(__file__))
    newest = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    newest = max(newest, subject.newest_message)
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(subject.now))
    if subject.now < newest - SLACK:
        behind = newest - subject.now
        text = f"{now} is {behind:,.0f} s before what was written last: leases and retries go by this clock"
        return [Finding(FAIL, "clock", text, "set the clock, and keep it with an NTP client")]
    kept = synchronised()
    if kept is False:
        text = f"{now}; nothing is known to keep it right, and a receiver refuses posts that are minutes off"
        return [
            Finding(WARN, "clock", text, "run an NTP client on this machine or its host (chrony, systemd-timesyncd)")
        ]
    return [Finding(OK, "clock", f"{now}, not before what was written last{_kept(kept)}")]


def _kept(by_ntp: bool | None) -> str:
    if by_ntp:
        return ", kept by NTP"
    if not sys.platform.startswith("linux"):
        return ""
    # The unit of the service does not let the daemon ask (ProtectClock).
    return "; whether NTP keeps it this program may not see: run relay check as its user"


def synchronised() -> bool | None:
    """Whether the kernel is told the right time by something; None where it does not say (other than Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        ask = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return None
    state: int = ask(ctypes.create_string_buffer(_TIMEX))  # with nothing to be changed in it
    return None if state < 0 else state != _TIME_ERROR
