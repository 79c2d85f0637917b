"""Why a delivery waits or is held, in words for who has never read an RFC; the answer itself stands beside them."""

from __future__ import annotations

import re

from relay.core.outcome import Stage

#: An enhanced status code (RFC 3463) in what a server said.
_ENHANCED = re.compile(r"\b[45]\.(\d{1,3}\.\d{1,3})\b")
#: By subject and detail of the enhanced code, which say more than the code before it.
_DETAIL = {
    "1.0": "the address is not accepted there",
    "1.1": "the mailbox does not exist there",
    "1.2": "the domain of the address takes no mail",
    "1.3": "the address is not written as that server wants it",
    "1.6": "the mailbox has moved",
    "1.7": "our return address is not accepted",
    "1.8": "our return address is not accepted",
    "1.10": "the domain says that it takes no mail",
    "2.0": "something is wrong with the mailbox",
    "2.1": "the mailbox is switched off, or takes nothing just now",
    "2.2": "the mailbox is full",
    "2.3": "the message is too large for the mailbox",
    "3.1": "the server has no room left",
    "3.2": "the server takes no mail just now",
    "3.4": "the message is too large for the server",
    "4.1": "the server behind it does not answer",
    "4.2": "the connection is bad",
    "4.3": "the server could not find its way to the mailbox",
    "4.4": "the server could not find its way to the mailbox",
    "4.5": "the server is overloaded",
    "4.6": "the server sees a loop",
    "4.7": "the server behind it took too long",
    "5.3": "too many recipients at once",
    "6.0": "the server cannot deal with the message's form",
    "7.0": "refused by a rule of that server",
    "7.1": "refused by a rule of that server",
    "7.8": "our login is not accepted",
    "7.9": "our kind of login is not accepted",
    "7.10": "the server wants an encrypted connection",
    "7.11": "the server wants an encrypted connection",
    "7.20": "refused for its DKIM signature",
    "7.23": "refused for SPF: that server does not expect mail of this sender from here",
    "7.24": "SPF could not be looked up there",
    "7.25": "refused for our reverse DNS (PTR)",
    "7.26": "refused for SPF, DKIM or DMARC",
    "7.27": "the sender's domain says that it takes no mail",
    "7.28": "too much mail at once for that server",
}
_CODE = {
    421: "the server is not available just now",
    450: "the mailbox is not available just now",
    451: "the server has a trouble of its own",
    452: "the server has no room left just now",
    454: "the server cannot encrypt or check logins just now",
    530: "the server wants a login or encryption first",
    534: "our kind of login is not accepted",
    535: "our login is not accepted",
    550: "refused: the mailbox is not there, or a rule forbids it",
    551: "the mailbox is not there",
    552: "the mailbox is full, or the message too large",
    553: "the address is not accepted there",
    554: "refused by a rule of that server",
    556: "the domain says that it takes no mail",
}
#: Where no answer came: how far the attempt had got.
_STAGE = {
    Stage.DNS: "the server's address could not be looked up",
    Stage.CONNECT: "the server could not be reached",
    Stage.GREETING: "the server did not greet",
    Stage.EHLO: "the server broke off at the beginning",
    Stage.TLS: "no trusted encrypted connection came about",
    Stage.AUTH: "the login did not work",
    Stage.MAIL: "the connection broke off",
    Stage.RCPT: "the connection broke off",
    Stage.DATA: "the connection broke off",
    Stage.CONTENT: "the connection broke off in the middle of the message",
    Stage.FINAL: "the answer to the whole message was lost: it may have arrived",
}


def reason(code: int | None, answer: str | None) -> str:
    """What the last attempt came to.

    >>> reason(550, "RCPT: 550 5.1.1 no such user"), reason(None, "connect: Connection refused"), reason(None, None)
    ('the mailbox does not exist there', 'the server could not be reached', 'not tried yet')
    """
    if answer is None:
        return "not tried yet"
    stage, _, said = answer.partition(": ")
    if code is None:
        known = next((_STAGE[one] for one in Stage if one.value == stage), None)
        return known or ("it could not be sent from here" if stage == "not sent" else "there was no answer")
    if "greylist" in said.lower() or "graylist" in said.lower():
        return "the server asks to come again later (greylisting): this passes by itself"
    enhanced = _ENHANCED.search(said)
    detail = _DETAIL.get(enhanced[1]) if enhanced else None
    general = "refused" if code >= 500 else "the server asks to try again later"
    return detail or _CODE.get(code, general)


def held(code: int | None, answer: str | None) -> str:
    """Why it is held and not tried again: refused for good, or its time is over."""
    stage = (answer or "").partition(":")[0]
    for_good = code is not None and code >= 500 and stage not in _NEVER_FOR_GOOD
    return reason(code, answer) if for_good else f"its time was over; at last {reason(code, answer)}"


#: A refusal there says nothing about the recipient, so it was tried again (core/outcome.py).
_NEVER_FOR_GOOD = frozenset(
    (Stage.GREETING.value, Stage.EHLO.value, Stage.TLS.value, Stage.AUTH.value, Stage.MAIL.value, Stage.DATA.value)
)
