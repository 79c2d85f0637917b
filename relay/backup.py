"""A copy of a data_dir that is itself a data_dir, made beside a running daemon.

    relay.db   by SQLite's online backup, in one read transaction: the state of one moment
    keys/      after it, so that every value sealed in it can be opened
    bodies/    what the copied database names, as hard links where the file system allows: body files never change
    database-was-made   so that a copy which comes without its database somewhere else is not begun anew

Mail goes on meanwhile. A body that is gone by the time it is to be linked was removed by retention or erased; the copy
then says the same of it. Everything is made under another name and appears whole or not at all.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import bindparam, func, select, update

from relay.durable import sync_directory
from relay.store import damage, migrate
from relay.store.engine import Statement, Tx
from relay.store.schema import messages
from relay.store.store import DATABASE, revision

Progress = Callable[[str], None]

#: What os.link raises where two names for one file are not possible: other file systems, foreign owners, limits.
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)

_COUNT = Statement(select(func.count()).select_from(messages))
_FILES = Statement(select(messages.c.id, messages.c.body_file).where(messages.c.body_file.is_not(None)))
_NAMES_FILE = Statement(select(messages.c.id).where(messages.c.body_file == bindparam("name")))
_RAW_REMOVED = Statement(update(messages).where(messages.c.id == bindparam("message")), "raw_removed_at body_file")


@dataclass(frozen=True, slots=True)
class Copied:
    """``octets`` in database and bodies; ``lost``: messages whose body the original itself has lost."""

    messages: int
    bodies: int
    octets: int
    lost: tuple[int, ...]


def backup(data_dir: Path, directory: Path, progress: Progress) -> Copied:
    """Copy ``data_dir`` to ``directory``, which must not exist. Blocks; an interruption leaves nothing.

    Raises FileExistsError, other OSErrors, sqlite3.Error, Damaged where the database is gone.
    """
    directory = directory.absolute()
    database = data_dir / DATABASE
    if revision(database) is None:
        raise FileNotFoundError(errno.ENOENT, "there is no database yet", str(database))
    if directory.exists():
        raise FileExistsError(errno.EEXIST, "exists already", str(directory))
    with _whole_or_not_at_all(directory) as partial:
        copy = partial / DATABASE
        migrate.backup(database, copy, progress)
        _copy_keys(data_dir / "keys", partial / "keys")
        copied = _complete(data_dir, copy, progress)
        damage.mark(copy)  # one that comes without its database somewhere else must not begin anew there
        for made in (partial / "keys", partial / "bodies", partial):
            sync_directory(made)
    sync_directory(directory.parent)
    return copied


@contextmanager
def _whole_or_not_at_all(directory: Path) -> Iterator[Path]:
    partial = directory.with_name(f"{directory.name}.partial")
    try:
        partial.mkdir(mode=0o700)
    except FileExistsError:
        raise FileExistsError(
            errno.EEXIST, "another backup is at work there, or was killed: then remove it", str(partial)
        ) from None
    try:
        yield partial
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy_keys(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for key in sorted(source.glob("*.key")):
        _copy(key, target / key.name)


def _complete(data_dir: Path, copy: Path, progress: Progress) -> Copied:
    """Bring the bodies that the copied database names, and make it say what is true of them."""
    target = copy.parent / "bodies"
    target.mkdir(mode=0o700)
    octets = gone = 0
    lost: list[int] = []
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        tx = Tx(connection)
        connection.execute("BEGIN IMMEDIATE")
        files = tx.all(_FILES)
        for count, (message_id, name) in enumerate(files, 1):
            try:
                octets += _link(data_dir / "bodies" / name, target / name)
            except FileNotFoundError:
                if _still_named(data_dir / DATABASE, name):
                    lost.append(message_id)
                else:
                    tx.run(_RAW_REMOVED, message=message_id, raw_removed_at=time.time(), body_file=None)
                gone += 1
            if count % 1000 == 0:
                progress(f"{count} of {len(files)} large bodies copied")
        row = tx.one(_COUNT)
        connection.execute("COMMIT")
    assert row is not None
    return Copied(row[0], len(files) - gone, octets + copy.stat().st_size, tuple(lost))


def _still_named(database: Path, name: str) -> bool:
    """Whether the original still has a message with this body: then the file should be there."""
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as live:
        return Tx(live).one(_NAMES_FILE, name=name) is not None


def _link(source: Path, target: Path) -> int:
    """Give the file a second name, or copy it where that is not possible; its octets."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy(source, target)
    return target.stat().st_size


def _copy(source: Path, target: Path) -> None:
    """Copy and sync; the copy is the owner's alone."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with source.open("rb") as original, os.fdopen(descriptor, "wb") as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())
