"""The real daemon as a process, for scenario tests: `python -m relay serve` on free loopback ports.

    with Daemon(tmp_path, {"site": [example_site()]}) as daemon:            # or: async with
        daemon.send("ann@customer.test", ["info1@track.test"], b"Subject: hello\\r\\n\\r\\nhello\\r\\n")
        daemon.wait_for("delivery", state="forwarded")                      # or: await daemon.logged(...)

It is ready when the block is entered. Leaving the block stops it with SIGTERM and demands exit code 0; ``kill`` is
SIGKILL, after which ``start`` starts it again on the same data_dir (on other ports). Nothing here sleeps: whoever waits
waits for an entry of the daemon's log, or for the end of the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import smtplib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relay.cli.root import cli
from tests.store_fixtures import fresh_database

ROOT = Path(__file__).resolve().parent.parent
#: Seconds for anything the daemon should do soon. Reached only when a test fails.
PATIENCE = 30.0
#: Seconds for a start: the first one compiles every module, which has taken half a minute where others want the cores.
START = 90.0

Settings = Mapping[str, Any]
Entry = dict[str, Any]

BASE: Settings = {
    "hostname": "mx.track.test",
    "operator": "operator@example.test",
    "data_dir": "data",
    "smtp": {"listen": ["127.0.0.1:0"], "min_free": 0},
    "http": {"listen": ["127.0.0.1:0"]},
    "log": {"level": "info", "format": "json"},
    "extract": {"workers": 1},
}


class DaemonFailed(AssertionError):
    """The daemon ended, or did not do in time what the test waits for. The message has the end of its log."""


def example_site(**changes: Any) -> dict[str, Any]:
    """A site "example" whose target sales@example.test has the pool info1, info2 and info3@track.test."""
    site = {
        "name": "example",
        "key": "pk_example",
        "origins": ["https://www.example.test"],
        "target": [
            {
                "address": "sales@example.test",
                "domain": "track.test",
                "pool": [f"info{number}@track.test" for number in (1, 2, 3)],
            }
        ],
    }
    return site | changes


class Daemon:
    """``settings`` go over BASE, table by table. ``directory`` holds relay.toml and, by BASE, data/.

    ``makes_database``: it finds no data_dir at its first start, as at a customer's; else an empty database is there,
    which saves 0.3 s of processor time. ``by``: a command that becomes what is given to it, to start it with.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings | None = None,
        *,
        makes_database: bool = False,
        by: Sequence[str] = (),
    ) -> None:
        self.config = directory / "relay.toml"
        self._printed = directory / "printed.txt"
        self.config.write_text(toml(merged(BASE, settings or {})))
        self.data_dir = directory / str((settings or {}).get("data_dir", "data"))
        self.log: list[Entry] = []
        self._makes_database = makes_database
        self._by = by
        self._ports = 0, 0
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._news = threading.Condition()
        self._ended = True

    # life

    def start(self, by: Sequence[str] = ()) -> Daemon:
        """Start the process and wait until it serves; ``by`` as above, for this start. Raises DaemonFailed."""
        first = len(self.log)
        self.spawn(by)
        try:
            ready = self.wait_for("ready", since=first, timeout=START)
        except BaseException:
            self.kill()
            raise
        self._ports = ready["smtp"][0], ready["http"][0]
        return self

    def spawn(self, by: Sequence[str] = ()) -> None:
        """Start the process and wait for nothing."""
        assert self._process is None, "it is running"
        if not (self.log or self._makes_database or self.data_dir.exists()):
            self.data_dir.mkdir(mode=0o700, parents=True)
            fresh_database(self.data_dir)
        self._ended = False
        with self._printed.open("wb") as printed:
            self._process = subprocess.Popen(
                [*by, *self._by, sys.executable, "-m", "relay", "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.PIPE,
                env=environment(),
                cwd=self.config.parent,
                text=True,
                errors="backslashreplace",
            )
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """End it, and the exit code once it has finished what was under way."""
        return self._end(by)

    def kill(self) -> None:
        """SIGKILL: what a power cut is to the process. May be called when it has ended already."""
        if self._process is not None:
            self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM without waiting for the end."""
        assert self._process is not None, "it is not running"
        self._process.terminate()

    @property
    def smtp_port(self) -> int:
        """0, where nobody listens, unless it runs: the kernel may give its port to the daemon of another test."""
        return self._ports[0] if self._process is not None and self._process.poll() is None else 0

    @property
    def http_port(self) -> int:
        """As smtp_port."""
        return self._ports[1] if self._process is not None and self._process.poll() is None else 0

    @property
    def pid(self) -> int:
        assert self._process is not None, "it is not running"
        return self._process.pid

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        if kind is not None:
            self.kill()
            return
        code = self.stop()
        assert code == 0, self._story(f"it ended with exit code {code}")

    async def __aenter__(self) -> Daemon:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    # what it says

    def wait_for(self, event: str, *, since: int = 0, timeout: float = PATIENCE, **fields: Any) -> Entry:
        """The first log entry from index ``since`` on with this event and these fields; raises DaemonFailed."""
        wanted = {"event": event, **fields}
        seen = since

        def found() -> bool:
            nonlocal seen
            while seen < len(self.log):
                if wanted.items() <= self.log[seen].items():
                    return True
                seen += 1
            return self._ended

        with self._news:
            in_time = self._news.wait_for(found, timeout)
        if seen < len(self.log):
            return self.log[seen]
        raise DaemonFailed(self._story(f"{wanted} did not come " + ("before its end" if in_time else "in time")))

    async def logged(self, event: str, *, since: int = 0, timeout: float = PATIENCE, **fields: Any) -> Entry:
        """``wait_for`` without blocking the event loop."""
        return await asyncio.to_thread(self.wait_for, event, since=since, timeout=timeout, **fields)

    @property
    def printed(self) -> list[str]:
        """The lines of its standard output since its last start: what is for a person's eyes and no log."""
        return self._printed.read_text("utf-8").splitlines()

    @property
    def errors(self) -> list[Entry]:
        """What was logged at level error or worse."""
        return [entry for entry in self.log if entry.get("level") in ("error", "critical", "exception")]

    # what one does with it

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def send(self, mail_from: str, recipients: Sequence[str], content: bytes) -> None:
        """One message, CR LF lines, in a session of its own. Raises smtplib.SMTPException when it is refused."""
        with smtplib.SMTP("127.0.0.1", self.smtp_port, local_hostname="client.test", timeout=PATIENCE) as client:
            client.sendmail(mail_from, list(recipients), content)

    def cli(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """`relay ARGUMENTS --config …` beside the daemon, or without one when it does not run."""
        return relay(*arguments, "--config", str(self.config), stdin=stdin)

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of the database as it is on disk now, read as another process would."""
        with closing(sqlite3.connect(f"{(self.data_dir / 'relay.db').as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(sql, parameters).fetchall()

    def _end(self, number: signal.Signals) -> int:
        process, reader = self._process, self._reader
        assert process is not None
        assert reader is not None
        self._ports = 0, 0
        process.send_signal(number)
        try:
            code = process.wait(2 * PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise DaemonFailed(self._story("it did not end")) from None
        finally:
            reader.join(PATIENCE)  # its extraction workers hold stderr a moment longer than it lives
            if process.stderr is not None:
                process.stderr.close()
            self._process = self._reader = None
        return code

    def _collect(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._news:
                self.log.append(entry_of(line))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _story(self, problem: str) -> str:
        return "\n".join([f"the daemon: {problem}. The end of its log:", *(str(entry) for entry in self.log[-30:])])


def relay(*arguments: str, stdin: str | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m relay ARGUMENTS`, to its end, with its output."""
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        input=stdin or "",
        capture_output=True,
        text=True,
        errors="backslashreplace",
        env=environment(),
        cwd=cwd,
        timeout=4 * PATIENCE,
        check=False,
    )


def refused_start(config: Path) -> Result:
    """`relay serve` in this process, whose log, limits and signals it leaves alone, for starts that are refused.

    One that is not would run for good: it fails instead where it would say that it is ready.
    """

    def started(text: str) -> None:
        raise AssertionError("it started")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("relay.notify.ready", started)
            patch.setattr("relay.logs.setup", lambda level, form: None)
            patch.setattr("relay.app._raise_file_limit", lambda: None)
            return CliRunner().invoke(cli, ["serve", "--config", str(config)])
    finally:
        for number, handler in before.items():  # a uvloop that is closed keeps those that it has
            signal.signal(number, handler)


def environment() -> dict[str, str]:
    """This process's, with the repository first among the places where Python looks for modules.

    Bytecode is kept, whatever the developer's environment says about that: compiling all of it is half of a start.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **found,
        "PYTHONPATH": os.pathsep.join(paths),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }


def entry_of(line: str) -> Entry:
    """A line of the log; what is no JSON object (a traceback, a plain message) becomes the event itself."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) else {"event": line.rstrip("\n"), "level": "plain"}


def merged(base: Settings, over: Settings) -> dict[str, Any]:
    """``over`` laid on ``base``: tables are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def toml(settings: Settings, path: str = "") -> str:
    """Settings as TOML: plain values first, then tables and lists of tables."""
    plain, tables = [], []
    for key, value in settings.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            tables.append(f"[{name}]\n{toml(value, name)}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            tables.extend(f"[[{name}]]\n{toml(item, name)}" for item in value)
        else:
            plain.append(f"{key} = {json.dumps(value, ensure_ascii=False)}\n")  # JSON's literals are TOML's too
    return "".join([*plain, *tables])
