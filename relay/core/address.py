"""Mailbox addresses as SMTP writes them, and the keys under which we look recipients up.

The grammar (RFC 5321 §4.1.2, widened by RFC 6531 §3.3), less address literals, which a sender alone may have::

    Reverse-path  = Path / "<>"
    Forward-path  = Path / "<Postmaster>"
    Path          = "<" [ A-d-l ":" ] Mailbox ">"
    A-d-l         = At-domain *( "," At-domain )        ; source route: accepted and ignored (App. C)
    At-domain     = "@" Domain
    Mailbox       = Local-part "@" Domain
    Local-part    = Dot-string / Quoted-string
    Dot-string    = Atom *("." Atom)
    Atom          = 1*atext                             ; atext =/ UTF8-non-ascii
    Quoted-string = DQUOTE *QcontentSMTP DQUOTE
    QcontentSMTP  = %d32-33 / %d35-91 / %d93-126 / UTF8-non-ascii / "\\" %d32-126
    Domain        = sub-domain *("." sub-domain)        ; sub-domain =/ U-label
    sub-domain    = Let-dig [*( Let-dig / "-" ) Let-dig]
    Mail-parameters = esmtp-param *(SP esmtp-param)
    esmtp-param   = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-") ["=" 1*(%d33-60 / %d62-126)]

Two liberties, both taken by Postfix as well and needed by real clients: spaces before the path, and a path without
its angle brackets. Every expression below is anchored and possessive, so its time is linear.
"""

from __future__ import annotations

import re
from functools import lru_cache

import idna

from relay.core.model import Address, fold

#: Octets of a local part as it stands on the wire, quotes included (RFC 5321 §4.5.3.1.1).
MAX_LOCAL = 64
#: Octets of a domain. RFC 5321 §4.5.3.1.2 says 255, but that is DNS's own encoding; as text no name exceeds 253.
MAX_DOMAIN = 253
#: Octets of a mailbox: a path of 256 less its brackets (RFC 5321 §4.5.3.1.3).
MAX_PATH = 254
#: Octets of a sender's path: as many as RFC 5321 §4.5.3.1.4 gives a whole command line. Those above are the least that
#: must be taken (§4.5.3.1), and SRS and VERP put a whole address into a local part.
MAX_SENDER = 512
#: Plus signs at which a local part is cut for look-ups.
MAX_TAG_CUTS = 8

Parameters = dict[str, str | None]

# UTF8-non-ascii without C1 controls, line and paragraph separators, and lone surrogates (octets that were no UTF-8).
_UTF8 = "\u00a0-\u2027\u202a-\ud7ff\ue000-\U0010ffff"
_ATEXT = r"A-Za-z0-9!#$%&'*+\-/=?^_`{|}~"
_DOT_STRING = rf"[{_ATEXT}{_UTF8}]++(?:\.[{_ATEXT}{_UTF8}]++)*+"
_QUOTED_STRING = rf'"((?:[ !#-\[\]-~{_UTF8}]|\\[ -~])*+)"'
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"

_mailbox = re.compile(rf"(?:({_DOT_STRING})|{_QUOTED_STRING})@(.*)", re.DOTALL).fullmatch
_domain_name = re.compile(rf"{_LABEL}(?:\.{_LABEL})*+").fullmatch
_parameter = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*+)(?:=([!-<>-~]++))?").fullmatch
_bracketed = re.compile(r'<((?:[^"<>]|"(?:[^"\\]|\\.)*+")*+)>(?: (.*))?', re.DOTALL).fullmatch
# The ordinary path, nine of ten in real traffic: an ASCII dot-string, no route, no quotes.
_simple = re.compile(rf" *+<([{_ATEXT}]++(?:\.[{_ATEXT}]++)*+)@([A-Za-z0-9.-]++)>(?: (.*))?", re.DOTALL).fullmatch
_odd_sender = re.compile(
    rf"([{_ATEXT}{_UTF8}.]++)@(?:([A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)*+|\[[0-9A-Fa-f.:IPVipv]++\])|([^@\[]++))",
    re.DOTALL,
).fullmatch
_needless_quotes = re.compile(rf'"([{_ATEXT}{_UTF8}.]++)"').fullmatch
_unescape = re.compile(r"\\(.)").sub
_control = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]").search


class AddressError(ValueError):
    """What was given is not an address we take; the message says what is wrong with it."""


