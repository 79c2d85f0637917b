"""relay/agents.py: devices, browsers, systems and programs by real User-Agents."""

from __future__ import annotations

import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA, is_crawler
from hypothesis import example, given
from hypothesis import strategies as st

from relay import agents
from relay.agents import EMPTY, UNKNOWN, Agent, describe
from tests.linear import linear

WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
APPLE = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
IPHONE = f"Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) {APPLE}"
WINDOWS = f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT}"
PIXEL = "(Linux; Android 6.0.1; Nexus 5X Build/MMB29P)"

PEOPLE = [
    ("desktop", "Chrome", "Windows", f"{WINDOWS} Chrome/142.0.0.0 Safari/537.36"),
    ("desktop", "Edge", "Windows", f"{WINDOWS} Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0"),
    ("desktop", "Opera", "Windows", f"{WINDOWS} Chrome/141.0.0.0 Safari/537.36 OPR/125.0.0.0"),
    ("desktop", "Yandex Browser", "Windows", f"{WINDOWS} Chrome/138.0.0.0 YaBrowser/25.8.0.0 Safari/537.36"),
    (
        "desktop",
        "Firefox",
        "Windows",
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:145.0) Gecko/20100101 Firefox/145.0",
    ),
    ("desktop", "IE", "Windows", "Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1; Trident/4.0; Tablet PC 2.0)"),
    (
        "desktop",
        "Safari",
        "Mac OS X",
        f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {APPLE} Version/26.0 Safari/605.1.15",
    ),
    ("desktop", "Chrome", "Linux", f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} Chrome/141.0.0.0 Safari/537.36"),
    ("desktop", "Firefox", "Ubuntu", "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0"),
    (
        "desktop",
        "Chrome",
        "Chrome OS",
        f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {WEBKIT} Chrome/140.0.0.0 Safari/537.36",
    ),
    ("mobile", "Mobile Safari", "iOS", f"{IPHONE} Version/18.5 Mobile/15E148 Safari/604.1"),
    ("mobile", "Chrome Mobile iOS", "iOS", f"{IPHONE} CriOS/142.0.7444.46 Mobile/15E148 Safari/604.1"),
    ("mobile", "Instagram", "iOS", f"{IPHONE} Mobile/15E148 Instagram 330.0.3.29.91 (iPhone13,2; iOS 18_5; en_US)"),
    (
        "mobile",
        "Chrome Mobile",
        "Android",
        f"Mozilla/5.0 (Linux; Android 10; K) {WEBKIT} Chrome/142.0.0.0 Mobile Safari/537.36",
    ),
    (
        "mobile",
        "Samsung Internet",
        "Android",
        f"Mozilla/5.0 (Linux; Android 14; SM-S918B) {WEBKIT} SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36",
    ),
    ("mobile", "Firefox Mobile", "Android", "Mozilla/5.0 (Android 15; Mobile; rv:145.0) Gecko/145.0 Firefox/145.0"),
    (
        "mobile",
        "Chrome Mobile",
        "Android",
        f"Mozilla/5.0 (Linux; Android 11; CUBOT NOTE 20) {WEBKIT} Chrome/120.0.0.0 Mobile Safari/537.36",
    ),
    ("mobile", "Opera Mini", None, "Opera/9.80 (J2ME/MIDP; Opera Mini/7.1.32052/29.3709; U; en) Presto/2.8.119"),
    (
        "tablet",
        "Mobile Safari",
        "iOS",
        f"Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) {APPLE} Version/17.5 Mobile/15E148 Safari/604.1",
    ),
    (
        "tablet",
        "Chrome",
        "Android",
        f"Mozilla/5.0 (Linux; Android 13; SM-X710) {WEBKIT} Chrome/140.0.0.0 Safari/537.36",
    ),
    ("tablet", "Firefox Mobile", "Android", "Mozilla/5.0 (Android 14; Tablet; rv:145.0) Gecko/145.0 Firefox/145.0"),
    (
        "tablet",
        "Amazon Silk",
        "Android",
        f"Mozilla/5.0 (Linux; Android 9; KFMAWI) {WEBKIT} Silk/120.4.1 like Chrome/120.0.6099.230 Safari/537.36",
    ),
    (
        "unknown",
        "Chrome",
        "Android",
        f"Mozilla/5.0 (Linux; Android 12; BRAVIA 4K) {WEBKIT} Chrome/110.0.0.0 Safari/537.36",
    ),
    ("desktop", None, None, "Mozilla/5.0 (X11)"),
]

