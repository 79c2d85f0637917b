"""The list of messages: every filter alone and for readers who see only some sites, and by which index it is read."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.sql import ClauseElement

from relay.store import engine, history, queue, search
from relay.store.history import Filter
from relay.store.schema import messages
from tests.store_fixtures import template, world

NOBODY = frozenset({99})


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"query": "brass"},
        {"state": "queued"},
        {"sender": "alice@example.org"},
        {"visit": "VISIT"},
        {"since": 0.0, "until": 1e12},
    ],
    ids=str,
)
async def test_a_filter_finds_the_same_for_all_and_for_the_site_and_nothing_for_strangers(
    tmp_path: Path, wanted: dict[str, object]
) -> None:
    async with world(tmp_path) as w:
        bound = await w.bind()
        accepted = await w.accept(bound.substitutes[w.target().id])
        await w.extract(accepted.message_id, text="brass lamps")
        await w.store.write(search.index)
        if "sender" in wanted:
            ((wanted["sender"],),) = await w.store.reader.all(select(messages.c.sender))
        if "visit" in wanted:
            wanted = {"visit": bound.visit}
        for sites, expected in ((None, [1]), (frozenset({1}), [1]), (NOBODY, [])):
            found = await history.page(w.store.reader, Filter(sites=sites, **wanted), 10)  # type: ignore[arg-type]
            assert [row.id for row in found] == expected, (sites, wanted)


def plan(statement: ClauseElement) -> list[str]:
    compiled = statement.compile(dialect=engine._DIALECT, compile_kwargs={"render_postcompile": True})
    with contextlib.closing(sqlite3.connect(f"{template().as_uri()}?mode=ro", uri=True)) as database:
        return [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {compiled}", compiled.params)]


@pytest.mark.parametrize("sites", [None, frozenset({1}), frozenset({1, 2})])
@pytest.mark.parametrize("state", ["queued", "deferred", "failed", "looped", "dropped"])
def test_messages_that_are_not_forwarded_are_found_by_their_index(sites: frozenset[int] | None, state: str) -> None:
    conditions = history._conditions(Filter(sites=sites, state=state))
    steps = plan(select(messages.c.id).where(*conditions).order_by(messages.c.id.desc()))
    assert re.match("SEARCH messages USING .*ix_messages_unfinished", steps[0]), steps


@pytest.mark.parametrize("sites", [None, frozenset({1}), frozenset({1, 2})])
def test_messages_of_a_visit_are_not_looked_for_among_all(sites: frozenset[int] | None) -> None:
    steps = plan(select(messages.c.id).where(*history._conditions(Filter(sites=sites, visit="1"))))
    assert "SCAN messages" not in steps


def test_the_queue_is_listed_from_what_waits_or_is_held() -> None:
    steps = plan(queue.listing())
    assert {step for step in steps if step.startswith("SCAN")} == {
        "SCAN deliveries USING INDEX ix_deliveries_open",
        "SCAN deliveries USING INDEX ix_deliveries_held",
    }
