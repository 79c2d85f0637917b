"""The HTML form of a message as a page shows it; relay/letter.py makes it."""

from __future__ import annotations

from dataclasses import dataclass

#: Pictures that a browser shows and that run nothing; what SVG may do depends on how it is shown.
PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"})


@dataclass(frozen=True, slots=True)
class Letter:
    """The HTML form of a message, safe to show. ``html`` is None where there is none, or none that can be shown.

    In ``html`` "MARKER-3" stands for the address of attachment 3, ``marker`` being a word of this letter alone.
    ``remote``: pictures that would have had to be fetched. ``cut``: something was left out at its end.
    """

    html: str | None = None
    marker: str = ""
    remote: int = 0
    cut: bool = False
