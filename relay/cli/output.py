"""What commands print: tables for people, JSON and CSV for programs.

What strangers wrote (subjects, addresses, answers of other servers) can steer neither a terminal nor a spreadsheet.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from webapi.csv_file import cell

#: Columns of a table that is not shown on a terminal: nothing is wrapped or cut for `grep` and `awk`.
_UNLIMITED = 100_000


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Rows under their headings; ``right`` names the columns of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _UNLIMITED
    shown = Table(box=SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        shown.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(value)) for value in row))
    console.print(shown)


def fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names with their values, one a line; a value that is None is left out."""
    known = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        click.echo(f"{name:<{width}}  {printable(value)}")


def as_json(value: object) -> None:
    """One JSON document, readable as it stands."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "replace"))


class Csv:
    """RFC 4180 on stdout, row by row, with nothing in it that a spreadsheet would calculate."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._writer = csv.writer(sys.stdout)
        self._writer.writerow(columns)

    def row(self, cells: Sequence[Any]) -> None:
        self._writer.writerow([cell(value) for value in cells])


def printable(value: object) -> str:
    """Text for a terminal: "-" for nothing, and no control character, lone surrogate or change of direction."""
    if value is None or value == "":
        return "-"
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def time(seconds: float | None) -> str | None:
    """A time as UTC to the second (ISO 8601)."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
