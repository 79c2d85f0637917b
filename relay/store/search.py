"""Full-text search over subject, addresses and the first 8 KiB of text (SQLite FTS5, external content).

Rows wait in table texts with ``indexed = 0`` and are taken in small batches when the writer has nothing better to do.
"""

from __future__ import annotations

import re

from sqlalchemy import bindparam, select, update

from relay.store.engine import Statement, Tx
from relay.store.schema import texts

#: Messages indexed in one transaction: some 10 ms.
BATCH = 50
#: Words of a query that count.
WORDS = 20

_UNINDEXED = Statement(
    select(texts.c.message_id, texts.c.subject, texts.c.addresses, texts.c.head)
    .where(texts.c.indexed == 0)
    .limit(bindparam("most"))
)
_INDEXED = Statement(update(texts).where(texts.c.message_id == bindparam("message")).values(indexed=1))
_TEXT = Statement(
    select(texts.c.subject, texts.c.addresses, texts.c.head, texts.c.indexed).where(
        texts.c.message_id == bindparam("message")
    )
)
_ADD = "INSERT INTO message_search(rowid, subject, addresses, head) VALUES (?, ?, ?, ?)"
_DROP = "INSERT INTO message_search(message_search, rowid, subject, addresses, head) VALUES ('delete', ?, ?, ?, ?)"
_WORD = re.compile(r"\w+")


def index(tx: Tx, most: int = BATCH) -> int:
    """Index what waits, at most ``most`` messages; their number."""
    rows = tx.all(_UNINDEXED, most=most)
    for row in rows:
        tx.sql(_ADD, row)
        tx.run(_INDEXED, message=row[0])
    return len(rows)


def forget(tx: Tx, message_id: int) -> None:
    """Take a message out of the index, before its row in texts goes."""
    row = tx.one(_TEXT, message=message_id)
    if row is not None and row[3]:
        tx.sql(_DROP, (message_id, *row[:3]))


def match_expression(query: str) -> str | None:
    """The FTS5 expression for what a person typed: every word, the last as a beginning. None without a word.

    >>> match_expression('Offer "AND 2')
    '"Offer" "AND" "2"*'
    """
    words = _WORD.findall(query)[:WORDS]
    return " ".join(f'"{word}"' for word in words) + "*" if words else None
