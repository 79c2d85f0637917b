"""The path grammar of RFC 5321: the isemail corpus, tables of paths as clients send them, and round trips."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.core.address import (
    MAX_TAG_CUTS,
    AddressError,
    ParameterError,
    domain_of,
    lookup_keys,
    parse,
    parse_mail,
    parse_rcpt,
    sender_key,
    written_domain,
)
from relay.core.model import Address, folded
from tests.corpora import corpus
from tests.linear import linear
from tests.smtp_client import LONG_SENDER

# ── the corpus ───────────────────────────────────────────────────────────────────────────────────────────────────
#
# isemail gives each address a category. We take the ones that are Mailboxes by RFC 5321 §4.1.2, and nothing that
# only RFC 5322 knows (comments, folding, obsolete forms), which is for header fields and never for an envelope.
#
#   VALID_CATEGORY  accepted
#   DNSWARN         accepted: the grammar is fine, DNS is asked elsewhere
#   RFC5321         accepted: quoted strings, top-level domains alone or of digits; deviation: address literals (below)
#   CFWS, DEPREC, RFC5322, ERR  refused

ACCEPTED = {"ISEMAIL_VALID_CATEGORY", "ISEMAIL_DNSWARN", "ISEMAIL_RFC5321"}

#: Verdicts from which we deviate, by diagnosis, each with its reason.
DEVIATIONS = {
    # No route, pool or SRS address can be on a literal; a sender, whom parse_mail reads, may have one.
    "ISEMAIL_RFC5321_ADDRESSLITERAL": "refused",
    # The same addresses in the older spelling of "::" for one group (isemail's category for some of them is RFC5321).
    "ISEMAIL_RFC5321_IPV6DEPRECATED": "refused",
}


def isemail(file: str) -> list[tuple[str, str, str, str]]:
    """(id, address, category, diagnosis); the corpus writes control characters as their symbols at U+2400."""
    controls = {0x2400 + code: code for code in range(32)}
    tests = ElementTree.parse(corpus("address-isemail") / file).getroot().findall("test")
    return [
        (
            str(test.get("id")),
            (test.findtext("address") or "").translate(controls),
            test.findtext("category") or "",
            test.findtext("diagnosis") or "",
        )
        for test in tests
    ]


@pytest.mark.parametrize(("file", "count"), [("tests.xml", 164), ("tests-original.xml", 279)])
def test_the_isemail_corpus_is_judged_by_category_but_for_address_literals(file: str, count: int) -> None:
    entries = isemail(file)
    assert len(entries) == count
    wrong = []
    for number, text, category, diagnosis in entries:
        expected = category in ACCEPTED and DEVIATIONS.get(diagnosis) != "refused"
        try:
            address = parse(text)
        except AddressError:
            accepted = False
        else:
            accepted = True
            assert parse(str(address)) == address
        if accepted != expected:
            wrong.append((number, text, category, diagnosis))
    assert wrong == []


@pytest.mark.parametrize("file", ["tests.xml", "tests-original.xml"])
def test_in_angle_brackets_the_corpus_is_judged_as_without_them(file: str) -> None:
    for _, text, _, _ in isemail(file):
        if text.startswith("@") or not text:
            continue  # in brackets that is a source route, or the null path
        try:
            expected: Address | None = parse(text)
        except AddressError:
            expected = None
        for read in (parse_mail, parse_rcpt):
            try:
                found, parameters = read(f"<{text}>")
            except AddressError:
                assert expected is None, text
            else:
                if expected is None and read is parse_mail:
                    assert isinstance(found, Address)
                    odd = ".." in f".{found.local}." or set("_-[") & set(found.domain) or len(text) > 64
                    assert odd, text  # the senders that we take all the same
                else:
                    assert (found, parameters) == (expected, {})


# ── mailboxes ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("alice@example.com", "alice", "example.com"),
        ("Alice.B+tag@EXAMPLE.Com", "Alice.B+tag", "example.com"),
        ('"a b"@example.com', "a b", "example.com"),
        (r'"a\"b\\c\d"@example.com', r'a"b\cd', "example.com"),
        ('"a@b"@example.com', "a@b", "example.com"),
        ('""@example.com', "", "example.com"),
        ("alice@localhost", "alice", "localhost"),
        ("alice@bücher.example", "alice", "xn--bcher-kva.example"),
        ("alice@BÜCHER。example", "alice", "xn--bcher-kva.example"),
        ("alice@XN--BCHER-KVA.example", "alice", "xn--bcher-kva.example"),
        ("alice@почта.рф", "alice", "xn--80a1acny.xn--p1ai"),
        ("alice@faß.example", "alice", "xn--fa-hia.example"),
        ("почта@example.com", "почта", "example.com"),
        ('"п о"@example.com', "п о", "example.com"),
        ("henryⅣ@example.com", "henryⅣ", "example.com"),
    ],
)
def test_a_mailbox_is_unquoted_and_its_domain_made_lower_case_a_labels(text: str, local: str, domain: str) -> None:
    assert parse(text) == Address(local, domain)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no address"),
        ("alice", "no @"),
        ("@example.com", "no local part"),
        ("alice@", "no domain"),
        (".alice@example.com", "dot"),
        ("alice.@example.com", "dot"),
        ("al..ice@example.com", "dot"),
        ("al ice@example.com", "needs quoting"),
        ("<alice@example.com>", "needs quoting"),
        ('"alice@example.com', "quoted"),
        ('"alice"x@example.com', "quoted"),
        ("alice@b@example.com", "more than one @"),
        ("alice@[192.0.2.1]", "literal"),
        ("alice@example..com", "empty label"),
        ("alice@example.com.", "empty label"),
        ("alice@-a.com", "letters, digits"),
        ("alice@a-.com", "letters, digits"),
        ("alice@xn---", "letters, digits"),
        ("alice@a_b.com", "letters, digits"),
        ("alice@a b.com", "letters, digits"),
        ("alice@" + "a" * 64 + ".com", "63"),
        ("a" * 65 + "@example.com", "64"),
        ('"' + "a" * 63 + '"@example.com', "64"),
        ("п" * 33 + "@example.com", "64"),
        ("alice@" + ".".join(["a" * 50] * 5), "domain longer"),
        ("a" * 64 + "@" + ".".join(["a" * 49] * 4), "address longer"),
        ("alice@" + "ü" * 300, "domain longer"),
        ("alice@" + "ü" * 100, "internationalised"),
        ("alice@ü-.example", "internationalised"),
        ("alice@\u0301a.example", "internationalised"),
        ("al\0ice@example.com", "control"),
        ("al\rice@example.com", "control"),
        ("alice@example.com\r\nRCPT TO:<x@y>", "control"),
        ("alice@example.com\n", "control"),
        ("alice@exam\0ple.com", "control"),
        ("al\x7fice@example.com", "control"),
        ("al\x85ice@example.com", "control"),
        ("al\u2028ice@example.com", "control"),
        ("al\udcffice@example.com", "invalid UTF-8"),
        ("alice@\udcff.example", "control"),
        ("alice@ü\x00.example", "control"),
    ],
)
def test_what_is_no_mailbox_is_refused_with_what_is_wrong(text: str, fault: str) -> None:
    with pytest.raises(AddressError, match=fault):
        parse(text)


def test_the_longest_parts_are_still_taken() -> None:
    assert parse("a" * 64 + "@example.com").local == "a" * 64
    assert len(str(parse("a" * 64 + "@" + ".".join(["a" * 49, "a" * 49, "a" * 49, "a" * 39])))) == 254
    assert domain_of(".".join(["a" * 63, "a" * 63, "a" * 63, "a" * 61])) == ".".join(["a" * 63] * 3 + ["a" * 61])


def test_without_utf8_only_ascii_is_taken() -> None:
    assert parse("alice@example.com", utf8=False) == Address("alice", "example.com")
    for text in ("почта@example.com", "alice@bücher.example"):
        with pytest.raises(AddressError, match="not ASCII"):
            parse(text, utf8=False)


@pytest.mark.parametrize(
    ("text", "name"), [("Example.COM", "example.com"), ("Bücher.example", "xn--bcher-kva.example")]
)
def test_a_domain_from_configuration_is_normalised(text: str, name: str) -> None:
    assert domain_of(text) == name


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("example.com", "example.com"),
        ("mail.xn--bcher-kva.example", "mail.bücher.example"),
        ("xn--d1aqf.xn--p1ai", "дом.рф"),
        ("xn--a.xn--bcher-kva.example", "xn--a.xn--bcher-kva.example"),
    ],
)
def test_a_domain_is_written_in_u_labels_where_it_has_such(name: str, written: str) -> None:
    assert written_domain(name) == written
    assert domain_of(written) == name


@pytest.mark.parametrize("text", ["", ".", "a.", "[192.0.2.1]", "a@b", "a b", "a\n", "ü" * 64 + ".de"])
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        domain_of(text)


# ── paths and parameters ─────────────────────────────────────────────────────────────────────────────────────────

ALICE = Address("alice", "example.com")


@pytest.mark.parametrize(
    ("argument", "sender", "parameters"),
    [
        ("<alice@example.com>", ALICE, {}),
        (" <alice@example.com>", ALICE, {}),
        ("  <alice@example.com>", ALICE, {}),
        ("   alice@example.com  SIZE=1", ALICE, {"SIZE": "1"}),
        ("<alice@example.com> ", ALICE, {}),
        ("<alice@EXAMPLE.com> size=1000 Body=8BITMIME", ALICE, {"SIZE": "1000", "BODY": "8BITMIME"}),
        ("<alice@example.com>  SMTPUTF8 ", ALICE, {"SMTPUTF8": None}),
        ("<alice@example.com> X-a-1=<>~", ALICE, {"X-A-1": "<>~"}),
        ("<>", None, {}),
        (" <>", None, {}),
        ("  <>", None, {}),
        ("<> SIZE=1", None, {"SIZE": "1"}),
        ("<@one.example,@two.example:alice@example.com>", ALICE, {}),
        ('<@one.example:"a:b@c"@example.com> SIZE=1', Address("a:b@c", "example.com"), {"SIZE": "1"}),
        (r'<"a>\" b"@example.com> SIZE=1', Address('a>" b', "example.com"), {"SIZE": "1"}),
        ("<почта@bücher.example> SMTPUTF8", Address("почта", "xn--bcher-kva.example"), {"SMTPUTF8": None}),
        ("alice@example.com", ALICE, {}),
        (" alice@example.com SIZE=1", ALICE, {"SIZE": "1"}),
    ],
)
def test_a_reverse_path_is_read_with_its_parameters(
    argument: str, sender: Address | None, parameters: dict[str, str | None]
) -> None:
    assert parse_mail(argument) == (sender, parameters)
    if sender is not None:
        assert parse_rcpt(argument) == (sender, parameters)


@pytest.mark.parametrize("argument", ["<postmaster>", " <PostMaster>", "  <postmaster>", "postmaster", "<POSTMASTER> "])
def test_postmaster_needs_no_domain_as_recipient(argument: str) -> None:
    assert parse_rcpt(argument) == ("postmaster", {})
    with pytest.raises(AddressError):
        parse_mail(argument)


def test_postmaster_may_have_parameters() -> None:
    assert parse_rcpt("<Postmaster> NOTIFY=NEVER") == ("postmaster", {"NOTIFY": "NEVER"})


@pytest.mark.parametrize("argument", ["<>", " <>", "<> NOTIFY=NEVER"])
def test_the_null_path_is_no_recipient(argument: str) -> None:
    with pytest.raises(AddressError, match="no address"):
        parse_rcpt(argument)


@pytest.mark.parametrize(
    "argument",
    [
        "",
        " ",
        "<",
        ">",
        "<alice@example.com",
        "alice@example.com>",
        "<alice@example.com>SIZE=1",
        "<alice@example.com>>",
        "<<alice@example.com>>",
        "<alice>",
        "< alice@example.com>",
        "<alice@example.com >",
        "<alice@example.com\r>",
        "<alice@example.com>\r\nDATA",
        '<"alice@example.com>',
        "<@one.example>",
        "<@:alice@example.com>",
        "<@one.example,two.example:alice@example.com>",
        "<@one..example:alice@example.com>",
        "<@one.example:>",
        "<alice@[192.0.2.1>",
        "<alice@[x.example]>",
        "<alice@[]>",
    ],
)
def test_what_is_no_path_is_refused(argument: str) -> None:
    for read in (parse_mail, parse_rcpt):
        with pytest.raises(AddressError):
            read(argument)


@pytest.mark.parametrize(
    "rest",
    ["=", "SIZE=", "-A=1", "A_B=1", "SIZE=1=2", "SIZE=1 size=2", "X=a\tb", "X=ü", "ü", "X=a\x00", "X=\x7f", "X=1\n"],
)
def test_bad_parameters_are_told_apart_from_bad_paths(rest: str) -> None:
    for path in ("<alice@example.com>", '<"alice"@example.com>'):
        for read in (parse_mail, parse_rcpt):
            with pytest.raises(ParameterError):
                read(f"{path} {rest}")


# ── look-ups ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("local", "keys"),
    [
        ("sales", [("sales", None)]),
        ("Sales", [("sales", None)]),
        ("Sales+A+1", [("sales+a+1", None), ("sales+a", "1"), ("sales", "a+1")]),
        ("sales+", [("sales+", None), ("sales", "")]),
        ("+1", [("+1", None)]),
        ("++1", [("++1", None), ("+", "1")]),
        ("a++b", [("a++b", None), ("a+", "b"), ("a", "+b")]),
    ],
)
def test_look_up_goes_from_the_exact_address_to_the_shortest_base(
    local: str, keys: list[tuple[str, str | None]]
) -> None:
    assert lookup_keys(Address(local, "x.example")) == tuple(("x.example", base, tag) for base, tag in keys)


def test_a_local_part_of_plus_signs_buys_few_look_ups_and_still_finds_its_shortest_base() -> None:
    keys = lookup_keys(Address("sales" + "+" * 59, "x.example"))
    assert len(keys) == 1 + MAX_TAG_CUTS
    assert keys[-1] == ("x.example", "sales", "+" * 58)


# ── properties ───────────────────────────────────────────────────────────────────────────────────────────────────

atext = "abcxyzABCXYZ019!#$%&'*+-/=?^_`{|}~üЖ中😀"
atoms = st.text(atext, min_size=1, max_size=6)
dot_strings = st.lists(atoms, min_size=1, max_size=3).map(".".join)
anything_printable = st.text(st.sampled_from(atext + ' .@<>()[]\\,;:"'), max_size=12)
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
domains = st.lists(labels, min_size=1, max_size=4).map(".".join)
addresses = st.builds(Address, dot_strings | anything_printable, domains)


@settings(max_examples=100, deadline=None)
@given(addresses)
def test_an_address_written_out_reads_back_as_itself(address: Address) -> None:
    text = str(address)
    assert parse(text) == address
    assert parse_mail(f"<{text}> SIZE=1") == (address, {"SIZE": "1"})
    assert parse_rcpt(f" <{text}>") == (address, {})


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.text(st.sampled_from('ab.@"\\<>:, +=é\r\n\0'), max_size=30))
@example('"\\"@a')
@example("a@xn--\u00e9.b")
def test_whatever_is_given_is_taken_whole_or_refused_as_an_address_error(text: str) -> None:
    try:
        address = parse(text)
    except AddressError:
        pass
    else:
        assert parse(str(address)) == address
        assert not set("\0\r\n") & set(str(address))
        assert address.domain == domain_of(address.domain)
    for read in (parse_mail, parse_rcpt):
        try:
            read(text)
        except AddressError:
            pass


@pytest.mark.parametrize(
    ("address", "sender"),
    [
        ("Ann.Lee@Example.ORG", "ann.lee@example.org"),
        ("ÄNN@x.org", "Änn@x.org"),
        ('"A@B"@X.org', '"a@b"@x.org'),
        (" ann@x.org\n", "ann@x.org"),
        ("@X.org", "@X.org"),
        ("Nobody", "Nobody"),
        ("", ""),
    ],
)
def test_a_sender_is_folded_as_it_is_stored(address: str, sender: str) -> None:
    assert folded(address) == sender


@pytest.mark.parametrize(
    ("begin", "unit", "end"),
    [
        ("<", "a.", ""),
        ('<"', "a", ""),
        ('<"', "\\a", ""),
        ("<", '"a"', ""),
        ("<", '"', ""),
        ("<a@", "a-", ">"),
        ("<a@", "a.", ">"),
        ("<", "@a,", ">"),
        ("<a@b.c> ", "A", "="),
        ("<a@b.c> ", " ", "="),
    ],
)
def test_hostile_paths_are_refused_in_linear_time(begin: str, unit: str, end: str) -> None:
    text = begin + unit * (500_000 // len(unit)) + end
    for read in (parse_mail, parse_rcpt):
        with linear(), pytest.raises(AddressError):  # a quadratic expression takes a quarter of an hour
            read(text)


@pytest.mark.parametrize(
    "path",
    [
        "<a..b@docomo.ne.jp>",
        "<name.@docomo.ne.jp>",
        "<.n@x.test>",
        "<a@under_score.test>",
        "<a@web1-.example.com>",
        "<a@-web1.example.com>",
        "<a@[192.0.2.1]>",
        "<a@[ipv6:2001:db8::1]>",
        f"<{LONG_SENDER}>",
        "<" + "a" * 505 + "@x.test>",
        "<" + "я" * 33 + "@x.test>",
        "<" + "я" * 252 + "a@x.test>",
        "<я..@x.test>",
        "<я@[192.0.2.1]>",
    ],
)
def test_senders_that_real_servers_use_are_taken_though_a_recipient_may_not_be_so(path: str) -> None:
    sender, parameters = parse_mail(path + " SIZE=1")
    assert sender is not None
    assert f"<{sender.local}@{sender.domain}>" == path
    assert parameters == {"SIZE": "1"}
    with pytest.raises(AddressError):
        parse_rcpt(path)


def test_the_domain_of_a_long_sender_is_read_as_any_other() -> None:
    assert parse_mail("<" + "a" * 65 + "@Bücher.example>") == (Address("a" * 65, "xn--bcher-kva.example"), {})


@pytest.mark.parametrize(
    ("sender", "key"),
    [
        ("Ann@Example.org", "ann@example.org"),
        ("Анна@BÜCHER.example", "анна@xn--bcher-kva.example"),
        ("@Bücher.example", "@xn--bcher-kva.example"),
        ("x@[IPv6:2001:db8::1]", "x@[ipv6:2001:db8::1]"),
        ("x@a_b.Example", "x@a_b.example"),
        ('"a..b."@x.test', "a..b.@x.test"),
        ('"a b"@x.test', '"a b"@x.test'),
        ('"a@b"@x.test', '"a@b"@x.test'),
        ('""@x.test', '""@x.test'),
        ("x@\udcff", "x@\udcff"),
        ("Nobody", "nobody"),
        ("", ""),
    ],
)
def test_a_sender_is_compared_in_one_form(sender: str, key: str) -> None:
    assert sender_key(sender) == key
    assert sender_key(key) == key


@pytest.mark.parametrize(
    "path",
    [
        "<a b@x.test>",
        "<a@@x.test>",
        "<a@x..test>",
        "<@x.test>",
        "<" + "a" * 506 + "@x.test>",
        "<" + "я" * 253 + "@x.test>",
        "<" + "a" * 500 + "@я.test>",  # 513 octets with its A-label
        "<" + "a" * 65 + "@\u2028.test>",
        "<" + "a" * 65 + "@\udcff.test>",
        "<" + "я" * 33 + "\udcff@x.test>",
    ],
)
def test_a_sender_that_is_no_address_at_all_is_refused(path: str) -> None:
    with pytest.raises(AddressError):
        parse_mail(path)
