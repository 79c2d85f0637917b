"""A change and its note: both, or an answer that says what was done and a log that says what was not noted."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.store import changes
from relay.store.changes import Change
from relay.store.noting import Note
from tests.webapi_fixtures import Api, serving
from webapi import messages, requeue


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


async def noted(api: Api) -> list[str]:
    return [row.change.action for row in await changes.page(api.w.store.reader, None, None, 100)]


def unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise sqlite3.IntegrityError("no more room for notes")

    monkeypatch.setattr(changes, "note", full)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/tokens", {"name": "crm"}),
        ("POST", "/v1/users", {"name": "bob"}),
        ("PATCH", "/v1/sites/shop", {"tracking": False}),
        ("POST", "/v1/sites", {"name": "garden", "origins": ["https://garden.example"]}),
        ("POST", "/v1/sites/shop/blocked-senders", {"sender": "@spam.example"}),
    ],
)
async def test_what_cannot_be_noted_is_not_done(
    api: Api, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: Any
) -> None:
    admin = await api.token()
    counted = "SELECT (SELECT count(*) FROM tokens), (SELECT count(*) FROM users), (SELECT count(*) FROM sites), "
    counted += "(SELECT count(*) FROM blocked_senders), (SELECT sum(tracking) FROM sites)"
    before = await api.w.store.write(lambda tx: tx.sql(counted))
    with monkeypatch.context() as failing:
        unwritable(failing)
        assert (await api.call(method, path, body, token=admin))[0] >= 500
    assert await api.w.store.write(lambda tx: tx.sql(counted)) == before
    assert (await api.call(method, path, body, token=admin))[0] < 300
    assert await noted(api) == [f"{method} {path.replace('/shop', '/{name}')}"]


async def test_what_is_done_is_no_error_because_its_note_failed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    note = Note(api.w.store, Change(api.w.now, "token", "crm", "POST /v1/x", None, "thing", {"password": "s3cret"}))
    unwritable(monkeypatch)
    with capture_logs() as logs:
        await note.finish()
    (entry,) = logs
    assert (entry["event"], entry["log_level"]) == ("change not noted", "error")
    assert (entry["action"], entry["who"], entry["subject"]) == ("POST /v1/x", "crm", "thing")
    assert "s3cret" not in str(entry)


async def test_a_change_is_noted_once(api: Api) -> None:
    note = Note(api.w.store, Change(api.w.now, "token", "crm", "POST /v1/x"))
    for answer in (False, True, True):
        assert await note.write(lambda tx, answer=answer: answer) is answer  # type: ignore[misc]
    await note.finish()
    assert await noted(api) == ["POST /v1/x"]


async def test_what_fails_midway_is_noted(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of one delivery each; the second fails."""
    admin = await api.token()
    for number in range(2):
        _, substitute = await api.w.shown()
        await api.letter(substitute, number=number)
    await api.w.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'failed'"))
    monkeypatch.setattr(requeue, "STEP", 1)
    retry, calls = requeue.queue_by_hand.retry, []

    def broken(tx: Any, *args: Any) -> list[int]:
        calls.append(args)
        if len(calls) > 1:
            raise sqlite3.IntegrityError("broken")
        return retry(tx, *args)

    monkeypatch.setattr(requeue.queue_by_hand, "retry", broken)
    assert (await api.call("POST", "/v1/queue/retry", {"all": True}, token=admin))[0] >= 500
    assert await noted(api) == ["POST /v1/queue/retry"]


async def test_an_erasure_that_fails_midway_is_noted(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = await api.token()
    _, substitute = await api.w.shown()
    await api.letter(substitute)
    await api.w.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'forwarded'"))
    erase, calls = messages.retention.erase_sender, []

    def broken(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise sqlite3.IntegrityError("broken")
        return erase(*args)

    monkeypatch.setattr(messages.retention, "erase_sender", broken)
    assert (await api.call("DELETE", "/v1/senders/ann@example.org", token=admin))[0] >= 500
    assert await noted(api) == ["DELETE /v1/senders/{address}"]
