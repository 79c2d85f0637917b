"""Why a verb or a reading did not come about."""

from __future__ import annotations


class StoreUnavailable(Exception):
    """The transaction died: disk full, I/O error, lock. Nothing was changed; try again later.

    ``no_room``: the disk was full (SMTP 452, else 451).
    """

    def __init__(self, reason: str, *, no_room: bool = False) -> None:
        super().__init__(reason)
        self.no_room = no_room


class Replaced(StoreUnavailable):
    """The database, or its log, is not the file any more that was opened; what is written now would be lost."""


class TooLong(StoreUnavailable):
    """A reading took longer than its reader allows, and was broken off."""


class CommitUnknown(StoreUnavailable):
    """The COMMIT itself failed: after a restart SQLite may find in its log what it could not sync. Undo nothing."""
