"""What ends a command: which exceptions an operator can do something about, in which words, with which exit code.

    0  done      1  failed      2  wrong use: of the command (click's own errors) or of relay.toml

An exception that is not listed here is a bug and keeps its traceback.
"""

from __future__ import annotations

import sqlite3

FAILED = 1
WRONG_USE = 2


def explained(error: Exception) -> tuple[int, str] | None:
    """Exit code and text (one line, or one for each error of a configuration); None for what nobody expected."""
    from relay.config import ConfigError
    from relay.control import ControlError

    if isinstance(error, ConfigError):
        return WRONG_USE, str(error)
    if isinstance(error, ControlError):
        return FAILED, error.message
    if isinstance(error, sqlite3.Error):
        return FAILED, f"the database: {error}"
    if isinstance(error, OSError):
        return FAILED, _of_system(error)
    return _of_store(error)


def _of_store(error: Exception) -> tuple[int, str] | None:
    from relay.secrets import KeysError, SealError
    from relay.store.damage import Damaged
    from relay.store.engine import StoreUnavailable
    from relay.store.migrate import WrongRevision
    from relay.store.routes import AddressTaken
    from relay.store.sites import NameTaken

    if isinstance(error, StoreUnavailable):
        return FAILED, f"the database: {error}"
    if isinstance(error, AddressTaken | NameTaken):
        return FAILED, f"the sites of the configuration do not go with those of the database: {error}"
    if isinstance(error, WrongRevision | Damaged | KeysError | SealError):
        return FAILED, str(error)
    return None


def _of_system(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is None:
        return reason
    to = f" -> {error.filename2}" if error.filename2 is not None else ""
    return f"{error.filename}{to}: {reason}"
