"""A database in which everything that strangers can write is hostile: the corpora of strings, in every free column.

What they write is judged when it comes in, and most of these strings would be refused or cleaned then. They are put
into the database all the same: the pages must show whatever is there.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from email.message import EmailMessage
from email.policy import SMTP

from sqlalchemy import Table, Text

from relay.core.model import OutcomeKind
from relay.store import blocked, changes, tokens
from relay.store.changes import Change
from relay.store.engine import Tx
from relay.store.post import PostResult
from relay.store.posts import finish_post
from relay.store.schema import metadata
from tests.corpora import corpus
from tests.store_fixtures import TRACK, World, part

#: Columns that the program itself writes, or judges whenever it reads them: keys, states, JSON, sealed values.
OURS = {
    "messages": {"body_file", "references", "cut", "state", "extraction", "attachments"},
    "sites": {"name", "key", "origins", "bots", "conditions", "settings", "declared_switches"},
    "tokens": {"hash", "role", "sites"},
    "users": {"name", "password", "role", "sites"},
    "counters": {"day", "name"},
    "events": {"uid", "type", "state", "data"},
    "invitations": {"hash"},
    "paths": {"kind"},
    "sessions": {"hash"},
    "targets": {"address", "method", "domain", "forward_to", "next_hop"},
    "visits": {"number", "first_visit", "channel", "params"},
    "webhooks": {"url", "secret", "fill", "settings", "access", "previous_secret"},
    "deliveries": {"state", "claim", "attribution", "attribution_method", "candidates", "claimed_number"},
    "posts": {"state", "claim"},
    "routes": {"domain", "local", "kind"},
    "attempts": {"outcome"},
    "changes": {"kind", "details"},
}


#: Parameters of a visit that its page gave.
PARAMS = 3


def vectors() -> list[str]:
    """Every string of blns, h5sc and csv-injection."""
    found: list[str] = json.loads((corpus("strings-blns") / "blns.json").read_text("utf-8"))
    found += (corpus("xss-h5sc") / "vectors.txt").read_text("utf-8", "replace").split("</div><div id=")
    found += (corpus("csv-injection") / "csv-payload.txt").read_text("utf-8", "replace").splitlines()
    return [text.replace("\0", "") for text in found if text.strip()]


def grouped(texts: Sequence[str], count: int, rng: random.Random) -> Iterator[str]:
    """All texts in ``count`` values, in another order each time."""
    shuffled = rng.sample(list(texts), len(texts))
    for start in range(count):
        yield "\n".join(shuffled[start::count])


async def fill(w: World, letters: int) -> None:
    """Letters with a visit, a file, a failed and a successful post; one of them held, one forwarded.

    The first is HTML, with all of h5sc. What relay.toml declares has no forms: nothing here is of that kind.
    """
    for number in range(letters):
        shown = await w.bind(page=f"https://www.shop.example/?utm_source=s{number}")
        address = next(iter(shown.substitutes.values()), f"card@{TRACK}")
        accepted = await w.accept(address, body=b"From: a@b.example\r\n\r\n%d" % number if number else html_letter())
        for job in accepted.jobs:
            await w.finish(job, OutcomeKind.PERMANENT if number % 2 else OutcomeKind.DELIVERED)
        for post in await w.extract(accepted.message_id, "poster", attachments=[part()]):
            state = "failed" if number % 2 else "delivered"
            result = PostResult(post, state, w.now, 500, "no", w.now, 0.1, deal=("1", "https://crm.example/1"))
            await w.store.write(lambda tx: finish_post(tx, result, w.now))  # noqa: B023
        w.pass_time(1)
    await w.store.write(lambda tx: tokens.create(tx, "ci", "0" * 64, "viewer", None, w.now))
    await w.store.write(lambda tx: blocked.block(tx, w.site().id, "@spam.example", w.now))
    noted = Change(w.now, "command", "root", "site.block", None, "x", {"a": "b"})
    await w.store.write(lambda tx: changes.note(tx, noted))
    await w.store.redefine(lambda tx: [tx.sql(f"UPDATE {name} SET declared = 0") for name in ("sites", "webhooks")])


def html_letter() -> bytes:
    """A multipart of plain text and HTML; what is hostile in it is as its sender wrote it."""
    message = EmailMessage(policy=SMTP)
    message["From"], message["Subject"] = "a@b.example", "Vectors"
    message.set_content("See the other part.\n")
    message.add_alternative((corpus("xss-h5sc") / "vectors.txt").read_text("utf-8", "replace"), subtype="html")
    return message.as_bytes()


def spoil(tx: Tx, seed: int) -> int:
    """Put the strings into every free column of every row; how many values that were."""
    rng, texts, spoiled = random.Random(seed), vectors(), 0
    for table in metadata.sorted_tables:
        ids = [row[0] for row in tx.sql(f"SELECT rowid FROM {table.name}")]
        for column in _free(table):
            for row_id, value in zip(ids, grouped(texts, max(1, len(ids)), rng), strict=True):
                text = f"{value} {row_id}" if column in ("name", "address") else value  # some are unique
                tx.sql(f'UPDATE "{table.name}" SET "{column}" = ? WHERE rowid = ?', (text, row_id))
                spoiled += 1
    for (row_id,) in tx.sql("SELECT rowid FROM visits"):  # of the JSON the visitor's page writes names and values
        params = dict(zip(grouped(texts, PARAMS, rng), grouped(texts, PARAMS, rng), strict=True))
        tx.sql("UPDATE visits SET params = ? WHERE rowid = ?", (json.dumps(params), row_id))
        spoiled += PARAMS
    name = json.dumps("\n".join(texts))
    tx.sql("UPDATE messages SET attachments = replace(attachments, '\"offer.pdf\"', ?)", (name,))
    return spoiled


def _free(table: Table) -> list[str]:
    texts = [column.name for column in table.c if isinstance(column.type, Text)]
    return [name for name in texts if name not in OURS.get(table.name, set())]
