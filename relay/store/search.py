"""Full-text search over subject, addresses and the first 8 KiB of text (SQLite FTS5, external content).

Rows wait in table texts with ``indexed = 0`` and are taken in small batches when the writer has nothing better to do.

Every word of a query has to be there, the last one as a beginning; words that no white space parts, as those of an
address, one behind the other:

    one whole word           its list is read from the newest message on, as far as a page needs
    a beginning              the lists of all words that begin so are merged whole before the first message is known:
                             where that is too much, which the index says beforehand, and below 3 characters, only the
                             whole word is searched
    several words            their lists are walked side by side as far as a page needs. Two that a million messages
                             have and that never meet take 70 ms to the end; where the lists are longer than that, and
                             none of the words is so rare that few places of the others are looked at, only a share
                             of all messages is searched at once
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import TextualSelect, bindparam, column, func, select, text, update

from relay.store.engine import Statement, Tx
from relay.store.reader import Reader
from relay.store.schema import deliveries, messages, texts

#: Messages indexed in one transaction: some 10 ms.
BATCH = 50
#: Words of a query that count.
WORDS = 20
#: Characters of a last word that is searched as a beginning.
BEGINNING = 3
#: Pages of lists (4 KiB, some 800 messages each) that are merged for a beginning: some 20 ms, and 2 MB.
MERGED = 300
#: Pages of lists that are walked for one request: some 100 ms.
WALKED = 3000
#: Messages with a word up to which the lists of the others are only looked at where these are.
JUMPS = 1500
#: No id is as large.
BEYOND = (1 << 63) - 1

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
_ADDRESSES = Statement(
    select(messages.c.sender, messages.c.mail_from, func.group_concat(deliveries.c.recipient, " "))
    .outerjoin(deliveries, deliveries.c.message_id == messages.c.id)
    .where(messages.c.id == bindparam("message"))
    .group_by(messages.c.id)
)
_READDRESS = Statement(update(texts).where(texts.c.message_id == bindparam("message")), "addresses")
_ADD = "INSERT INTO message_search(rowid, subject, addresses, head) VALUES (?, ?, ?, ?)"
_DROP = "INSERT INTO message_search(message_search, rowid, subject, addresses, head) VALUES ('delete', ?, ?, ?, ?)"
# With the marks that no letter takes in (an accent over a Russian vowel): the tokenizer passes over them within a word.
_WORD = re.compile(r"\w[\w\u0300-\u036f]*")


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


def addresses(tx: Tx, message_id: int) -> str:
    """The addresses by which a message is found: whom it is from, and its recipients."""
    return composed(" ".join(filter(None, tx.one(_ADDRESSES, message=message_id) or ())))


def readdress(tx: Tx, message_id: int) -> None:
    """Let a message be found by the addresses that it has now. At once: the index is fed only when mail comes."""
    row = tx.one(_TEXT, message=message_id)
    if row is None:
        return
    subject, before, head, indexed = row
    now = addresses(tx, message_id)
    if indexed:
        tx.sql(_DROP, (message_id, subject, before, head))
        tx.sql(_ADD, (message_id, subject, now, head))
    tx.run(_READDRESS, message=message_id, addresses=now)


@dataclass(frozen=True, slots=True)
class Search:
    """What a person typed, as an FTS5 ``expression``.

    ``begins``: its last word is searched as a beginning. ``narrowed``: it was long enough for that, but too much begins
    so. ``share``: how much of all messages one request searches.
    """

    expression: str
    begins: bool
    narrowed: bool = False
    share: float = 1.0


def composed(text: str) -> str:
    """Letters and their marks as one character, where there is one (Unicode, normalization form C): so the index and a
    query have the same words, whichever way they were typed."""
    return unicodedata.normalize("NFC", text)


def _phrases(query: str) -> list[list[str]]:
    """The words of a query, those together that no white space parts: an address is one phrase."""
    found: list[list[str]] = []
    left = WORDS
    for chunk in composed(query).split():
        words = _WORD.findall(chunk)[:left]
        if words:
            found.append(words)
            left -= len(words)
    return found


async def search(reader: Reader, query: str) -> Search | None:
    """How to search for what a person typed; None where it has no word. Raises StoreUnavailable."""
    phrases = _phrases(query)
    if not phrases:
        return None
    # The tokenizer's words end at "_", too.
    terms = [term for words in phrases for word in words for term in word.split("_")]
    last = terms[-1]
    long_enough = len(last) >= BEGINNING
    begins = long_enough and await _pages(reader, last) <= MERGED
    expression = " ".join(f'"{" ".join(words)}"' for words in phrases) + ("*" if begins else "")
    share = await _share(reader, terms, begins=begins)
    return Search(expression, begins=begins, narrowed=long_enough and not begins, share=share)


async def _share(reader: Reader, terms: Sequence[str], *, begins: bool) -> float:
    """What of all messages is searched at once for those that have all these."""
    whole = [term for term in (terms[:-1] if begins else terms) if term]
    sizes = {f'"{term}"': await _pages(reader, term, whole=True) for term in whole}
    walked = sum(sizes.values())
    if len(sizes) + begins < 2 or walked <= WALKED:
        return 1.0
    rarest = [f'"{terms[-1]}"*'] * begins + sorted(sizes, key=lambda term: sizes[term])[:2]
    for expression in rarest:
        if len(await reader.all(matching(expression, 0, BEYOND, JUMPS + 1))) <= JUMPS:
            return 1.0
    return WALKED / walked


_MATCHING = (
    "SELECT rowid AS id FROM message_search WHERE message_search MATCH :expression AND rowid > :low AND rowid < :high "
)
_OLDEST = text(f"{_MATCHING} ORDER BY rowid LIMIT :most")
_NEWEST = text(f"{_MATCHING} ORDER BY rowid DESC LIMIT :most")


def matching(expression: str, low: int, high: int, most: int, *, oldest: bool = False) -> TextualSelect:
    """The ids of the first ``most`` messages (-1: of all) between ``low`` and ``high``, both left out."""
    query = _OLDEST if oldest else _NEWEST
    return query.bindparams(expression=expression, low=low, high=high, most=most).columns(column("id"))


# Leaf pages of the index (4 KiB each) that hold the terms between :begin and :end, in all segments. A row of
# message_search_idx is the first term of a leaf: (segid, term) -> 2 * number of the leaf (+ 1). A leaf's row in
# message_search_data has the id (segid << 37) + its number.
_PAGES = text(
    """
    WITH RECURSIVE segment(id) AS (
        SELECT min(segid) FROM message_search_idx
        UNION ALL
        SELECT (SELECT min(segid) FROM message_search_idx WHERE segid > segment.id) FROM segment WHERE id IS NOT NULL
    )
    SELECT total(coalesce((
        SELECT pgno / 2 FROM message_search_idx WHERE segid = segment.id AND term >= :end ORDER BY term LIMIT 1
    ), (
        SELECT max(id) & 0x7fffffff FROM message_search_data WHERE id < (segment.id << 37) + (1 << 31)
    )) - coalesce((
        SELECT pgno / 2 FROM message_search_idx WHERE segid = segment.id AND term <= :begin ORDER BY term DESC LIMIT 1
    ), 1) - 1)
    FROM segment WHERE id IS NOT NULL
    """
)


async def _pages(reader: Reader, beginning: str, *, whole: bool = False) -> int:
    """Pages of the lists of all words that begin so, at times with that of the word before them; never too few.

    ``whole``: of this word alone.
    """
    most = 0
    for term in {
        beginning.lower(),
        _plain(beginning),
    }:  # as the tokenizer writes it, which leaves some alphabets' marks
        begin = b"0" + term.encode("utf-8", "replace")  # "0": no prefix index
        most = max(
            most,
            int((await reader.all(_PAGES, {"begin": begin, "end": begin + (b"\x00" if whole else b"\xff")}))[0][0]),
        )
    return most


def _plain(word: str) -> str:
    """A word in lower case and without diacritical marks."""
    return "".join(char for char in unicodedata.normalize("NFD", word.lower()) if not unicodedata.combining(char))