class ParameterError(AddressError):
    """The path is fine, the ESMTP parameters behind it are not."""


def parse(text: str, *, utf8: bool = True) -> Address:
    """A Mailbox (``local@domain``) as an Address: local part unquoted, domain as lower-case A-labels.

    ``utf8=False`` refuses anything beyond ASCII. Raises AddressError.
    """
    if not utf8 and not text.isascii():
        raise AddressError("not ASCII")
    match = _mailbox(text)
    if match is None:
        raise AddressError(_local_fault(text))
    plain, quoted, domain = match.groups()
    if plain is not None:
        return _address(len(plain.encode()), plain, domain)
    return _address(len(quoted.encode()) + 2, _unescape(r"\1", quoted), domain)


def parse_mail(argument: str) -> tuple[Address | None, Parameters]:
    """What follows ``MAIL FROM:``: the reverse-path (None for ``<>``) and the parameters by upper-case keyword.

    Raises AddressError for the path, ParameterError for the parameters.
    """
    ordinary = _ordinary(argument)
    if ordinary is not None:
        return ordinary
    path, rest = _cut_path(argument)
    return _sender(_without_route(path)) if path else None, _parameters(rest)


def _sender(path: str) -> Address:
    """A sender's address, or what real carriers and servers use for one.

    That is odd dots (old addresses of Japanese carriers have two in a row or one at the end), underscores and outer
    hyphens in the domain, an address literal, any length up to MAX_SENDER. Refusing those would lose enquiries, and
    Postfix takes them too; their return path is a token (relay/envelope.py). Raises AddressError.
    """
    try:
        return parse(path)
    except AddressError:
        odd = _odd(path)
        if odd is None:
            raise
        return odd


def is_odd_sender(text: str) -> bool:
    """Whether it is the address of a sender that no recipient could have: taken, but not by ``parse``."""
    try:
        parse(text)
    except AddressError:
        return _odd(text) is not None
    return False


def sender_key(sender: str) -> str:
    """A sender, or the domain of one as "@example.com", as blocked senders are kept and looked up.

    In lower case, the domain as A-labels where it is a name, and without quotes that nothing but dots needs: a From
    field and a reverse-path may write the same sender in several ways. Raises nothing.

    >>> sender_key("Ann@Bücher.example")
    'ann@xn--bcher-kva.example'
    """
    local, at, domain = sender.rpartition("@")
    if not at:
        return sender.lower()
    try:
        name = _domain(domain)
    except AddressError:  # an address literal, or a name that DNS has all the same
        name = domain.lower()
    quoted = _needless_quotes(local)
    return f"{(quoted[1] if quoted else local).lower()}@{name}"


def parse_rcpt(argument: str) -> tuple[Address | str, Parameters]:
    """What follows ``RCPT TO:``: the forward-path and the parameters by upper-case keyword.

    ``<postmaster>`` without a domain, in any case, is the string "postmaster" (RFC 5321 §4.1.1.3).
    Raises AddressError for the path, ParameterError for the parameters.
    """
    ordinary = _ordinary(argument)
    if ordinary is not None:
        return ordinary
    path, rest = _cut_path(argument)
    if fold(path) == "postmaster":
        return "postmaster", _parameters(rest)
    return parse(_without_route(path)), _parameters(rest)


def domain_of(text: str) -> str:
    """A domain name as lower-case A-labels. Raises AddressError.

    U-labels are mapped and encoded by UTS 46 and IDNA 2008; labels that arrive in ASCII are only checked to be
    letters, digits and inner hyphens: whether such a name exists is for DNS to say.
    """
    return _domain(text)


def written_domain(domain: str) -> str:
    """The inverse of domain_of: a domain in U-labels, as people write it; one with a broken A-label stays as it is.

    >>> written_domain("mail.xn--bcher-kva.example")
    'mail.bücher.example'
    """
    try:
        return ".".join(idna.ulabel(label) if label.startswith("xn--") else label for label in domain.split("."))
    except UnicodeError:  # idna.IDNAError is one
        return domain


