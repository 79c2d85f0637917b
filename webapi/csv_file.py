"""Tables as CSV (RFC 4180) that no spreadsheet takes for formulas (OWASP: CSV injection)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

#: With what a cell must not begin: a spreadsheet would compute it. Some take the full-width forms for the plain ones.
_MARKS = "=+-@|%＝＋－＠"
DANGEROUS = tuple(f"{_MARKS}\t\r\n")
#: What a spreadsheet may drop before it looks.
BLANK = ' \u00a0\u200b\ufeff"'
_IN_THE_MIDDLE = re.compile(rf"([;\t\r\n][{BLANK}]*)(?=[{re.escape(_MARKS)}])")
#: What makes a spreadsheet read UTF-8.
BOM = "\ufeff"


def cell(value: object) -> str:
    """A value as text that is shown and not computed; what looks like a formula gets an apostrophe in front.

    So does what would look like one to a spreadsheet that separates by semicolon or tab, as in half of Europe.

    >>> cell("=1+1"), cell(-5), cell(None), cell(" =1+1"), cell("a;=1+1")
    ("'=1+1", '-5', '', "' =1+1", "a;'=1+1")
    """
    if value is None:
        return ""
    if isinstance(value, int | float):
        return str(value)
    text = str(value).replace("\0", "")
    looks_like_one = text.startswith(DANGEROUS) or text.lstrip(BLANK).startswith(DANGEROUS)
    text = _IN_THE_MIDDLE.sub(r"\1'", text)
    return f"'{text}" if looks_like_one else text


def rows(lines: Iterable[Sequence[object]]) -> str:
    """These lines as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows([cell(value) for value in line] for line in lines)
    return out.getvalue()
