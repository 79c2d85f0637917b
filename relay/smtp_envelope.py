"""The arguments of MAIL, RCPT and BDAT: what they say, or the reply that refuses them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from relay.core import reply
from relay.core.address import AddressError, ParameterError, Parameters, parse_mail, parse_rcpt
from relay.core.model import Address
from relay.core.reply import Reply

# bdat-cmd = "BDAT" SP chunk-size [ SP end-marker ] CR LF ; chunk-size = 1*DIGIT ; end-marker = "LAST" (RFC 3030 §2)
_chunk = re.compile(r"([0-9]{1,20})(?: +(LAST))?", re.IGNORECASE).fullmatch


@dataclass(frozen=True, slots=True)
class Mail:
    """``sender``: None for the null reverse-path. ``size``: octets as declared, 0 when not said (RFC 1870)."""

    sender: Address | None
    size: int
    smtputf8: bool


def mail(argument: str) -> Mail | Reply:
    """What stands behind MAIL (RFC 5321 §4.1.1.2). BODY makes no difference: 8-bit data always pass (RFC 6152)."""
    if argument[:5].upper() != "FROM:":
        return reply.SYNTAX_ERROR
    try:
        sender, parameters = parse_mail(argument[5:])
    except ParameterError:
        return reply.BAD_PARAMETERS
    except AddressError:
        return reply.BAD_SENDER
    if parameters and (refusal := _refuse(parameters)) is not None:
        return refusal
    smtputf8 = "SMTPUTF8" in parameters
    if not smtputf8 and not argument.isascii():
        return reply.NON_ASCII_ADDRESS
    return Mail(sender, int(parameters.get("SIZE") or 0), smtputf8)


def rcpt(argument: str, smtputf8: bool) -> Address | Literal["postmaster"] | Reply:
    """What stands behind RCPT (RFC 5321 §4.1.1.3). No parameter is taken: none is announced."""
    if argument[:3].upper() != "TO:":
        return reply.SYNTAX_ERROR
    try:
        recipient, parameters = parse_rcpt(argument[3:])
    except ParameterError:
        return reply.BAD_PARAMETERS
    except AddressError:
        return reply.BAD_RECIPIENT
    if parameters:
        return reply.UNKNOWN_PARAMETER
    if not smtputf8 and not argument.isascii():
        return reply.NON_ASCII_ADDRESS
    return recipient if isinstance(recipient, Address) else "postmaster"


def bdat(argument: str) -> tuple[int, bool] | None:
    """What stands behind BDAT: how many octets follow, and whether they are the last; None when there is no telling."""
    match = _chunk(argument)
    return (int(match[1]), match[2] is not None) if match else None


def _refuse(parameters: Parameters) -> Reply | None:
    for keyword, value in parameters.items():
        if keyword == "SIZE":  # RFC 1870 §4: 1*20DIGIT
            if value is None or len(value) > 20 or not value.isdecimal():
                return reply.BAD_PARAMETERS
        elif keyword == "BODY":
            if value is None or value.upper() not in ("7BIT", "8BITMIME"):
                return reply.BAD_BODY
        elif keyword == "SMTPUTF8":
            if value is not None:
                return reply.BAD_PARAMETERS
        else:
            return reply.UNKNOWN_PARAMETER
    return None
