"""Channels: what a medium says, when a site's rule holds, and which source a page view has in the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.channel import Arrival, Channel, Source, SourceRule, matches, medium_channel
from relay.core.classify import classify
from relay.core.source import FIELD_LIMIT, parse_page
from relay.sources import referrers
from tests.linear import linear

OWN = frozenset({"example.com"})
LISTS = referrers()


def source(
    query: str = "", referrer: str | None = None, *rules: SourceRule, cookie: str | None = None, path: str = "/"
) -> Source:
    url = f"https://www.example.com{path}" + (f"?{query}" if query else "")
    return classify(parse_page(url), url, referrer, OWN, rules, LISTS, cookie)


@pytest.mark.parametrize(
    ("medium", "channel"),
    [
        *((medium, Channel.EMAIL) for medium in ("email", "e-mail", "E-Mail", "e_mail", "e mail", "newsletter")),
        *((medium, Channel.ADS) for medium in ("cpc", "CPC", "ppc", "cpm", "paid", "paidsearch", "paid_social", "ads",
                                               "display", "retargeting", "cpa", "banner", "social_cpc")),
        *((medium, Channel.SOCIAL) for medium in ("social", "social-network", "social network", "smm", "sm")),
        *((medium, Channel.REFERRAL) for medium in ("referral", "affiliate", "affiliates", "partner")),
        ("organic", Channel.SEARCH), ("organic_social", Channel.SOCIAL), ("ai", Channel.AI),
        ("qr", None), ("adsense", None), ("", None), (None, None), ("-", None), ("(none)", None),
    ],
)  # fmt: skip
def test_a_medium_names_its_channel_by_a_word_of_it(medium: str | None, channel: Channel | None) -> None:
    assert medium_channel(medium) == channel


ARRIVAL = Arrival("/акция/весна", {"promo": "Spring", "lang": "de"}, "blog.alpha.example")


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        pytest.param(SourceRule("x"), True, id="no condition"),
        pytest.param(SourceRule("x", referrer="alpha.example"), True, id="a host means its subdomains"),
        pytest.param(SourceRule("x", referrer="blog.alpha.example"), True, id="a host means itself"),
        pytest.param(SourceRule("x", referrer="www.Blog.Alpha.Example"), True, id="www and case make no difference"),
        pytest.param(SourceRule("x", referrer="*.alpha.example"), True, id="a star means subdomains"),
        pytest.param(SourceRule("x", referrer="*.blog.alpha.example"), False, id="a star does not mean the host"),
        pytest.param(SourceRule("x", referrer="pha.example"), False, id="half a label is another host"),
        pytest.param(SourceRule("x", referrer="beta.example"), False, id="another host"),
        pytest.param(SourceRule("x", parameter="promo"), True, id="a parameter that is there"),
        pytest.param(SourceRule("x", parameter="PROMO"), True, id="a parameter's name in any case"),
        pytest.param(SourceRule("x", parameter="other"), False, id="a parameter that is not there"),
        pytest.param(SourceRule("x", parameter="promo", value="Spring"), True, id="a value"),
        pytest.param(SourceRule("x", parameter="promo", value="spring"), False, id="a value in another case"),
        pytest.param(SourceRule("x", value="Spring"), False, id="a value of no parameter"),
        pytest.param(SourceRule("x", page="/акция/*"), True, id="a glob on the decoded path"),
        pytest.param(SourceRule("x", page="/%D0%B0%D0%BA%D1%86%D0%B8%D1%8F/*"), True, id="a glob written in percents"),
        pytest.param(SourceRule("x", page="/акция"), False, id="a glob is for the whole path"),
        pytest.param(SourceRule("x", referrer="alpha.example", parameter="other"), False, id="one of two conditions"),
        pytest.param(SourceRule("x", None, "alpha.example", "promo", "Spring", "/*"), True, id="all conditions"),
    ],
)
def test_a_rule_is_met_when_all_its_conditions_hold(rule: SourceRule, holds: bool) -> None:
    assert matches(rule, ARRIVAL) is holds


def test_a_rule_on_the_referrer_is_not_met_without_one() -> None:
    assert not matches(SourceRule("x", referrer="alpha.example"), Arrival())


PARTNER = SourceRule("partner_a", Channel.REFERRAL, referrer="alpha.example")
PROMO = SourceRule("print_spring", parameter="promo", value="spring")
SHOP = SourceRule("shop", page="/shop/*")


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        pytest.param(source("rs=vk&promo=spring", None, PARTNER, PROMO), Source("print_spring", Channel.CAMPAIGN),
                     id="a rule before the page's marks"),
        pytest.param(source("promo=spring", "https://alpha.example/", PARTNER, PROMO),
                     Source("partner_a", Channel.REFERRAL), id="the first rule that holds"),
        pytest.param(source("", "https://www.google.com/", SHOP, path="/shop/a?x"), Source("shop", Channel.CAMPAIGN),
                     id="a rule before the referrer"),
        pytest.param(source("x=1", "https://www.google.com/", PARTNER, PROMO, SHOP),
                     Source("search_google", Channel.SEARCH), id="rules that do not hold say nothing"),
        pytest.param(source("rs=fb_new", "https://www.google.com/"), Source("fb_new", Channel.CAMPAIGN),
                     id="a mark before the referrer"),
        pytest.param(source("utm_source=google&utm_medium=cpc&gclid=1"), Source("google_cpc", Channel.ADS),
                     id="a mark before a click id"),
        pytest.param(source("rs=spring&gclid=1"), Source("spring", Channel.ADS), id="a click id tells the channel"),
        pytest.param(source("rs=spring&utm_medium=email&gclid=1"), Source("spring", Channel.EMAIL),
                     id="the medium before a click id"),
        pytest.param(source("gclid=1", "https://www.google.com/"), Source("ads_google", Channel.ADS),
                     id="a click id before the referrer"),
        pytest.param(source("ysclid=1", "https://yandex.ru/"), Source("search_yandex", Channel.SEARCH),
                     id="Yandex' results"),
        pytest.param(source("fbclid=1", "https://l.facebook.com/"), Source("social_facebook", Channel.SOCIAL),
                     id="a link on Facebook, paid or not"),
        pytest.param(source("fbclid=1&utm_medium=cpc"), Source("social_facebook", Channel.ADS),
                     id="an advertisement on Facebook"),
        pytest.param(source("mc_eid=1"), Source("email_mailchimp", Channel.EMAIL), id="a newsletter"),
        pytest.param(source("utm_source=google&utm_medium=organic"), Source("google_organic", Channel.SEARCH),
                     id="organic is search"),
        pytest.param(source("utm_source=Facebook&utm_medium=organic"), Source("Facebook_organic", Channel.SOCIAL),
                     id="organic is social where the source is"),
        pytest.param(source("utm_source=chatgpt.com", "https://chatgpt.com/"), Source("chatgpt.com", Channel.AI),
                     id="an assistant's own mark, by its host"),
        pytest.param(source("utm_source=chatgpt.com&utm_medium=organic"), Source("chatgpt.com_organic", Channel.AI),
                     id="an assistant's own mark, organic"),
        pytest.param(source("utm_source=perplexity"), Source("perplexity", Channel.AI),
                     id="an assistant's own mark, by its name"),
        pytest.param(source("utm_source=chatgpt.com&utm_medium=cpc"), Source("chatgpt.com_cpc", Channel.ADS),
                     id="an advertisement in an assistant"),
        pytest.param(source("utm_medium=email"), Source(None, Channel.DIRECT), id="a medium without source is no mark"),
        pytest.param(source("", "https://chatgpt.com/"), Source("ai_chatgpt", Channel.AI), id="an assistant"),
        pytest.param(source("", "https://mail.google.com/"), Source("email_gmail", Channel.EMAIL), id="webmail"),
        pytest.param(source("", "android-app://com.google.android.gm/"), Source("email_gmail", Channel.EMAIL),
                     id="a mail app"),
        pytest.param(source("", "https://www.blog.net/post?x=1"), Source("referral_blog.net", Channel.REFERRAL),
                     id="any other site"),
        pytest.param(source("", "https://blog.net/", cookie="vk_7"), Source("referral_blog.net", Channel.REFERRAL),
                     id="the referrer before another counter's cookie"),
        pytest.param(source("", "https://example.com/", cookie=" vk_7 "), Source("vk_7", Channel.CAMPAIGN),
                     id="another counter's cookie"),
        pytest.param(source("", "https://www.example.com/a", cookie=" "), Source(None, Channel.DIRECT),
                     id="the site's own pages and an empty cookie say nothing"),
        pytest.param(source(), Source(None, Channel.DIRECT), id="nothing"),
    ],
)  # fmt: skip
def test_the_first_thing_that_says_anything_is_the_source(got: Source, expected: Source) -> None:
    assert got == expected


hostile = st.text(max_size=60) | st.lists(
    st.sampled_from(["https://", "android-app://", "//", "[", "]", "@", ":", "?", "&", "=", "#", "%", "%ff", "{}",
                     "utm_source", "utm_medium", "organic", "gclid", "rs", "\ud800", "\x00", "google", ".", "com", "de",
                     "co.uk", "www.", "/", "i/grok", "x.com", "m.", "_", "é", "İ", "ß"])
).map("".join)  # fmt: skip


@given(hostile, st.none() | hostile, st.none() | hostile, st.none() | hostile)
def test_no_input_raises_and_every_marker_can_be_stored(
    url: str, referrer: str | None, cookie: str | None, glob: str | None
) -> None:
    rules = (SourceRule("x", parameter="gclid", value=cookie, page=glob), SourceRule("x", referrer=glob, page="/*[a"))
    got = classify(parse_page(url), url, referrer, OWN, rules, LISTS, cookie)
    assert (got.marker is None) == (got.channel is Channel.DIRECT)
    assert got.marker is None or 0 < len(got.marker.encode()) <= FIELD_LIMIT


LONG = 200_000


@pytest.mark.parametrize(
    "text",
    ["a." * LONG, "https://" + "de." * LONG, "https://x.com/" + "i/grok/" * LONG, "https://" + "w" * LONG,
     "https://a.net/?" + "q=1&" * LONG, "https://a.net/" + "%D0%B0" * LONG, "https://a.net/" + "ab" * LONG],
)  # fmt: skip
def test_a_novel_costs_no_more_than_its_beginning(text: str) -> None:
    rule = SourceRule("x", page="*a*b*a*b*a*b*c", parameter="nothing")
    with linear():  # quadratic work on it all takes minutes
        got = classify(parse_page(text), text, text, OWN, [rule], LISTS, text)
    assert got.marker is None or len(got.marker.encode()) <= FIELD_LIMIT
