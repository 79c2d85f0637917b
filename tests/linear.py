"""A bound for what has to be done in linear time, far above what that takes on any machine."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

#: Seconds of this process's own time, which other work on the machine does not use up; linear work takes less than one.
MOST = 20.0
#: Seconds after which the alarm goes off again, where somebody has swallowed it (hypothesis listens to collections).
AGAIN = 1.0


@contextlib.contextmanager
def linear() -> Iterator[None]:
    """Fail once what is done within has taken MOST. In the main thread only, where xdist's workers run tests too.

    The handler runs between bytecodes, and within an expression of ``re``, which looks for signals on its way. Another
    single call of C is not interrupted (RE2, bytes.find): the failure comes after it. Not round a layout of HTML, which
    has the same timer (relay/extract_worker.py).
    """
    before = signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _too_long(number: int, frame: object) -> None:
    raise AssertionError(f"it takes more than {MOST:.0f} s: the work is not linear in what is read")
