"""A next hop that drips its replies: a time limit is for the whole of a reply (RFC 5321 §4.5.3.2), not for an octet."""

from __future__ import annotations

import pytest

from relay.core.model import OutcomeKind
from relay.smtp_out import Timeouts
from tests.sending import send, sending
from tests.smtp_sink import Drip, SmtpSink

#: Which limit bounds the reply at a stage of the sink, and what the operator reads of it.
LIMITS = {
    "connect": ("greeting", "greeting"),
    "ehlo": ("ehlo", "EHLO"),
    "mail": ("mail", "MAIL"),
    "rcpt": ("rcpt", "RCPT"),
    "data": ("data", "DATA"),
    "dot": ("final", "end of data"),
}
PIPELINED = pytest.mark.parametrize("extensions", [["PIPELINING"], []], ids=["pipelined", "stepwise"])


def dripping(stage: str) -> dict[str, Drip]:
    """Two lines at that stage, an octet every 10 ms: 200 ms in all, each line less than that."""
    code = {"connect": 220, "data": 354}.get(stage, 250)
    return {stage: Drip(0.01, f"{code}-one moment\r\n{code} ok")}


@PIPELINED
@pytest.mark.parametrize("stage", LIMITS)
async def test_a_reply_that_drips_past_its_limit_ends_the_attempt(stage: str, extensions: list[str]) -> None:
    limit, named = LIMITS[stage]
    sink = SmtpSink(script=dripping(stage), extensions=extensions)
    async with sink, sending(timeouts=Timeouts(**{limit: 0.1})) as sender:
        outcome = await send(sender, sink)
        assert outcome.text == f"{named}: no answer in 0.1 s"
        assert outcome.kind is (OutcomeKind.AMBIGUOUS if stage == "dot" else OutcomeKind.TEMPORARY)
        assert len(sink.messages) == (stage == "dot")


@PIPELINED
@pytest.mark.parametrize("stage", LIMITS)
async def test_a_reply_that_drips_within_its_limit_is_heard_and_the_mail_delivered(
    stage: str, extensions: list[str]
) -> None:
    async with SmtpSink(script=dripping(stage), extensions=extensions) as sink, sending() as sender:
        outcome = await send(sender, sink)
        assert (outcome.kind, outcome.code) == (OutcomeKind.DELIVERED, 250)
        assert len(sink.accepted) == 1
        assert sender.stats()["idle"] == 1  # nothing of a reply is left over: the session is kept
