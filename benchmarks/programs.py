"""The load programs in C: compiled into the run's directory, run to their end (clients) or spoken to (sinks)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SOURCES = Path(__file__).parent
PROGRAMS = ("smtpload", "smtpsink", "bindload", "hooksink")
#: Seconds that a client gets beyond its own --timeout, and a sink for one answer or for its end.
PATIENCE = 10.0

Figures = dict[str, Any]


class LoadFailed(RuntimeError):
    """A load program could not do its work; the message has its output."""


def compile_all(directory: Path) -> None:
    """Compile every program into ``directory``; raises LoadFailed, also for a warning."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise LoadFailed("a C compiler (gcc) is needed for the load programs")
    for name in PROGRAMS:
        source = str(SOURCES / f"{name}.c")
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
        done = subprocess.run([compiler, *flags, "-o", str(directory / name), source], capture_output=True, text=True)
        if done.returncode:
            raise LoadFailed(done.stderr)


def run_client(program: Path, timeout: float, **options: str | int | float | bool) -> Figures:
    """Run a load client for at most ``timeout`` seconds; its figures, also when not all of its work was done."""
    arguments = [str(program), "--timeout", str(timeout)]
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            arguments.append(option)
        elif value is not False:
            arguments += [option, str(value)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout + PATIENCE)
    try:
        figures: Figures = json.loads(done.stdout)
    except ValueError:
        raise LoadFailed(f"{' '.join(arguments)}: {done.stdout}{done.stderr}") from None
    return figures


class Peer:
    """A process that answers orders, a line each. It ends when its standard input does, so it never outlives us.

    ``hello``: the first line it prints, without being asked.
    """

    def __init__(self, command: Sequence[str | Path], directory: Path | None = None) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=directory
        )
        self.hello = self._line()

    @property
    def pid(self) -> int:
        return self._process.pid

    def order(self, order: str) -> str:
        """Give an order; the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._line()

    def figures(self) -> Figures:
        found: Figures = json.loads(self.order("stat"))
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LoadFailed(f"{self._process.args!r} ended with {self._process.wait(PATIENCE)}")
        return line.strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sink(Peer):
    """A sink on a free port."""

    def __init__(self, program: Path) -> None:
        super().__init__([program])
        self.port = int(self.hello)
