"""What a reply, or its absence, means for one recipient: the one place where that is decided.

    stage                       | 2xx       | 4xx       | 5xx       | anything else, or no reply
    ----------------------------+-----------+-----------+-----------+---------------------------
    DNS … MAIL                  | (goes on) | temporary | temporary | temporary
    RCPT                        | (goes on) | temporary | permanent | temporary
    DATA (the command)          | temporary | temporary | temporary | temporary      (354 goes on)
    content (before the dot)    | temporary | temporary | permanent | temporary
    end of data (the final dot) | delivered | temporary | permanent | ambiguous

Why 5xx to the DATA command is temporary: PRODUCT.md makes only "a 5xx to RCPT or after DATA" permanent. With the
recipient refused, 554 "no valid recipients" merely repeats RCPT's answer, which has been classified already. With the
recipient accepted it speaks of the session (503, RFC 5321 §4.3.2) or of a policy that has seen nothing of the message,
and neither says that the mailbox will never take it. Retrying costs little, holding an enquiry costs a person.

Two things before RCPT are permanent all the same, when they are so with each host of the destination, for they are the
letter's own and stay as they are: an address that needs SMTPUTF8 where the next hop does not announce it (RFC 6531
§3.2), and a letter that is too large for it, which 5.3.4 to MAIL says (RFC 1870 §6.1, RFC 3463 §3.4), or 552 where the
letter is larger than EHLO announced: Exim has no enhanced codes. 552 alone can be a full disk.

Why an unintelligible answer to the final dot is ambiguous: the message is out of our hands, and a reply that is not a
refusal does not say that it was refused.
"""

from __future__ import annotations

import re
from enum import StrEnum

from relay.core.model import OutcomeKind


class Stage(StrEnum):
    """How far an attempt came, in order. The value is what an operator reads before the reply."""

    DNS = "DNS"
    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "EHLO"
    TLS = "TLS"
    AUTH = "AUTH"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    CONTENT = "content"
    FINAL = "end of data"


def classify(stage: Stage, code: int | None, is_lasting: bool = False) -> OutcomeKind:
    """The outcome of an attempt that ended at ``stage`` with reply ``code``; None where no usable reply came.

    ``is_lasting``: the trouble is this letter's with this next hop, so that no retry would end otherwise.
    Only for replies that end the attempt: what lets it go on to the next stage is no outcome.
    """
    family = 0 if code is None else code // 100
    if stage is Stage.FINAL:
        return _AFTER_THE_DOT.get(family, OutcomeKind.AMBIGUOUS)
    if is_lasting or (family == 5 and stage in (Stage.RCPT, Stage.CONTENT)):
        return OutcomeKind.PERMANENT
    return OutcomeKind.TEMPORARY


def is_too_large(code: int, text: str, is_beyond: bool) -> bool:
    """Whether the reply to MAIL says that the next hop takes no letter of this size.

    ``is_beyond``: it is larger than what the next hop announced.
    """
    if _ENHANCED.match(text) is None:
        return code == 552 and is_beyond
    return code // 100 == 5 and _TOO_LARGE.match(text) is not None


_ENHANCED = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9])")
_TOO_LARGE = re.compile(r"5\.3\.4(?![0-9])")
_AFTER_THE_DOT = {2: OutcomeKind.DELIVERED, 4: OutcomeKind.TEMPORARY, 5: OutcomeKind.PERMANENT}
