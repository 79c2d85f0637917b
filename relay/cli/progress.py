"""Long commands: what they say while they run, and how they end when somebody stops them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click


def say(line: str) -> None:
    """One step is done. Progress goes to stderr: stdout is for results."""
    click.echo(line, err=True)


@contextmanager
def interruptible(what_stays: str) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into exit code 1 with ``what_stays``, after the finally blocks inside have run."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        raise click.ClickException(f"interrupted: {what_stays}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
