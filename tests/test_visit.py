"""Visits: when a page view starts a new one, and their numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.source import PageMarks, parse_page
from relay.core.visit import (
    HAND_OVER,
    VisitMarks,
    is_handed_over,
    is_new_visit,
    is_number,
    visit_number,
)

NOW = 1_800_000_000.0
TIMEOUT = 1800.0
OWN = frozenset({"example.com"})
PLAIN = parse_page("https://www.example.com/contact")
AD = parse_page("https://www.example.com/?utm_source=google&utm_medium=cpc")
OTHER_AD = parse_page("https://www.example.com/?rs=fb_new")

direct = VisitMarks()
by_ad = VisitMarks(marker="google_cpc", utm_source="google", utm_medium="cpc", referrer="google.com")
by_link = VisitMarks(referrer="blog.net/post")


@pytest.mark.parametrize(
    ("current", "page", "referrer", "idle", "new"),
    [
        pytest.param(by_ad, AD, "https://google.com/", 0, False, id="a reload of the landing page"),
        pytest.param(by_ad, AD, "https://google.com/", 9e9, False, id="a reload, however late"),
        pytest.param(by_link, PLAIN, "https://blog.net/post", 9e9, False, id="a late reload with a referrer only"),
        pytest.param(by_ad, PLAIN, "https://www.example.com/", 0, False, id="an inner page"),
        pytest.param(by_ad, PLAIN, "https://example.com/", 0, False, id="an inner page, from without www"),
        pytest.param(by_ad, AD, "https://www.example.com/", 0, False, id="an inner page that keeps the marks"),
        pytest.param(by_ad, PLAIN, "https://google.com/", 0, False, id="a reload after the page cleaned its address"),
        pytest.param(by_ad, PLAIN, None, 0, False, id="a tab without referrer"),
        pytest.param(by_ad, OTHER_AD, "https://google.com/", 0, True, id="a new campaign mark"),
        pytest.param(direct, AD, None, 0, True, id="a campaign mark after a direct visit"),
        pytest.param(by_ad, PLAIN, "https://blog.net/post", 0, True, id="a new outside referrer"),
        pytest.param(by_ad, AD, "https://blog.net/post", 0, True, id="the same marks from another site"),
        pytest.param(direct, PLAIN, "https://blog.net/post", 0, True, id="an outside referrer after a direct visit"),
        pytest.param(by_link, PLAIN, "https://blog.net/other", 0, True, id="another page of the same outside site"),
        pytest.param(direct, PLAIN, None, TIMEOUT, False, id="direct, just in time"),
        pytest.param(direct, PLAIN, None, TIMEOUT + 1, True, id="direct, after the time-out"),
        pytest.param(by_ad, PLAIN, "https://example.com/", TIMEOUT + 1, True, id="an inner page after the time-out"),
        pytest.param(direct, PLAIN, "no host at all/", TIMEOUT, True, id="a referrer that is nonsense is outside"),
        pytest.param(direct, PLAIN, "", TIMEOUT, False, id="an empty referrer is none"),
        pytest.param(direct, PageMarks(), "https://example.com/x", 0, False, id="own host by the site's list"),
        pytest.param(direct, PLAIN, "https://www.example.com/x", 0, False, id="own host by the page itself"),
    ],
)
def test_marks_referrer_and_time_decide_whether_a_visit_is_new(
    current: VisitMarks, page: PageMarks, referrer: str | None, idle: float, new: bool
) -> None:
    assert is_new_visit(current, page, referrer, OWN, NOW - idle, NOW, TIMEOUT) is new


NO_OVERRIDE = parse_page("https://www.example.com/?rs=fb_new&utm_nooverride=1")


@pytest.mark.parametrize(
    ("current", "page", "referrer", "idle", "new"),
    [
        pytest.param(by_ad, NO_OVERRIDE, None, 0, False, id="a mark that asks not to override"),
        pytest.param(direct, NO_OVERRIDE, None, 0, False, id="nor a direct visit"),
        pytest.param(by_ad, NO_OVERRIDE, "https://blog.net/post", 0, False, id="nor with an outside referrer"),
        pytest.param(by_ad, NO_OVERRIDE, "https://blog.net/post", TIMEOUT, False, id="just in time"),
        pytest.param(by_ad, NO_OVERRIDE, None, TIMEOUT + 1, True, id="the time-out decides as ever"),
        pytest.param(
            VisitMarks(marker="fb_new"), NO_OVERRIDE, None, 9e9, False, id="a reload is the same, however late"
        ),
    ],
)
def test_nothing_but_time_ends_a_visit_where_the_page_asks_for_no_override(
    current: VisitMarks, page: PageMarks, referrer: str | None, idle: float, new: bool
) -> None:
    assert is_new_visit(current, page, referrer, OWN, NOW - idle, NOW, TIMEOUT) is new


def test_a_click_id_is_a_mark_of_the_page_and_begins_a_visit_once() -> None:
    clicked = parse_page("https://www.example.com/?gclid=Cj0K")
    assert is_new_visit(direct, clicked, None, OWN, NOW, NOW, TIMEOUT)
    assert not is_new_visit(VisitMarks(marker=clicked.marker), clicked, None, OWN, NOW, NOW, TIMEOUT)


def test_a_visit_that_a_referrer_named_goes_on_since_its_marks_are_the_pages_own() -> None:
    searched = VisitMarks(marker=None, referrer="google.com")  # its source is "search_google", its mark is none
    assert not is_new_visit(searched, PLAIN, "https://google.com/", OWN, NOW, NOW, TIMEOUT)


def test_visits_of_another_counter_are_never_renumbered() -> None:
    assert not is_new_visit(by_ad, OTHER_AD, "https://blog.net/", OWN, 0.0, NOW, TIMEOUT, foreign=True)


def test_a_visit_lives_two_weeks_by_default() -> None:
    assert not is_new_visit(direct, PLAIN, None, OWN, NOW - 14 * 86400, NOW)
    assert is_new_visit(direct, PLAIN, None, OWN, NOW - 14 * 86400 - 1, NOW)


LINKED = parse_page("https://shop.example/?roistat_visit=777")
#: Of a site with two domains, one of them with all its subdomains.
DOMAINS = frozenset({"shop.example", "www.shop.example", "blog.example", "*.blog.example"})


@pytest.mark.parametrize(
    ("page", "referrer", "seen", "handed"),
    [
        pytest.param(LINKED, "https://blog.example/post", 60, True, id="from the site's other domain"),
        pytest.param(LINKED, "https://www.blog.example/", 60, True, id="from its www"),
        pytest.param(LINKED, "https://m.blog.example/", 60, True, id="from its subdomain"),
        pytest.param(LINKED, "HTTPS://BLOG.example:8443/", 60, True, id="case and port of the referrer are no matter"),
        pytest.param(LINKED, "https://www.shop.example/", 60, True, id="www is a host with cookies of its own"),
        pytest.param(LINKED, "https://blog.example/", HAND_OVER, True, id="half an hour after the visit was seen"),
        pytest.param(LINKED, "https://blog.example/", HAND_OVER + 1, False, id="a saved link, later"),
        pytest.param(LINKED, "https://blog.example/", None, True, id="another counter's number that is new to us"),
        pytest.param(LINKED, "https://shop.example/", 60, False, id="from the host itself, whose cookie says better"),
        pytest.param(LINKED, "https://shop.example/", None, False, id="from the host itself, unknown"),
        pytest.param(LINKED, "https://google.com/", 60, False, id="a link that a search engine found"),
        pytest.param(LINKED, "https://google.com/", None, False, id="a made-up number behind a foreign link"),
        pytest.param(LINKED, "https://evilblog.example/", 60, False, id="a host that only ends alike"),
        pytest.param(LINKED, "https://blog.example.evil.net/", 60, False, id="a host that only begins alike"),
        pytest.param(LINKED, "https://blog.example@evil.net/", 60, False, id="a host in the user's name"),
        pytest.param(LINKED, None, 1, False, id="no referrer: any page can link so"),
        pytest.param(LINKED, "", 1, False, id="an empty one"),
        pytest.param(LINKED, None, None, False, id="no referrer and a number nobody knows"),
        pytest.param(PLAIN, "https://blog.example/", 60, False, id="no number"),
        pytest.param(PLAIN, None, None, False, id="nothing at all"),
    ],
)
def test_a_number_in_a_link_counts_between_the_sites_own_domains_and_soon(
    page: PageMarks, referrer: str | None, seen: float | None, handed: bool
) -> None:
    last_seen = None if seen is None else NOW - seen
    assert is_handed_over(page, referrer, DOMAINS, last_seen, NOW) is handed


marks = st.none() | st.sampled_from(["a", "b"])


@given(st.builds(VisitMarks, marker=marks, utm_source=marks, utm_term=marks, referrer=marks), st.floats(0, 1e9))
def test_a_reload_with_anything_to_recognise_it_by_never_starts_a_visit(current: VisitMarks, idle: float) -> None:
    page = PageMarks(marker=current.marker, utm_source=current.utm_source, utm_term=current.utm_term)
    recognisable = current != VisitMarks()
    assert not (recognisable and is_new_visit(current, page, current.referrer, OWN, NOW - idle, NOW, TIMEOUT))


@given(st.integers(0, 2**64 - 1))
def test_visit_numbers_have_fifteen_digits(random: int) -> None:
    number = visit_number(random)
    assert len(number) == 15
    assert number[0] != "0"
    assert is_number(number)


def test_visit_numbers_use_the_whole_range() -> None:
    assert visit_number(0) == "100000000000000"
    assert visit_number(9 * 10**14 - 1) == "999999999999999"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", True), ("123456", True), ("0" * 20, True), ("1" * 21, False), ("", False), ("12a", False), (" 1", False),
     ("-1", False), ("1.0", False), ("１", False), ("²", False)],
)  # fmt: skip
def test_a_number_is_1_to_20_ascii_digits(text: str, expected: bool) -> None:
    assert is_number(text) is expected
