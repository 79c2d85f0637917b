"""Where the corpora of tests lie: RELAY_CORPORA, else ../shared/data/corpora beside the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

#: Those that are mail.
MAIL = ("mime-cpython", "mime-haraka", "mime-mailparser-stalwart", "mime-nodemailer")
_LICENCE = re.compile(r"(?i)licen[sc]e|copying|readme")


def corpus(name: str) -> Path:
    """The folder of one corpus.

    Without any corpora the test is skipped and says so; with RELAY_CORPORA set, a missing one is a failure, for
    then somebody meant it to be there.
    """
    given = os.environ.get("RELAY_CORPORA")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data" / "corpora"
    folder = root / name
    if folder.is_dir():
        return folder
    if given:
        pytest.fail(f"corpus {name} is not in RELAY_CORPORA={given}")
    pytest.skip(f"NOT TESTED: corpus {name} not found in {root}; set RELAY_CORPORA to the folder of the corpora")


def mail_files() -> list[Path]:
    """Every file of the corpora of mail. What is no letter (pictures, sounds, JSON beside the letters) makes a message
    with an odd header, or none."""
    files = [path for name in MAIL for path in sorted(corpus(name).rglob("*")) if path.is_file()]
    return [path for path in files if not _LICENCE.search(path.name)]


def as_sent(octets: bytes) -> bytes:
    """The message as a correct MTA sends a file: every LF a CR LF. A bare CR or a NUL stays what it is."""
    lines = octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return lines if lines.endswith(b"\r\n") else lines + b"\r\n"
