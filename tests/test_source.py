"""Source: an address in, its marks out; strangers' addresses never raise."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.source import PageMarks, clean, host_of, levels, parse_page, strip_scheme


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
        pytest.param("from=+&other=1", None, id="white space is empty"),
        pytest.param("UTM_Source=Google", "Google", id="names in any case, values as they are"),
        pytest.param("utm%5Fsource=g", "g", id="names are decoded"),
        pytest.param("utm_source=&utm_source=second", "second", id="the first that is not empty"),
        pytest.param("utm_source=%F0%28%8C%28", "\ufffd(\ufffd(", id="what is no UTF-8 becomes U+FFFD"),
    ],
)  # fmt: skip
def test_marker_comes_from_the_first_mark_there_is(query: str, marker: str | None) -> None:
    assert parse_page(f"https://test.com/?{query}").marker == marker


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
                     "_openstat", "from", ";", "\x00", "test.com", "AAAA", "_", "é"])
).map("".join)  # fmt: skip


@given(hostile)
def test_no_address_raises_and_no_field_is_empty_or_unstorable(url: str) -> None:
    page = parse_page(url)
    fields = [page.host, page.landing, page.marker, page.utm_source, page.utm_medium, page.utm_campaign, page.utm_term]
    for field in (*fields, page.utm_content, *page.params, strip_scheme(url), host_of(url), *levels(page.marker)):
        assert field is None or 0 < len(field.encode()) <= 2048
