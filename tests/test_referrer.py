"""Referrers: every entry of the lists that come with the program, read from the lists themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from functools import cache
from importlib.resources import files
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from relay.core.channel import Channel
from relay.core.referrer import Found, Referrers, slug
from relay.sources import referrers

LISTS = referrers()
#: What {} may stand for behind a name, and before one.
BEHIND = ("de", "ru", "co.uk", "com.br", "com.tr", "co.jp")
BEFORE = ("de", "uk", "br")


@cache
def read(name: str) -> Any:
    return yaml.safe_load(files("relay").joinpath(f"data/sources/{name}.yml").read_text("utf-8"))


def hosts(kind: Channel) -> Iterator[tuple[str, Found]]:
    """Every entry of the lists of hosts, with what it is to be found as."""
    name = {Channel.SOCIAL: "Socials", Channel.AI: "AIAssistants", Channel.EMAIL: "Webmail"}[kind]
    for listed in (read(name), read("Additions").get(kind.value, {})):
        for title, urls in listed.items():
            for url in urls:
                yield from ((place, Found(kind, slug(title))) for place in filled(url))


def filled(url: str) -> list[str]:
    url = url.replace("android-app//", "android-app://")
    host = url.partition("/")[0]
    return [url.replace("{}", part) for part in (BEHIND if host.endswith("{}") else BEFORE)] if "{}" in url else [url]


def engines() -> Iterator[tuple[str, str, str | None, Found]]:
    """Every entry of every search engine without "www.", filled in, with its first plain search parameter."""
    for title, definitions in read("SearchEngines").items():
        for definition in definitions:
            term = next((param for param in definition["params"] if not param.startswith("/")), None)
            for url in definition["urls"]:
                found = Found(Channel.SEARCH, slug(title))
                yield from ((url.removeprefix("www."), place, term, found) for place in filled(url))


def as_referrers(place: str) -> list[str]:
    """The address, for a host alone with and without the "/" of an origin; with and without "www."."""
    if "://" in place:
        return [place]
    host = place.removeprefix("www.")
    return [
        f"https://{name}{end}" for name in (host, f"www.{host}") for end in ({"", "/"} if "/" not in host else {""})
    ]


#: Hosts of search engines that are found as something else: assistants, and a social network, that both lists name.
OVERLAPS = {
    "chat.openai.com": Found(Channel.AI, "chatgpt"),
    "chatgpt.com": Found(Channel.AI, "chatgpt"),
    "facebook.com": Found(Channel.SOCIAL, "facebook"),
    "perplexity.ai": Found(Channel.AI, "perplexity"),
    "you.com": Found(Channel.AI, "you"),
}


def test_every_social_network_assistant_and_webmail_of_the_lists_is_found() -> None:
    for kind in (Channel.SOCIAL, Channel.AI, Channel.EMAIL):
        wrong = [
            (referrer, found, LISTS.find(referrer))
            for place, found in hosts(kind)
            for referrer in as_referrers(place)
            if LISTS.find(referrer) != found
        ]
        assert wrong == []


def test_every_search_engine_of_the_list_is_found_with_its_own_parameter() -> None:
    different: dict[str, Found | None] = {}
    count = 0
    for entry, place, term, found in engines():
        for referrer in as_referrers(place):
            count += 1
            got = LISTS.find(referrer if term is None else f"{referrer}?{term}=x")
            if got != found:
                different[entry] = got
    print(f"{count} addresses of search engines, {len(different)} hosts found as another: {different}")
    assert count > 2500
    assert different == OVERLAPS


def test_every_search_engine_is_found_by_its_origin_except_portals() -> None:
    missed = set()
    for entry, place, _, found in engines():
        if entry not in OVERLAPS and any(LISTS.find(referrer) != found for referrer in as_referrers(place)):
            missed.add(entry)
    print(f"{len(missed)} hosts need a search term: {sorted(missed)}")
    assert missed == set(read("Additions")["portals"])


@pytest.mark.parametrize(
    ("referrer", "marker"),
    [
        ("https://www.google.com/", "search_google"),
        ("https://www.google.co.uk/", "search_google"),
        ("https://google.com.br", "search_google"),
        ("https://www.google.cat/", "search_google"),
        ("https://WWW.Google.COM.:443/search?q=x", "search_google"),
        ("https://images.google.de/", "search_google-images"),
        ("https://www.google.de/imgres?imgurl=x", "search_google-images"),
        ("android-app://com.google.android.googlequicksearchbox/", "search_google"),
        ("https://yandex.com.tr/", "search_yandex"),
        ("https://ya.ru/", "search_yandex"),
        ("https://m.yandex.ru/", "search_yandex"),
        ("https://m.google.de/", "search_google"),
        ("https://cn.bing.com/", "search_bing"),
        ("https://r.search.yahoo.com/", "search_yahoo"),
        ("https://hk.images.search.yahoo.com/", "search_yahoo-images"),
        ("https://go.mail.ru/", "search_mailru"),
        ("https://duckduckgo.com/", "search_duckduckgo"),
        ("https://www.facebook.com/", "social_facebook"),
        ("https://lm.facebook.com/l.php?u=x", "social_facebook"),
        ("https://old.reddit.com/r/x", "social_reddit"),
        ("https://m.vk.com/", "social_vkontakte"),
        ("https://ok.ru/", "social_odnoklassniki"),
        ("https://t.co/abc", "social_twitter"),
        ("https://plus.google.com/", "social_googleplus"),
        ("https://x.com/", "social_twitter"),
        ("https://x.com/i/grok", "ai_grok"),
        ("https://x.com/i/grok/share/1", "ai_grok"),
        ("https://x.com/i/grokking", "social_twitter"),
        ("https://chatgpt.com/", "ai_chatgpt"),
        ("https://gemini.google.com/", "ai_gemini"),
        ("https://you.com/", "ai_you"),
        ("https://mail.google.com/", "email_gmail"),
        ("https://mail.yandex.ru/", "email_yandex"),
        ("https://mail.yandex.com.tr/", "email_yandex"),
        ("https://e.mail.ru/", "email_mail.ru"),
        ("https://us-mg5.mail.yahoo.com/", "email_yahoo"),
        ("https://deref-gmx.net/mail/client/x/dereferrer/", "email_gmx"),
        ("https://www.cnn.com/search?query=x", "search_google"),
    ],
)
def test_a_referrer_is_found_as_kind_and_name(referrer: str, marker: str) -> None:
    found = LISTS.find(referrer)
    assert found is not None
    assert found.marker == marker


@pytest.mark.parametrize(
    "referrer",
    [
        "https://docs.google.com/", "https://groups.google.com/", "https://accounts.google.com/", "https://google/",
        "https://google.evil.example/", "https://google.evil.de/", "https://google.com.evil.de/", "https://google.zz/",
        "https://google.evil.co.uk/", "https://evilgoogle.com/", "https://notfacebook.com/", "https://x.com.evil.net/",
        "https://market.yandex.ru/", "https://yandex.evil/", "https://www.cnn.com/", "https://translate.google.com/",
        "https://apollo.lv/", "https://mail.ru/", "https://tel.search.ch/", "https://microsoft.com/", "https://.de/",
        "https://{}.bing.com/", "https://google.{}/", "https://com/", "https://[2001:db8::1]/", "https://10.0.0.1/",
        "https://" + "a." * 130 + "facebook.com/", "", None,
    ],
)  # fmt: skip
def test_what_only_looks_like_an_entry_is_not_found(referrer: str | None) -> None:
    assert LISTS.find(referrer) is None


def test_the_more_specific_entry_wins_then_webmail_ai_social_search() -> None:
    lists = Referrers.of(
        email={"M": ["same.net", "mail.a.net"]},
        ai={"A": ["same.net", "two.net", "s.net/ai"]},
        social={"S": ["same.net", "two.net", "three.net", "s.net", "a.net"]},
        search={"Q": [{"urls": ["same.net", "two.net", "three.net", "q.a.net", "{}.a.net", "b.{}"], "params": ["q"]}]},
    )
    markers = {
        "same.net": "email_m", "mail.a.net": "email_m", "x.mail.a.net": "email_m",
        "two.net": "ai_a", "s.net/ai": "ai_a", "s.net/ai/x": "ai_a",
        "three.net": "social_s", "s.net": "social_s", "x.a.net": "social_s", "x.q.a.net": "social_s",
        "q.a.net": "search_q", "de.a.net": "search_q", "b.de": "search_q", "b.co.uk": "search_q",
    }  # fmt: skip
    found = {referrer: got.marker for referrer in markers if (got := lists.find(referrer))}
    assert found == markers


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Google", "google"), ("Yahoo! Images", "yahoo-images"), ("Google%2B", "googleplus"), ("Chat+", "chatplus"),
     ("Duck.ai", "duck.ai"), ("lang-8", "lang-8"), ("Cốc Cốc", "coc-coc"), ("ABCsøk", "abcsøk"), ("A_b", "a-b"),
     ("Compuserve.com (Enhanced by Google)", "compuserve.com-enhanced-by-google"), ("묻지마 검색", "묻지마-검색")],
)  # fmt: skip
def test_a_name_becomes_letters_digits_hyphens_and_dots(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_no_two_names_of_a_list_become_one() -> None:
    for name in ("SearchEngines", "Socials", "AIAssistants", "Webmail"):
        names = [slug(title) for title in read(name)]
        assert len(names) == len(set(names))
        assert all(names)
        assert not any("_" in name for name in names)


def test_additions_are_needed_and_portals_are_search_engines() -> None:
    for kind, listed in (("social", read("Socials")), ("ai", read("AIAssistants"))):
        known = {url for urls in listed.values() for url in urls}
        assert not known & {url for urls in read("Additions")[kind].values() for url in urls}
    assert set(read("Additions")["portals"]) <= {entry for entry, *_ in engines()}


def test_the_lists_cannot_be_changed_and_are_read_once() -> None:
    assert referrers() is LISTS
    with pytest.raises(TypeError):
        LISTS.entries["evil.net"] = ()  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        LISTS.kinds = {}  # type: ignore[misc]


def test_the_licence_lies_beside_the_lists() -> None:
    assert "CC0 1.0 Universal" in files("relay").joinpath("data/sources/LICENSE").read_text("utf-8")


labels = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["google", "com", "de", "co", "uk", "www", "m", "x", "search", "yahoo", "{}", "/i/grok", "?q=1", ":", "@", "["]
)


@given(st.lists(labels, max_size=12).map(".".join))
def test_no_referrer_raises(referrer: str) -> None:
    found = LISTS.find(f"https://{referrer}")
    assert found is None or found.kind in (Channel.SEARCH, Channel.SOCIAL, Channel.AI, Channel.EMAIL)
