"""Source: an address in, its marks out; strangers' addresses never raise."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.channel import Channel
from relay.core.source import (
    CLICK_IDS,
    Address,
    PageMarks,
    clean,
    host_of,
    levels,
    outside_host,
    parameters,
    parse_page,
    split,
    strip_scheme,
)


def test_page_without_marks_has_host_and_landing_only() -> None:
    assert parse_page("https://test.com/new") == PageMarks(host="test.com", landing="test.com/new")


def test_page_with_utm_marks_has_all_five() -> None:
    page = parse_page(
        "https://www.Example.com:8443/a/b?utm_source=google&utm_medium=cpc&utm_campaign=spring%20sale"
        "&utm_term=b%C3%BCro+stuhl&utm_content=ad1#top"
    )
    assert page.host == "www.example.com"
    assert page.landing is not None
    assert page.landing.startswith("www.Example.com:8443/a/b?utm_source=google")
    assert "#" not in page.landing
    assert (page.utm_source, page.utm_medium, page.utm_campaign) == ("google", "cpc", "spring sale")
    assert (page.utm_term, page.utm_content) == ("büro stuhl", "ad1")


def openstat(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("query", "marker"),
    [
        pytest.param("roistat=fb_new&rs=vk&utm_source=google&from=x", "fb_new", id="roistat before all"),
        pytest.param("utm_source=google&rs=vk_1", "vk_1", id="rs before utm"),
        pytest.param("roistat=&rs=vk", "vk", id="an empty roistat is none"),
        pytest.param("from=x&_openstat=a;b&utm_source=google", "google", id="utm before openstat"),
        pytest.param("utm_source=google&utm_medium=cpc&utm_campaign=s", "google_cpc_s", id="utm levels are joined"),
        pytest.param("utm_source=google&utm_campaign=s", "google_s", id="a missing utm level leaves no gap"),
        pytest.param("utm_medium=cpc&utm_campaign=s", None, id="utm without source is no marker"),
        pytest.param("from=x&_openstat=direct;1;2;", "direct_1_2", id="openstat before from, plain"),
        pytest.param("_openstat=" + openstat("direct.yandex.ru;123;45;yandex.ru:guarantee"),
                     "direct.yandex.ru_123_45_yandex.ru:guarantee", id="openstat in base64"),
        pytest.param("_openstat=%%%%", "%%%%", id="openstat that is no base64 stands as it is"),
        pytest.param("_openstat=gIGC", "gIGC", id="openstat that is base64 of no text stands as it is"),
        pytest.param("_openstat=;;", None, id="openstat of nothing is no marker"),
        pytest.param("from=newsletter", "newsletter", id="from comes last"),
        pytest.param("gclid=x&from=newsletter", "newsletter", id="a click id after from"),
        pytest.param("gclid=x&_openstat=a;b", "a_b", id="a click id after openstat"),
        pytest.param("gclid=x&rs=vk_1", "vk_1", id="a click id after rs"),
        pytest.param("gclid=x&utm_campaign=s", "ads_google", id="a click id where utm has no source"),
        pytest.param("from=+&other=1", None, id="white space is empty"),
        pytest.param("UTM_Source=Google", "Google", id="names in any case, values as they are"),
        pytest.param("utm%5Fsource=g", "g", id="names are decoded"),
        pytest.param("utm_source=&utm_source=second", "second", id="the first that is not empty"),
        pytest.param("utm_source=%F0%28%8C%28", "\ufffd(\ufffd(", id="what is no UTF-8 becomes U+FFFD"),
    ],
)  # fmt: skip
def test_marker_comes_from_the_first_mark_there_is(query: str, marker: str | None) -> None:
    assert parse_page(f"https://test.com/?{query}").marker == marker


@pytest.mark.parametrize(("name", "marker"), CLICK_IDS.items())
def test_a_click_id_stands_for_its_marker_in_any_case_of_its_name(name: str, marker: str) -> None:
    for written in (name, name.upper(), name.title()):
        page = parse_page(f"https://test.com/?a=1&{written}=Cj0KCQ")
        assert (page.click, page.marker) == (marker, marker)


def test_every_click_id_names_a_channel_first() -> None:
    assert {levels(marker)[0] for marker in CLICK_IDS.values()} <= {channel.value for channel in Channel}


@pytest.mark.parametrize(
    ("query", "click"),
    [
        pytest.param("gclid=", None, id="an empty click id is none"),
        pytest.param("gclid", None, id="a name without value is none"),
        pytest.param("gclid=%20", None, id="white space is none"),
        pytest.param("xgclid=1", None, id="a longer name is another"),
        pytest.param("ScCid=1", "ads_snapchat", id="Snapchat writes capitals"),
        pytest.param("fbclid=1&gclid=2", "ads_google", id="an advertisement before what plain links carry"),
        pytest.param("ysclid=1&yclid=2", "ads_yandex", id="Direct before Yandex' results"),
        pytest.param("rs=vk&yclid=2", "ads_yandex", id="also where another mark is the marker"),
    ],
)
def test_click_is_the_first_click_id_of_the_table(query: str, click: str | None) -> None:
    assert parse_page(f"https://test.com/?{query}").click == click


@pytest.mark.parametrize(
    ("query", "visit"),
    [
        ("roistat_visit=123456", "123456"),
        ("roistat_visit=" + "9" * 20, "9" * 20),
        ("Roistat_Visit=1", "1"),
        ("roistat_visit=" + "9" * 21, None),
        ("roistat_visit=12a", None),
        ("roistat_visit=-1", None),
        ("roistat_visit=%D9%A1", None),  # an Arabic digit
        ("roistat_visit=1%0A", "1"),
        ("roistat_visit=", None),
        ("visit=1", None),
    ],
)
def test_a_visit_number_from_another_domain_has_1_to_20_digits(query: str, visit: str | None) -> None:
    assert parse_page(f"https://test.com/?{query}").visit == visit


@pytest.mark.parametrize(
    ("query", "asked"),
    [("utm_nooverride=1", True), ("UTM_NoOverride=1&rs=x", True), ("utm_nooverride=0", False),
     ("utm_nooverride=", False), ("utm_nooverride=true", False), ("nooverride=1", False)],
)  # fmt: skip
def test_no_override_is_asked_by_utm_nooverride_1(query: str, asked: bool) -> None:
    assert parse_page(f"https://test.com/?{query}").no_override is asked


def test_the_reference_s_own_example_reads_as_in_its_document() -> None:
    page = parse_page("https://test.com/new?rs=fb_new")  # roistat-email-tracking.txt, the POST's body
    assert (page.marker, levels(page.marker)) == ("fb_new", ("fb", "new"))
    assert page.host == "test.com"
    assert page.utm_source is None


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://www.Test.com:8443/a/b?x=1&y=2#z", Address("www.test.com", "/a/b", "x=1&y=2")),
        ("test.com?x=1", Address("test.com", "/", "x=1")),
        ("https://test.com", Address("test.com", "/", "")),
        ("android-app://com.google.android.gm/", Address("com.google.android.gm", "/", "")),
        (None, Address(None, "/", "")),
    ],
)
def test_an_address_is_split_into_host_path_and_query(url: str | None, address: Address) -> None:
    assert split(url) == address


def test_parameters_are_all_or_the_wanted_with_names_in_lower_case() -> None:
    assert parameters("A=1&b=&b=2&a=3&%63=x+y") == {"a": "1", "b": "2", "c": "x y"}
    assert parameters("A=1&b=2", {"a"}) == {"a": "1"}


@pytest.mark.parametrize(
    ("referrer", "host"),
    [
        ("https://blog.net/post", "blog.net"),
        ("https://www.blog.net/", "blog.net"),
        ("https://example.com/x", None),
        ("https://www.example.com/x", None),
        ("https://shop.example.com/", "shop.example.com"),
        ("https://example.de/", None),
        ("https://example.com.evil.net/", "example.com.evil.net"),
        ("", None),
        (None, None),
    ],
)
def test_outside_is_what_is_neither_the_pages_nor_the_sites_host(referrer: str | None, host: str | None) -> None:
    assert outside_host(referrer, "www.example.com", {"www.example.de"}) == host


@pytest.mark.parametrize(
    ("referrer", "host"),
    [
        ("https://m.example.net/", None),
        ("https://a.b.example.net/x", None),
        ("https://www.example.net/x", None),  # "www." is taken off first, and the bare domain is named besides
        ("https://WWW.M.EXAMPLE.NET:8443/", None),
        ("https://example.net/", None),
        ("https://evilexample.net/", "evilexample.net"),
        ("https://example.net.evil.org/", "example.net.evil.org"),
        ("https://m.example.net@evil.org/", "evil.org"),
        ("https://net/", "net"),
    ],
)
def test_subdomains_of_a_wildcard_are_the_sites_own(referrer: str, host: str | None) -> None:
    assert outside_host(referrer, "shop.example", {"example.net", "*.example.net"}) == host


label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True).filter(lambda text: text != "www")


@given(st.lists(label, min_size=1, max_size=3), label)
def test_a_wildcard_stands_for_every_subdomain_and_for_nothing_else(names: list[str], other: str) -> None:
    wild = {"*.example.net"}
    below = ".".join(names)
    assert outside_host(f"https://{below}.example.net/", None, wild) is None
    assert outside_host(f"https://{below}example.net/", None, wild) == f"{below}example.net"
    assert outside_host(f"https://{below}.{other}.org/", None, wild) == f"{below}.{other}.org"


def test_additional_parameters_keep_their_places() -> None:
    page = parse_page("https://test.com/?roistat_param_5=e&roistat_param_1=a&roistat_param_6=f")
    assert page.params == ("a", None, None, None, "e")


def test_marks_in_the_fragment_are_not_the_pages() -> None:
    assert parse_page("https://test.com/#?utm_source=google").utm_source is None


@pytest.mark.parametrize(
    ("url", "stripped", "host"),
    [
        (None, None, None),
        ("", None, None),
        ("https://fb.com/", "fb.com", "fb.com"),
        ("http://fb.com", "fb.com", "fb.com"),
        ("fb.com/new?a=1#x", "fb.com/new?a=1", "fb.com"),
        ("//cdn.test.com/x", "cdn.test.com/x", "cdn.test.com"),
        ("HTTPS://user:secret@Test.com/x@y", "Test.com/x@y", "test.com"),
        ("https://test.com?x=1", "test.com?x=1", "test.com"),
        ("https://test.com/?x=//y", "test.com/?x=//y", "test.com"),
        ("android-app://com.google.android.gm/", "com.google.android.gm", "com.google.android.gm"),
        ("https://[2001:db8::1]:8080/x", "[2001:db8::1]:8080/x", "2001:db8::1"),
        ("https://[", "[", None),
        ("https://test.com.:80/", "test.com.:80", "test.com"),
        ("https://пример.рф/путь", "пример.рф/путь", "пример.рф"),
        ("  https://test.com/a\r\n\tb\x00 ", "test.com/ab", "test.com"),
        ("javascript:alert(1)", "javascript:alert(1)", None),
        ("/only/a/path", "/only/a/path", None),
        ("https://", None, None),
        ("https:///x", "/x", None),
    ],
)
def test_scheme_and_secrets_are_stripped_and_the_host_is_found(
    url: str | None, stripped: str | None, host: str | None
) -> None:
    assert strip_scheme(url) == stripped
    assert host_of(url) == host
    assert host_of(stripped) == host


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("fb_new", ("fb", "new")),
        ("fb_new_x", ("fb", "new_x")),
        ("fb", ("fb", None)),
        ("fb_", ("fb", None)),
        ("_new", (None, "new")),
        ("", (None, None)),
        (None, (None, None)),
    ],
)
def test_levels_are_the_marker_split_at_its_first_underscore(
    marker: str | None, expected: tuple[str | None, str | None]
) -> None:
    assert levels(marker) == expected


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (None, None),
        ("", None),
        ("\x00", None),
        ("a\x00b", "ab"),
        ("a\ud800b", "a?b"),
        ("x" * 3000, "x" * 2048),
        ("ü" * 3000, "ü" * 1024),
        ("x" + "ü" * 3000, "x" + "ü" * 1023),
        ("😀" * 600, "😀" * 512),
    ],
)
def test_text_is_cut_to_2048_octets_of_valid_utf_8(text: str | None, cleaned: str | None) -> None:
    assert clean(text) == cleaned


def test_page_of_a_novel_is_bounded_in_every_field() -> None:
    page = parse_page("https://test.com/" + "p" * 3000 + "?roistat=" + "m" * 4000 + "&utm_source=" + "s" * 4000)
    assert page.landing == "test.com/" + "p" * 2039
    assert page.marker == "m" * 2048
    assert page.utm_source == "s" * 2048


def test_marks_beyond_500_parameters_are_not_looked_at() -> None:
    assert parse_page("https://test.com/?" + "a&" * 499 + "rs=x").marker == "x"
    assert parse_page("https://test.com/?" + "a&" * 500 + "rs=x").marker is None


hostile = st.text(max_size=60) | st.lists(
    st.sampled_from(["https://", "//", "[", "]", "@", ":", "?", "&", "=", "#", "%", "%ff", "utm_source", "rs", "\ud800",
                     "_openstat", "from", ";", "\x00", "test.com", "AAAA", "_", "é", "gclid", "roistat_visit", "1"])
).map("".join)  # fmt: skip


@given(hostile)
def test_no_address_raises_and_no_field_is_empty_or_unstorable(url: str) -> None:
    page = parse_page(url)
    fields = [page.host, page.landing, page.marker, page.utm_source, page.utm_medium, page.utm_campaign, page.utm_term]
    for field in (
        *fields,
        page.utm_content,
        page.click,
        page.visit,
        *page.params,
        strip_scheme(url),
        host_of(url),
        *levels(page.marker),
    ):
        assert field is None or 0 < len(field.encode()) <= 2048
