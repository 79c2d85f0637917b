"""Schema revisions (Alembic): applied at start, each with its record in one transaction, after a backup.

A database of a newer revision than this program knows is refused: an older program would misread it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from relay.durable import sync_directory
from relay.store.connection import connect
from relay.store.copied import as_copy

#: The revision that this program works with; a test compares it with the scripts in migrations/.
HEAD = "0005"

Progress = Callable[[str], None]


class WrongRevision(Exception):
    """The database's schema is of a revision that this program does not know."""


def revision(path: Path) -> str | None:
    """The revision of the database at ``path``; None when it is empty or not there. Raises sqlite3.Error."""
    if not path.exists():
        return None
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    try:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            if connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                raise WrongRevision(f"{path} is not a database of visit-relay")
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return row[0] if row else None
    finally:
        connection.close()


def migrate(path: Path, progress: Progress = lambda line: None) -> bool:
    """Bring the database at ``path`` to :data:`HEAD`, creating it where there is none. True when anything was done.

    Blocks. An interruption leaves the last finished revision; the next start goes on from there. Raises
    WrongRevision, sqlite3.Error, OSError.
    """
    current = revision(path)
    if current == HEAD:
        return False
    if current is not None:
        known = _revisions()
        if current not in known:
            raise WrongRevision(f"{path} has schema revision {current}, newer than this program's {HEAD}")
        for left in path.parent.glob(f"{path.stem}-before-*.db.partial*"):
            left.unlink()  # by a kill in the middle of a copy, as large as the database perhaps
        copy = _free_name(path)
        progress(f"backing up to {copy.name}")
        backup(path, copy, progress)
    _upgrade(path, progress)
    return True


def _free_name(path: Path) -> Path:
    stamp = int(time.time())
    while (copy := path.with_name(f"{path.stem}-before-{HEAD}-{stamp}.db")).exists():
        stamp += 1  # an interrupted migration, started again within a second
    return copy


def _script_directory() -> str:
    return str(Path(__file__).parent / "migrations")


def _revisions() -> list[str]:
    from alembic.script import ScriptDirectory  # 0.2 s to import, and needed only when something changes

    return [script.revision for script in ScriptDirectory(_script_directory()).walk_revisions()]


def _upgrade(path: Path, progress: Progress) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine, event

    connect(path, create=True).close()  # creates the file in WAL mode
    path.chmod(0o600)
    engine = create_engine(f"sqlite:///{path}")

    # pysqlite begins transactions late and commits before DDL; with these two, DDL is transactional (SQLAlchemy docs).
    @event.listens_for(engine, "connect")
    def _no_implicit_transactions(dbapi_connection: sqlite3.Connection, _: object) -> None:
        dbapi_connection.isolation_level = None
        dbapi_connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: object) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # type: ignore[attr-defined]

    scripts, config = ScriptDirectory(_script_directory()), Config()
    config.attributes["progress"] = progress  # for what a step does to the rows

    def steps(current: object, context: object) -> object:
        return scripts._upgrade_revs("head", current)  # type: ignore[arg-type]

    try:
        with engine.connect() as connection, EnvironmentContext(config, scripts, fn=steps) as environment:
            environment.configure(
                connection=connection,
                transactional_ddl=True,
                transaction_per_migration=True,
                on_version_apply=lambda step, **_: progress(f"applied revision {step.up_revision_id}"),
            )
            environment.run_migrations()
    finally:
        engine.dispose()


def backup(source: Path, copy: Path, progress: Progress = lambda line: None, pages: int = 4096) -> None:
    """A consistent copy of a database that may be in use, by SQLite's online backup. Blocks; may be interrupted.

    It is made to go on in the original's place (copied.py), and appears under its name only when it is whole. Raises
    sqlite3.Error, OSError, FileExistsError.
    """
    if copy.exists():
        raise FileExistsError(f"{copy} exists already")
    partial = copy.with_name(copy.name + ".partial")
    partial.unlink(missing_ok=True)
    made_at = time.time()
    original = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    target = sqlite3.connect(partial, isolation_level=None)
    try:
        partial.chmod(0o600)
        # One read transaction: otherwise every commit of the daemon would start the copy again.
        original.execute("BEGIN")
        original.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        original.backup(target, pages=pages, progress=_report(progress))
        target.execute("PRAGMA journal_mode=DELETE")
        as_copy(target, made_at)
        target.close()
        partial.rename(copy)
        sync_directory(copy.parent)
    finally:
        original.close()
        target.close()
        partial.unlink(missing_ok=True)


def _report(progress: Progress) -> Callable[[int, int, int], None]:
    last = -1

    def report(_: int, remaining: int, total: int) -> None:
        nonlocal last
        percent = 100 if not total else (total - remaining) * 100 // total
        if percent // 10 != last // 10:
            last = percent
            progress(f"{percent} % of {total} pages copied")

    return report