def lookup_keys(address: Address) -> tuple[tuple[str, str, str | None], ...]:
    """(domain, folded local part, tag) in the order to try them: the exact address, then each plus tag cut off.

    The longest base comes first, an empty base never. Only the first MAX_TAG_CUTS plus signs count, so that a
    local part of plus signs can't buy 64 look-ups.
    """
    domain, local = address.domain, fold(address.local)
    if "+" not in local:
        return ((domain, local, None),)
    pieces = local.split("+", MAX_TAG_CUTS)
    keys: list[tuple[str, str, str | None]] = [(domain, local, None)]
    for cut in range(len(pieces) - 1, 0, -1):
        base = "+".join(pieces[:cut])
        if base:
            keys.append((domain, base, "+".join(pieces[cut:])))
    return tuple(keys)


def _odd(path: str) -> Address | None:
    match = _odd_sender(path)
    if match is None:
        return None
    local, odd, name = match.groups()
    try:
        address = Address(local, odd.lower() if odd else _domain(name))
    except AddressError:
        return None
    return address if len(f"{local}@{address.domain}".encode()) <= MAX_SENDER else None


def _ordinary(argument: str) -> tuple[Address, Parameters] | None:
    """An ordinary path that is an address, with its parameters; None for any other. Raises ParameterError."""
    match = _simple(argument)
    if match is None:
        return None
    local, domain, rest = match.groups()
    try:
        address = _address(len(local), local, domain)
    except AddressError:
        return None
    return address, _parameters(rest) if rest else {}


def _address(wire_length: int, local: str, domain: str) -> Address:
    if wire_length > MAX_LOCAL:
        raise AddressError(f"local part longer than {MAX_LOCAL} octets")
    name = _domain(domain)
    if wire_length + 1 + len(name) > MAX_PATH:
        raise AddressError(f"address longer than {MAX_PATH} octets")
    return Address(local, name)


@lru_cache(maxsize=4096)
def _domain(text: str) -> str:
    name = text
    if len(name) <= MAX_DOMAIN and not name.isascii():  # measured first: the mapping must not be given a novel
        if _control(name) is not None:
            raise AddressError("control character in domain")
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except UnicodeError as error:  # idna.IDNAError is one
            raise AddressError("domain is not a valid internationalised name") from error
    if len(name) > MAX_DOMAIN:
        raise AddressError(f"domain longer than {MAX_DOMAIN} octets")
    if _domain_name(name) is None:
        raise AddressError(_domain_fault(name))
    return name.lower()


def _cut_path(argument: str) -> tuple[str, str]:
    """The path without its brackets ("" for ``<>``) and the text of the parameters."""
    text = argument.lstrip(" ")
    if text.startswith("<"):
        match = _bracketed(text)
        if match is None:
            raise AddressError("path is not closed by '>'")
        path, rest = match.groups()
        return path, rest or ""
    path, _, rest = text.partition(" ")
    if not path:
        raise AddressError("no address")
    return path, rest


def _without_route(path: str) -> str:
    if not path.startswith("@"):
        return path
    route, colon, mailbox = path.partition(":")
    if not colon:
        raise AddressError("no local part")
    for hop in route.split(","):
        if not hop.startswith("@"):
            raise AddressError("source route is not a list of @domain")
        _domain(hop[1:])
    return mailbox


def _parameters(text: str) -> Parameters:
    found: Parameters = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _parameter(word)
        if match is None:
            raise ParameterError("parameter is not KEYWORD or KEYWORD=value")
        keyword = match[1].upper()
        if keyword in found:
            raise ParameterError(f"parameter {keyword[:40]} given twice")
        found[keyword] = match[2]
    return found


def _local_fault(text: str) -> str:
    """Why ``text`` has no local part that we take, in a few words."""
    if not text:
        return "no address"
    if _control(text) is not None:
        return "control character or invalid UTF-8"
    if text.startswith('"'):
        return "quoted local part is not closed, or not followed by @"
    local, at, _ = text.partition("@")
    if not at:
        return "no @"
    if not local:
        return "no local part"
    if local.startswith(".") or local.endswith(".") or ".." in local:
        return "dot at the start or end of the local part, or two in a row"
    return "character in the local part that needs quoting"


def _domain_fault(name: str) -> str:
    """Why ``name`` is not a domain, in a few words."""
    if not name:
        return "no domain"
    if _control(name) is not None:
        return "control character in domain"
    if name.startswith("["):
        return "address literals are not taken"
    if "@" in name:
        return "more than one @"
    labels = name.split(".")
    if "" in labels:
        return "empty label in domain"
    if any(len(label) > 63 for label in labels):
        return "domain label longer than 63 octets"
    return "domain label is not letters, digits and inner hyphens"