PROGRAMS = [
    ("Googlebot", "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"),
    (
        "Googlebot",
        f"Mozilla/5.0 {PIXEL} {WEBKIT} Chrome/141.0.0.0 Mobile Safari/537.36"
        " (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    ),
    ("YandexBot", "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)"),
    ("bingbot", "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)"),
    ("GPTBot", f"Mozilla/5.0 {WEBKIT[:-1]}; compatible; GPTBot/1.2; +https://openai.com/gptbot)"),
    ("ChatGPT-User", f"Mozilla/5.0 {WEBKIT[:-1]}; compatible; ChatGPT-User/1.0; +https://openai.com/bot)"),
    ("ClaudeBot", f"Mozilla/5.0 {WEBKIT[:-1]}; compatible; ClaudeBot/1.0; +claudebot@anthropic.com)"),
    (
        "PerplexityBot",
        f"Mozilla/5.0 {WEBKIT[:-1]}; compatible; PerplexityBot/1.0; +https://perplexity.ai/perplexitybot)",
    ),
    ("facebookexternalhit", "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)"),
    ("HeadlessChrome", f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} HeadlessChrome/142.0.0.0 Safari/537.36"),
    ("curl", "curl/8.16.0"),
    ("python-requests", "python-requests/2.32.5"),
    ("aiohttp", "Python/3.11 aiohttp/3.14.5"),
    ("Java", "Java/17.0.2"),
    ("PostmanRuntime", "PostmanRuntime/7.43.0"),
    ("puppeteer", "puppeteer/24.0"),
    ("Playwright", "Playwright/1.57.0 (x64; debian 12) node/20.19"),
    (None, "NewShinyBot/0.1"),  # on no list
]


@pytest.mark.parametrize(("device", "browser", "os", "user_agent"), PEOPLE)
def test_a_persons_browser_is_named_with_its_device(
    device: agents.Device, browser: str | None, os: str | None, user_agent: str
) -> None:
    assert describe(user_agent) == Agent(device, browser, os, automated=False)


@pytest.mark.parametrize(("name", "user_agent"), PROGRAMS)
def test_a_program_is_a_bot_under_its_own_name(name: str | None, user_agent: str) -> None:
    found = describe(user_agent)
    assert (found.device, found.automated) == ("bot", True)
    assert name is None or found.browser == name


def test_nobodys_user_agent_is_no_bots() -> None:
    assert describe(None) is UNKNOWN
    assert not UNKNOWN.automated


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_user_agent_is_a_programs(text: str) -> None:
    assert describe(text) is EMPTY
    assert EMPTY.automated


def test_every_crawler_that_the_list_gives_as_an_example_is_found() -> None:
    examples = [example for entry in CRAWLER_USER_AGENTS_DATA for example in entry["instances"]]
    assert len(examples) > 2000
    assert [example for example in examples if not describe(example).automated] == []


@given(st.text(st.characters(exclude_categories=()), max_size=600))  # lone surrogates, too
@example("Googlebot \udcff")
def test_no_text_is_too_strange_and_what_the_list_finds_is_found(text: str) -> None:
    found = describe(text)
    assert found.automated == (found.device == "bot")
    assert found.automated or not is_crawler(text[: agents.READ].strip())


def test_no_more_than_its_beginning_is_read() -> None:
    beginning = "Mozilla/5.0 (Windows NT 10.0) Firefox/145.0".ljust(agents.READ, "x")
    assert describe(beginning + "Googlebot" * 100_000) is describe(beginning)


def test_descriptions_are_remembered_in_a_bounded_number() -> None:
    described = agents._described
    for number in range(agents.REMEMBERED + 10):
        describe(f"Browser/{number}")
    assert described.cache_info().currsize == agents.REMEMBERED


@pytest.mark.parametrize("unit", ["A", "bot", "cubot", "Silk/", "Android ", "(compatible; ", "a1 "])
def test_no_text_makes_an_expression_try_all_ways_to_read_it(unit: str) -> None:
    """Of a text that is cut nowhere: in READ characters even a cube of them takes but a second."""
    agents.load()
    # Behind each "Android" it is looked for a "Mobile" to the end: within READ that is nothing, of more the square.
    text = unit * ((20_000 if unit == "Android " else 200_000) // len(unit))
    with linear():
        agents._described.__wrapped__(text)
