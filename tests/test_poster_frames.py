"""webapi/poster_frames.py: what is packed is read as it was, and nothing that each letter brings takes the slow way."""

from __future__ import annotations

import asyncio
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from relay.core.extras import PayloadExtras
from relay.core.hook import HookSettings
from relay.core.mime import Part
from relay.core.model import Attribution, AttributionState, Candidate
from relay.core.payload import PayloadAttachment, PayloadMessage, PayloadVisit
from relay.store.post import Hook, PostJob, PostResult
from webapi.poster_frames import Answered, Ask, Close, State, Submit, _Pickler, bare, bare_result, pack, read

VISIT = PayloadVisit("123", city="Riga", params=("a", None, None, None, "b"))
EXTRAS = PayloadExtras(
    event="message.received",
    site="shop",
    received_at=2.5,
    written_at=1.5,
    message_id="one@two.test",
    in_reply_to=None,
    references=("a@b.test",),
    mail_from="ann@two.test",
    size=3,
    automatic=None,
    bounce=False,
    html="<p>",
    channel=None,
    candidates=(("123", 0.5),),
    first_touch=VISIT,
    deal_id="17",
    deal_url=None,
    data={"a": [1, None]},
)
JOB = PostJob(
    post_id=1,
    claim="c",
    attempts=2,
    uid="evt_1",
    hook=Hook(1, "https://crm.test/", "sealed", HookSettings(conditions={"size": {"min": 3}}), access="sealed"),
    site_id=3,
    message_id=4,
    created_at=5.5,
    message=PayloadMessage("1", "2", None, "text \udcff", "a@b.test", "c@d.test", (PayloadAttachment("x", "y"),)),
    parts=(Part(0, "a.pdf", "application/pdf", 3, inline=False, start=1, length=4, encoding="base64"),),
    visit=VISIT,
    attribution=Attribution(AttributionState.LIKELY, "pool/2", 1, "123", (Candidate(1, 0.75), Candidate(2, 0.25))),
    extras=EXTRAS,
)
RESULT = PostResult(JOB, "delivered", 0.0, 200, "ok", 1.0, 0.5, ("17", None), digest=b"\x00\xff", size=7)


@pytest.mark.parametrize(
    "message",
    [
        Submit([JOB, replace(JOB, extras=None, visit=None)], frozenset({1, 2})),
        Ask(5, "finish", ([bare_result(RESULT)], 1.5)),
        Ask(6, "due", (1.5,)),
        Answered(5, [bare(JOB)]),
        Answered(6, unavailable="locked"),
        State(frozenset({1}), {1: (2, None)}),
        Close(20.0),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_what_is_packed_is_read_as_it_was(message: object) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(pack(message) * 2)
    assert [await read(reader), await read(reader)] == [message] * 2


def test_of_what_each_letter_brings_nothing_takes_dataclasses_own_way() -> None:
    met = set[type]()

    def meet(value: Any) -> None:
        if isinstance(value, list | tuple):
            for one in value:
                meet(one)
        elif is_dataclass(value):
            met.add(type(value))
            for field in fields(value):
                meet(getattr(value, field.name))

    meet((Submit([JOB], frozenset()), Ask(1, "finish", (RESULT,)), Answered(1)))
    assert len(met) > 10
    assert met <= set(_Pickler.dispatch_table)
