"""docs/operations.md as a person at a shell follows it: its blocks letter for letter, below a directory of the test's.

    host = Host(tmp_path, daemon)
    host.follow(block("**Restore:**"))

Nobody can be somebody else here and no systemd runs: `runuser` runs its command as who tests, `install` and `chown`
leave the owners out, `apt` and `useradd` do nothing, and `systemctl` starts and stops the test's daemon.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.daemon import Daemon, environment
from tests.dns_server import DnsServer
from tests.scenarios.world import World, world

ROOT = Path(__file__).resolve().parent.parent
_PLACES = re.compile(r"(?<![\w./-])(?=/(?:etc|opt|root|usr/src|var/(?:backups|lib))/)")
_PROGRAMS = {
    "apt": "",
    "chown": "",
    "useradd": "",
    "install": """
        words=()
        while [ $# -gt 0 ]; do
            case "$1" in -o|-g) shift 2 ;; *) words+=("$1"); shift ;; esac
        done
        PATH=${PATH#*:} exec install "${words[@]}\"""",
    "runuser": '[ "$1 $2 $3" = "-u visit-relay --" ] && shift 3 && exec "$@"',
    "systemctl": '[ "$*" = daemon-reload ]',  # other lines of it are the Host's
}
#: What makes another Python program of an installation than its own.
PYTHONS = ("PYTHONPATH", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE")


def repositorys(words: str) -> str:
    """A line for bash that becomes Python with the repository's modules, and with these words and the script's own."""
    found = environment()
    settings = " ".join(f"{name}={shlex.quote(found[name])}" for name in (*PYTHONS, "COLUMNS") if name in found)
    return f'{settings} exec {sys.executable} {words} "$@"'


def chapter(after: str) -> str:
    """docs/operations.md behind these words, up to the next heading of the same kind."""
    _, found, rest = (ROOT / "docs" / "operations.md").read_text("utf-8").partition(after)
    assert found, after
    return rest.partition("\n## ")[0]


def blocks(after: str) -> list[str]:
    """The blocks behind these words, up to the next chapter."""
    return re.findall(r"^ *```\w*\n(.*?)^ *```", chapter(after), re.DOTALL | re.MULTILINE)


def block(after: str) -> str:
    """The first of them."""
    return blocks(after)[0]


def replaced(text: str, *changes: tuple[str, str]) -> str:
    """The text with other ports and places; each of them must be in it."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextlib.asynccontextmanager
async def installed(root: Path, **how: Any) -> AsyncIterator[World]:
    """A world whose relay.toml and data_dir lie where the document has them, below ``root``."""
    etc = root / "etc/visit-relay"
    etc.mkdir(parents=True)
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "root").mkdir()
    async with DnsServer() as dns:  # `relay check` asks
        places = {"data_dir": str(root / "var/lib/visit-relay"), "dns": {"nameservers": [dns.address]}}
        async with world(etc, places, **how) as made:
            yield made


class Host:
    """``programs``: further ones that are found before the machine's, by name; each a script for bash.

    ``started_by``: what the daemon is started by, as Daemon has it.
    """

    def __init__(self, root: Path, daemon: Daemon, programs: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.started_by: Sequence[str] = ()
        self._daemon = daemon
        self._bin = root / "bin"
        for name, does in {**_PROGRAMS, **(programs or {})}.items():
            self.program(self._bin / name, does)

    def program(self, path: Path, does: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{does}\n")
        path.chmod(0o755)

    def place_of_program(self) -> None:
        """Put the repository's own program where an installation has it."""
        self.program(self.root / "opt/visit-relay/bin/relay", repositorys("-m relay"))

    def here(self, text: str) -> str:
        """The text with its places below the test's directory."""
        return _PLACES.sub(str(self.root), text)

    def follow(self, lines: str, *changes: tuple[str, str], stdin: str = "") -> str:
        """What the block printed. Fails with the first command that does, but for `relay check`, whose findings are
        to be read."""
        said, gathered = "", ""
        for line in self.here(replaced(lines, *changes)).splitlines():
            if line.startswith("systemctl "):
                said += self._shell(gathered, stdin)
                gathered = ""
                self._systemctl(line)
            else:
                gathered += line + "\n"
        return said + self._shell(gathered, stdin)

    def _shell(self, lines: str, stdin: str) -> str:
        alias = self.here(block("An alias helps:")).splitlines()[0]
        lines = re.sub(
            r"^(.* && .*?)(  +#.*)?$", r"\1 || exit", lines, flags=re.MULTILINE
        )  # of which -e heeds the last
        checked = re.sub(r"^(.*\brelay check .*)$", r"\1 || [ $? = 1 ]", lines, flags=re.MULTILINE)
        paths = {"PATH": f"{self._bin}:{os.environ['PATH']}", "HOME": str(self.root)}
        done = subprocess.run(
            ["bash", "-c", f"set -eu -o pipefail; shopt -s expand_aliases\n{alias}\n{checked}"],
            input=stdin,
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if name not in PYTHONS} | paths,
            cwd=self.root,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _systemctl(self, line: str) -> None:
        for command in re.split(r"&&|;", line.partition("#")[0]):
            _, verb, *units = command.split()
            match verb:
                case "stop":
                    assert units == ["relay.socket", "relay.service"]  # the socket would start it again
                    if self._daemon.smtp_port:  # it runs
                        self._daemon.stop()
                case "restart":
                    assert self._daemon.stop() == 0
                    self._daemon.start(self.started_by)
                case "start" | "enable":
                    self._daemon.start(self.started_by)
                case _:
                    assert verb in ("daemon-reload", "reset-failed"), line
