"""The receivers of docs/crm as processes: how each is started, and what this machine lacks for it.

with running(COMMANDS["php"], tmp_path, source_of("php"), SECRET) as receiver:
    … posts to receiver.url …
    receiver.of(event)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.daemon import ROOT

CRM = ROOT / "docs" / "crm"
#: How each verifying receiver is started on a free port, and what in it reads the clock.
COMMANDS = {
    "python": [sys.executable, "receiver.py", "0"],
    "php": ["php", "-S", "127.0.0.1:0", "receiver.php"],
    "node": ["node", "receiver.mjs", "0"],
}
CLOCKS = {"python": "time.time()", "php": "time()", "node": "Date.now() / 1000"}
#: Fails where the program is too old.
OLD = {
    "php": ["php", "-r", "exit((int) (PHP_VERSION_ID < 80100));"],
    "node": ["node", "-e", "process.exit(+(parseInt(process.versions.node) < 18))"],
}


def lacking(name: str) -> str | None:
    """What this machine would need to run the receiver, None when nothing."""
    wanted = {"php": "PHP 8.1 or newer (apt install php-cli)", "node": "Node.js 18 or newer"}.get(name)
    if wanted is None or (shutil.which(name) and subprocess.run(OLD[name], check=False).returncode == 0):
        return None
    return f"NOT TESTED: the CRM's receiver in {name}: this machine lacks {wanted}"


@dataclass
class Process:
    """A receiver that runs. ``letters`` is where it keeps them, ``home`` where it was started."""

    url: str
    home: Path
    letters: Path

    def stored(self) -> list[dict[str, Any]]:
        """Every letter that it keeps, each a file of one line."""
        texts = [file.read_text() for file in self.letters.glob("*.json")]
        assert all(text.endswith("\n") and text.count("\n") == 1 for text in texts)
        return [json.loads(text) for text in texts]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.stored() if entry["webhook_id"] == event]


@contextlib.contextmanager
def running(command: Sequence[str], home: Path, source: str, secrets: str) -> Iterator[Process]:
    """The receiver with this ``source``, under the name that ``command`` has for it."""
    letters = home / "letters"
    letters.mkdir(parents=True)
    (home / next(word for word in command if Path(word).suffix in (".py", ".php", ".mjs"))).write_text(source)
    environment = {**os.environ, "RELAY_WEBHOOK_SECRET": secrets, "RELAY_WEBHOOK_DIR": str(letters)}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment, "PHP_CLI_SERVER_WORKERS": "4"},
        cwd=home,
        text=True,
        start_new_session=True,  # the workers of php -S outlive it, unless their group is ended
    )
    assert process.stdout is not None
    try:
        said = ""
        while (found := re.search(r"http://127\.0\.0\.1:[1-9][0-9]*", said)) is None:
            line = process.stdout.readline()
            assert line, f"{command} did not start: {said}"
            said += line
        # What it says later is read, lest it wait for a reader.
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        yield Process(found[0], home, letters)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join()
        process.stdout.close()


def source_of(name: str) -> str:
    return (CRM / next(word for word in COMMANDS[name] if word.startswith("receiver."))).read_text()
