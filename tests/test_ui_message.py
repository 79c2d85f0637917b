"""The message page: its visit in words, the letter in its frame, and what one can do about it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.letter import Letter
from relay.core.model import OutcomeKind
from relay.core.wire import stuff
from relay.extract import Extractor
from relay.extract_worker import extract
from relay.store import blocked, history, queue_by_hand, retention
from relay.store.journey import CANDIDATES
from relay.store.messages import Accepted
from relay.store.schema import changes, deliveries, messages, visits
from tests.hostile_world import fill, spoil, vectors
from tests.ledger import SOAK
from tests.store_fixtures import DAY, OTHER, SHOP, TRACK, World
from tests.ui_fixtures import Pages, pages
from webapi.ui.message import RUNS, runs
from webapi.ui.message_letter import Letters, document

CARD = f"card@{TRACK}"
PIXEL = b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
LETTER = (
    b"From: ann@example.org\r\nSubject: Offer\r\nContent-Type: multipart/related; boundary=r\r\n\r\n"
    b"--r\r\nContent-Type: multipart/alternative; boundary=a\r\n\r\n"
    b"--a\r\n\r\nHello\r\n> quoted\r\n> twice\r\nBye\r\n"
    b"--a\r\nContent-Type: text/html\r\n\r\n<p onclick=alert(1)>Hello <b>you</b></p><script>alert(2)</script>"
    b'<img src="cid:pixel@x"><img src="https://tracker.example/open.gif" alt="shop">\r\n--a--\r\n'
    b"--r\r\nContent-Type: image/png; name=dot.png\r\nContent-ID: <pixel@x>\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\n" + PIXEL + b"\r\n--r--\r\n"
)


@pytest.fixture
async def p(tmp_path: Path) -> AsyncIterator[Pages]:
    async with pages(tmp_path) as found:
        yield found


async def letter(w: World, *addresses: str, message: bytes = LETTER, forward: bool = True, **changes: Any) -> Accepted:
    """A letter that was read and, unless told otherwise, forwarded."""
    found = extract(message)
    accepted = await w.accept(*(addresses or (CARD,)), body=stuff(message), size=len(message), **changes)
    await w.extract(accepted.message_id, text=found.text, subject=found.subject, attachments=found.attachments)
    for job in accepted.jobs if forward else ():
        await w.finish(job)
    return accepted


def words(page: str) -> str:
    """What is read on a page."""
    main = page[page.index("<main") :]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", main)).split())


async def seen(p: Pages, path: str) -> str:
    answer = await p.get(path)
    assert answer.status == 200, answer.text[-2000:]
    return words(answer.text)


async def history_rows(p: Pages) -> list[str]:
    """What the History says of each letter's visit."""
    cells = re.findall(r'<td class="visit">(.*?)</td>', (await p.get("/ui/history")).text, re.DOTALL)
    return [" ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in cells]


# ---- its life and its visit


async def test_it_tells_a_life(p: Pages) -> None:
    w = p.world
    page = "https://www.shop.example/prices?utm_source=google&utm_medium=cpc&utm_campaign=spring"
    visit, address = await w.shown(page=page, referrer="https://www.google.com/")
    w.pass_time(2280)
    accepted = await letter(w, address, tls="TLSv1.3", forward=False)
    w.pass_time(5)
    await w.finish(accepted.jobs[0])
    text = await seen(p, f"/ui/messages/{accepted.message_id}")
    for told in (
        f"Page view visit {visit} 15 Jan 2027, 08:00:00.000 source google_cpc_spring",
        f"at once Address shown {address}",
        "38 min later Letter received ann@example.org 15 Jan 2027, 08:38:00.000 from mail.example.org [192.0.2.9]",
        "connection TLSv1.3",
        "Forwarded sales@example.com 15 Jan 2027, 08:38:04.000 · took 1.0 s host mx.example.com[192.0.2.1]:25",
        "250 it is delivered",
        "Waits to be posted to the CRM crm.example any moment now",
        "exact Certain. info1@track.example.com was shown to this visit",
        "utm_campaign spring",
        "In the mailbox after 5.0 s",
        "Written after the address was shown 38 min",
    ):
        assert told in text, told


async def test_a_first_visit_that_is_known_no_more_is_not_said_to_have_been_direct(p: Pages) -> None:
    w = p.world
    first, _ = await w.shown()
    _, address = await w.shown(number=first, page="https://www.shop.example/?rs=mail_2")
    path = f"/ui/messages/{(await letter(w, address)).message_id}"
    assert "First touch direct" in await seen(p, path)
    await w.store.write(lambda tx: tx.sql("DELETE FROM visits WHERE number = ?", (first,)))
    text = await seen(p, path)
    assert f"First visit {first}" in text
    assert "First touch" not in text


async def test_candidates_are_told_with_their_probabilities_and_none_is_stated(p: Pages) -> None:
    w = p.world
    first, address = await w.shown(page="https://www.shop.example/?utm_source=a")
    await w.shown(page="https://www.shop.example/?utm_source=b")
    w.pass_time(1000)
    third, again = await w.shown(page="https://www.shop.example/?utm_source=c")
    assert again == address
    accepted = await letter(w, address)
    text = await seen(p, f"/ui/messages/{accepted.message_id}")
    assert "Visit not stated" in text
    assert "Source one of 2" in text
    assert "Candidates none of them is stated as fact" in text
    assert re.search(rf"\d+ % \d+ % visit {third} c address shown .* \d+ % \d+ % visit {first} a address shown", text)
    assert "Page view" not in text
    assert "Address shown" not in text


async def test_candidates_of_which_one_is_erased_still_sum_up(p: Pages) -> None:
    w = p.world
    _, address = await w.shown(page="https://www.shop.example/?utm_source=a")
    await w.shown(page="https://www.shop.example/?utm_source=b")
    w.pass_time(1000)
    third, _ = await w.shown(page="https://www.shop.example/?utm_source=c")
    accepted = await letter(w, address)
    await w.store.write(lambda tx: tx.sql("UPDATE visits SET erased_at = 1 WHERE number = ?", (third,)))
    text = await seen(p, f"/ui/messages/{accepted.message_id}")
    assert third not in text
    assert re.search(r"\d+ % other visits, or such as were erased", text)
    assert "Source one of several" in text
    assert "one of 1" not in text
    (row,) = await history_rows(p)
    assert re.fullmatch(r"likely several candidates, of those still known the first \d+ \d+(\.\d)? %", row)


async def test_many_candidates_are_counted_in_the_history_as_on_the_page(p: Pages) -> None:
    """More than the page lists, each with so small a share that none is missed in the sum."""
    w = p.world
    for _ in range(CANDIDATES + 1):
        await w.shown("help@example.com")
    accepted = await letter(w)
    ids = [row[0] for row in await w.rows(select(visits.c.id))]
    shares = [[one, 0.99 if one == ids[0] else 0.0005] for one in ids]
    likely = "UPDATE deliveries SET attribution = 'likely', attribution_method = 'pool/2', candidates = ?"
    await w.store.write(lambda tx: tx.sql(likely, (json.dumps(shares),)))
    assert f"Source one of {CANDIDATES + 1}" in await seen(p, f"/ui/messages/{accepted.message_id}")
    (row,) = await history_rows(p)
    assert row.startswith(f"likely {CANDIDATES + 1} candidates, the first")
    await w.store.write(lambda tx: tx.sql("UPDATE visits SET erased_at = 1 WHERE id = ?", (ids[-1],)))
    assert "Source one of several" in await seen(p, f"/ui/messages/{accepted.message_id}")
    (row,) = await history_rows(p)
    assert row.startswith("likely several candidates, of those still known the first")


async def test_candidates_that_are_all_erased_are_not_counted(p: Pages) -> None:
    w = p.world
    _, address = await w.shown()
    await w.shown()
    w.pass_time(1000)
    await w.shown()
    accepted = await letter(w, address)
    await w.store.write(lambda tx: tx.sql("UPDATE visits SET erased_at = 1"))
    text = await seen(p, f"/ui/messages/{accepted.message_id}")
    assert "Source one of several" in text
    assert "one of 0" not in text
    assert await history_rows(p) == ["likely"]


async def test_every_other_attribution_is_explained(p: Pages) -> None:
    w = p.world
    visit, plus = await w.shown("help@example.com")
    _, unique = await w.shown("jobs@example.com")
    told = {
        f"help+4711@{TRACK}": "Only claimed. The letter names the visit 4711 behind the plus",
        f"help@{TRACK}": "Inferred. No page view explains help@track.example.com, but the same sender",
        plus: f"Certain. The number behind the plus of {plus} is this visit",
        unique: f"Certain. {unique} was made for this visit alone",
        CARD: f"Certain, without a visit. {CARD} is a fixed address, labelled “card”",
        f"info1@{TRACK}": "No visit. Nobody had this address on a page before the letter came in.",
        "postmaster@mx.example": "No visit. It is mail to the operator of this server",
    }
    for number, (address, explained) in enumerate(told.items()):
        sender = "bob@example.org" if number else "ann@example.org"
        if address.startswith("help@"):
            await letter(w, plus, message=b"From: x\r\n\r\nfirst", sender=sender)
        if address.startswith("info1@"):
            sender = "eve@example.org"
        message = b"From: x\r\n\r\n%d" % number
        accepted = await letter(w, address, message=message, sender=sender, claim=None)
        text = await seen(p, f"/ui/messages/{accepted.message_id}")
        assert explained in text, (address, text)
        assert ("Source card" in text) is (address == CARD)
        assert (f"Visit {visit}" in text) is (address in (plus, f"help@{TRACK}")), address


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("retired/1", "No visit. The address is in use no more"),
        ("off/1", "No visit. Track e-mails was off for this site"),
        ("erased/1", "No visit. The visit it came from has been erased."),
        ("unknown/1", "No visit. Nobody that is known had this address"),
    ],
)
async def test_why_no_visit_is_looked_up_or_known(p: Pages, method: str, told: str) -> None:
    accepted = await letter(p.world)
    none = "UPDATE deliveries SET attribution = 'none', label = NULL, attribution_method = ?"
    await p.world.store.write(lambda tx: tx.sql(none, (method,)))
    assert told in await seen(p, f"/ui/messages/{accepted.message_id}")


async def test_who_wrote_to_the_address_before_is_told_of(p: Pages) -> None:
    w = p.world
    first, leased = await w.shown()
    await letter(w, leased)
    w.pass_time(2 * DAY)
    await w.shown()  # the other address of the pool
    assert (await w.shown())[1] == leased
    accepted = await letter(w, leased, message=b"From: x\r\n\r\nagain", message_id="2@example.org")
    text = await seen(p, f"/ui/messages/{accepted.message_id}")
    assert (
        f"Not certain. An earlier letter to {leased}, which this one answers or which has the same sender, came" in text
    )
    assert re.search(rf"90(\.0)? % visit {first} ", text)


async def test_a_number_whose_visit_was_erased_is_not_called_made_up(p: Pages) -> None:
    w = p.world
    visit, plus = await w.shown("help@example.com")
    shop, now = w.site().id, w.now
    assert await w.store.write(lambda tx: retention.erase_visit(tx, shop, visit, now, browser=False)) == 1
    accepted = await letter(w, plus)
    text = await seen(p, f"/ui/messages/{accepted.message_id}")
    assert f"Only claimed. The letter names the visit {visit} behind the plus" in text
    assert "deleted since" in text
    assert "ever gave" not in text


async def test_answers_of_a_thread_are_inferred_and_an_erased_visit_is_gone(p: Pages) -> None:
    w = p.world
    visit, address = await w.shown()
    await letter(w, address, message_id="1@example.org")
    answer = await letter(
        w, f"help@{TRACK}", message=b"From: x\r\n\r\nre", sender="cc@example.org", in_reply_to="1@example.org"
    )
    text = await seen(p, f"/ui/messages/{answer.message_id}")
    assert "but the letter answers an earlier one, and that came from this visit" in text
    assert f"Visit of the thread inferred visit {visit}" in text
    assert "Page view" not in text
    assert f"Visit {visit} (inferred from the thread)" in text
    await w.store.write(lambda tx: tx.sql("UPDATE visits SET erased_at = 1"))
    assert "Inferred" not in (gone := await seen(p, f"/ui/messages/{answer.message_id}"))
    assert "The visit was erased." in gone
    assert visit not in gone


async def test_a_visit_of_long_ago_is_the_senders_and_not_this_letters(p: Pages) -> None:
    w = p.world
    visit, address = await w.shown("help@example.com", page="https://www.shop.example/?utm_source=google")
    await letter(w, address)
    w.pass_time(80 * DAY)
    later = await letter(w, f"help@{TRACK}", message=b"From: x\r\n\r\nlater")
    viewer = await p.user("viewer")  # the session of before has ended
    page = (await viewer.get(f"/ui/messages/{later.message_id}")).text
    text = words(page)
    assert f"Earlier visit of this sender inferred visit {visit}" in text
    assert "Page view" not in text
    assert "Address shown" not in text
    assert "after the address was shown" not in text
    grounds = "(inferred from an earlier letter of the sender)"
    assert f"Source google {grounds} Visit {visit} {grounds}" in text
    assert page.count(f"<small>{grounds}</small></span>") == 2


async def test_a_number_of_another_counter_is_not_called_ours(p: Pages) -> None:
    _, address = await p.world.shown("help@example.com", number="4711")
    assert address == f"help+4711@{TRACK}"
    accepted = await letter(p.world, address)
    text = await seen(p, f"/ui/messages/{accepted.message_id}")
    assert f"Certain. The number behind the plus of {address} is this visit’s. It was given by another counter" in text
    assert "we gave it" not in text


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM routes WHERE kind = 'static'",
        "UPDATE routes SET kind = 'unique', label = NULL WHERE kind = 'static'",
        "UPDATE routes SET label = 'fair' WHERE kind = 'static'",
    ],
)
async def test_a_letter_to_a_fixed_address_keeps_its_label_whatever_the_address_is_now(p: Pages, change: str) -> None:
    accepted = await letter(p.world)
    await p.world.store.write(lambda tx: tx.sql(change))
    text = await seen(p, f"/ui/messages/{accepted.message_id}")
    assert f"Certain, without a visit. {CARD} is a fixed address, labelled “card”" in text
    assert "Source card" in text
    assert "erased" not in text


async def test_an_address_that_became_fixed_later_keeps_the_visit_of_its_mail(p: Pages) -> None:
    visit, address = await p.world.shown()
    accepted = await letter(p.world, address)
    await p.world.store.write(lambda tx: tx.sql("UPDATE routes SET kind = 'static', label = 'card2'"))
    text = await seen(p, f"/ui/messages/{accepted.message_id}")
    assert f"Visit {visit}" in text
    assert f"Certain. {address} was shown to this visit" in text


async def test_who_sees_one_site_sees_nothing_of_the_other(p: Pages) -> None:
    w = p.world
    first, mine = await w.shown(page="https://www.shop.example/?utm_source=secret-of-shop")
    _, theirs = await w.shown(name="other", page="https://www.other.example/?utm_source=told-to-other")
    accepted = await letter(w, mine, theirs)
    viewer = await p.user("viewer", "other")
    text = await seen(viewer, f"/ui/messages/{accepted.message_id}")
    assert "told-to-other" in text
    assert not [word for word in ("secret-of-shop", mine, first) if word in text]
    assert "Forwarded sales@example.com" in text, "with the other site's copy"
    assert "Your role may look." in text
    alone = await letter(w, mine, message=b"From: x\r\n\r\n2")
    for path in ("", "/letter", "/raw"):
        assert (await viewer.get(f"/ui/messages/{alone.message_id}{path}")).status == 404


@pytest.mark.parametrize("number", ["0", "999", "x", "9" * 30])
async def test_what_is_not_there_is_not_there(p: Pages, number: str) -> None:
    for path in ("", "/letter", "/raw"):
        assert (await p.get(f"/ui/messages/{number}{path}")).status == 404


async def test_a_letter_that_is_under_way_is_looked_at_again(p: Pages) -> None:
    accepted = await p.world.accept(CARD, claim=None)
    page = (await p.get(f"/ui/messages/{accepted.message_id}")).text
    assert 'hx-trigger="every 2s"' in page
    assert "Text and files are being read" in page
    done = await letter(p.world, message=b"From: x\r\n\r\n2")
    await p.world.store.write(lambda tx: tx.sql("UPDATE posts SET state = 'delivered'"))
    assert 'hx-trigger="every 2s"' not in (await p.get(f"/ui/messages/{done.message_id}")).text


# ---- the letter


async def test_the_text_is_shown_with_what_it_quotes_set_apart(p: Pages) -> None:
    accepted = await letter(p.world)
    page = (await p.get(f"/ui/messages/{accepted.message_id}")).text
    assert '<span>Hello</span>\n<span class="quoted">&gt; quoted\n&gt; twice</span>\n<span>Bye</span>' in page
    assert runs("") == [(False, "")]


async def test_of_lines_that_quote_by_turns_without_end_the_rest_is_one_run() -> None:
    assert runs("a\n>b\n>c\nd") == [(False, "a"), (True, ">b\n>c"), (False, "d")]
    text = ">\n\n" * 300_000
    found = runs(text)
    assert len(found) == RUNS + 1
    assert "\n".join(lines for _, lines in found) == text


async def test_a_long_text_is_shown_whole_when_asked(p: Pages) -> None:
    accepted = await letter(p.world, message=b"From: x\r\n\r\n" + b"word " * 20_000 + b"END")
    path = f"/ui/messages/{accepted.message_id}"
    assert "END" not in (short := await seen(p, path))
    assert "Show all of it" in short
    assert "END" in await seen(p, f"{path}?show=text&whole=1")


async def test_a_tab_alone_is_answered_to_htmx(p: Pages) -> None:
    accepted = await letter(p.world)
    page = (await p.get(f"/ui/messages/{accepted.message_id}?show=source&part=letter")).text
    assert page.lstrip().startswith("<section")
    assert "Content-Type: multipart/related" in page


async def test_the_frame_runs_nothing_and_shows_what_came_along(p: Pages) -> None:
    accepted = await letter(p.world)
    page = (await p.get(f"/ui/messages/{accepted.message_id}?show=letter")).text
    assert f'<iframe src="/ui/messages/{accepted.message_id}/letter"' in page
    frame = await p.get(f"/ui/messages/{accepted.message_id}/letter")
    assert (frame.status, frame.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = frame.headers["Content-Security-Policy"]
    for told in (
        "sandbox ",
        "default-src 'none'",
        "img-src 'self' data:",
        "frame-ancestors 'self'",
        "form-action 'none'",
    ):
        assert told in policy
    assert "allow-scripts" not in policy
    assert "allow-same-origin" not in policy
    assert not [word for word in ("script", "onclick", "alert", "tracker.example") if word in frame.text]
    assert "1 picture from the internet is not loaded" in frame.text
    link = re.search(r'<img src="(/a/[^"]+/dot\.png)">', frame.text)
    assert link is not None
    response, octets = await p.api.request("GET", link[1])
    assert (response.status, response.content_type, octets[:4]) == (200, "image/png", b"\x89PNG")


async def test_a_picture_that_is_shown_thousands_of_times_is_linked_once(
    p: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(key: bytes, message: int, index: int, expires: int, site: int | None) -> str:
        made.append(index)
        return "signed"

    accepted = await letter(p.world)
    row = await history.one(p.api.context.store.reader, accepted.message_id, None)
    assert row is not None
    monkeypatch.setattr("webapi.links.make", make)
    page = document(p.api.context, row, Letter('<img src="m-0">' * 10_000 + '<img src="m-1">', "m"), None, None)
    assert page.count('"/a/signed/dot.png"') == 10_000
    assert page.count('<img src="">') == 1
    assert made == [0]


async def test_without_a_worker_the_frame_has_the_text(p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(channel: int, arguments: list[str]) -> None:
        raise BlockingIOError("no more processes")

    accepted = await letter(p.world)
    path = f"/ui/messages/{accepted.message_id}/letter"
    with monkeypatch.context() as without:
        without.setattr("relay.extract._popen", refused)
        frame = (await p.get(path)).text
    assert "The formatted letter cannot be shown safely; this is its text." in frame
    assert "Hello" in frame
    assert "<b>you</b>" in (await p.get(path)).text, "the next one is tried again"
    letters = Letters()
    await letters.read(1, b"x")
    await letters.close()
    assert (await letters.read(1, b"x")).cut


async def test_a_letter_that_cannot_be_shown_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bytes] = []

    async def hopeless(self: Extractor, source: bytes | Path) -> Letter:
        assert isinstance(source, bytes)
        tried.append(source)
        return Letter(cut=True)

    monkeypatch.setattr(Extractor, "letter", hopeless)
    monkeypatch.setattr("webapi.ui.message_letter.HOPELESS", 2)
    letters = Letters()
    try:
        for number in (1, 1, 2, 1, 3, 1):
            assert await letters.read(number, b"%d" % number) == Letter(cut=True)
    finally:
        await letters.close()
    assert tried == [b"1", b"2", b"3", b"1"]


async def test_without_html_there_is_no_tab_and_the_frame_has_the_text(p: Pages) -> None:
    accepted = await letter(p.world, message=b"From: x\r\n\r\n<b>plain</b>")
    assert "As written" not in await seen(p, f"/ui/messages/{accepted.message_id}")
    assert "iframe" not in (await p.get(f"/ui/messages/{accepted.message_id}?show=letter")).text
    frame = (await p.get(f"/ui/messages/{accepted.message_id}/letter")).text
    assert "&lt;b&gt;plain&lt;/b&gt;" in frame


async def test_a_letter_in_a_file_is_shown_alike(p: Pages) -> None:
    wire = stuff(LETTER + b".\r\n" + b"x" * 300_000)
    p.api.context.bodies.path("a" * 64).write_bytes(wire)
    accepted = await p.world.accept(CARD, data=None, file="a" * 64)
    await p.world.extract(accepted.message_id)
    path = f"/ui/messages/{accepted.message_id}"
    assert "<b>you</b>" in (await p.get(f"{path}/letter")).text
    assert "This is its beginning." in (source := await seen(p, f"{path}?show=source"))
    assert "Subject: Offer" in source
    assert (await p.get(f"{path}/raw")).text == LETTER.decode() + ".\r\n" + "x" * 300_000
    p.api.context.bodies.path("a" * 64).unlink()
    assert (await p.get(path)).status == 200
    assert (await p.get(f"{path}?show=source")).status == 200
    assert (await p.get(f"{path}/letter")).status == 200


async def test_the_source_is_downloaded_as_it_was_received(p: Pages) -> None:
    accepted = await letter(p.world)
    answer = await p.get(f"/ui/messages/{accepted.message_id}/raw")
    assert answer.text.encode() == LETTER
    assert answer.headers["Content-Disposition"] == f'attachment; filename="message-{accepted.message_id}.eml"'


async def test_when_the_bytes_are_gone_the_page_says_so(p: Pages) -> None:
    accepted = await letter(p.world)
    now = p.world.now
    await p.world.store.write(lambda tx: tx.sql("UPDATE messages SET raw_removed_at = ?", (now,)))
    path = f"/ui/messages/{accepted.message_id}"
    text = await seen(p, path)
    assert "were removed 15 Jan 2027, 08:00:00 , as the setting retention.raw says" in text
    assert "Send again" not in text
    assert "Source" not in text.partition("Its life")[2]
    assert (await p.get(f"{path}/letter")).status == 410
    assert (await p.get(f"{path}/raw")).status == 410


# ---- actions


async def test_it_is_posted_again(p: Pages) -> None:
    accepted = await letter(p.world)
    path = f"/ui/messages/{accepted.message_id}"
    answer = await p.post(f"{path}/replay", {"reattribute": "1"})
    assert (answer.status, answer.location) == (303, f"{path}?done=replayed")
    assert p.api.woken == ["posts"]
    unread = await p.world.accept(CARD, body=b"From: x\r\n\r\n2")
    answer = await p.post(f"/ui/messages/{unread.message_id}/replay")
    assert answer.status == 409
    assert "nothing to post: the text is not extracted yet" in words(answer.text)


async def test_it_is_sent_again_once(p: Pages) -> None:
    accepted = await letter(p.world)
    (job,) = accepted.jobs
    path = f"/ui/messages/{accepted.message_id}"
    assert "A second copy will arrive at sales@example.com" in await seen(p, path)
    form = {"delivery": str(job.delivery_id), "attempts": "1"}
    answer = await p.post(f"{path}/resend", form)
    assert (answer.status, answer.location) == (303, f"{path}?done=resent")
    assert p.api.woken == ["deliveries"]
    assert await p.world.rows(select(deliveries.c.state)) == [("queued",)]
    again = await p.post(f"{path}/resend", form)
    assert (again.status, "it waits to be forwarded" in again.text) == (409, True)
    assert "Send again" not in again.text


@pytest.mark.parametrize("given_up", [False, True])
async def test_only_an_administrator_sends_again_what_is_held_or_was_given_up(p: Pages, given_up: bool) -> None:
    accepted = await letter(p.world, forward=False)
    (job,) = accepted.jobs
    await p.world.finish(job, OutcomeKind.PERMANENT)
    if given_up:
        await p.world.store.write(lambda tx: queue_by_hand.drop(tx, [job.delivery_id], p.world.now))
    path, form = f"/ui/messages/{accepted.message_id}", {"delivery": str(job.delivery_id), "attempts": "1"}
    manager = await p.user("manager")
    assert "Send again" not in await seen(manager, path)
    answer = await manager.post(f"{path}/resend", form)
    assert (answer.status, "takes the role admin" in answer.text) == (403, True)
    assert "Send again" in await seen(p, path)
    assert (await p.post(f"{path}/resend", form)).location == f"{path}?done=resent"


async def test_only_a_letters_own_deliveries_are_sent_again_from_its_page(p: Pages) -> None:
    first, second = await letter(p.world), await letter(p.world, message=b"From: x\r\n\r\n2")
    form = {"delivery": str(second.jobs[0].delivery_id), "attempts": "1"}
    assert (await p.post(f"/ui/messages/{first.message_id}/resend", form)).status == 404
    assert p.api.woken == []


async def test_each_site_has_a_deal_of_its_own(p: Pages) -> None:
    w = p.world
    _, to_shop = await w.shown("help@example.com")
    _, to_other = await w.shown("sales@example.com", "other")
    accepted = await letter(w, to_shop, to_other)
    path = f"/ui/messages/{accepted.message_id}"
    for site, number in (("shop", "1"), ("other", "2")):
        answer = await p.post(f"{path}/deal", {"id": number, "url": "", "site": site})
        assert answer.location == f"{path}?done=deal"
    assert deals_of((await p.get(path)).text) == [("shop", "1"), ("other", "2")]
    wrong = await p.post(f"{path}/deal", {"id": "3", "url": "ftp://crm.example", "site": "other"})
    assert wrong.status == 400
    assert deals_of(wrong.text) == [("shop", "1"), ("other", "3")]
    assert wrong.text.count('id="wrong-url"') == 1
    assert deals_of((await p.get(path)).text) == [("shop", "1"), ("other", "2")]


def deals_of(page: str) -> list[tuple[str, str]]:
    """(site, number) of each form for a deal."""
    return re.findall(r'name="site" value="(\w+)">.*?name="id" value="(\d+)"', page, re.DOTALL)


async def test_the_deal_is_set_and_a_wrong_one_is_told_beside_its_field(p: Pages) -> None:
    accepted = await letter(p.world)
    path = f"/ui/messages/{accepted.message_id}"
    answer = await p.post(f"{path}/deal", {"id": " 4711 ", "url": "https://crm.example/4711"})
    assert (answer.status, answer.location) == (303, f"{path}?done=deal")
    page = (await p.get(answer.location)).text
    assert '<a href="https://crm.example/4711" rel="noopener noreferrer" target="_blank">4711</a>' in page
    assert "The deal is saved." in page
    wrong = await p.post(f"{path}/deal", {"id": "4712", "url": "javascript:alert(1)"})
    assert wrong.status == 400
    assert 'id="wrong-url"' in wrong.text
    assert 'value="4712"' in wrong.text
    assert 'value="javascript:alert(1)"' in wrong.text
    assert 'href="javascript' not in wrong.text


async def test_the_sender_is_blocked_and_unblocked_at_a_site(p: Pages) -> None:
    _, theirs = await p.world.shown(name="other")
    accepted = await letter(p.world, CARD, theirs)
    path = f"/ui/messages/{accepted.message_id}"
    answer = await p.post(f"{path}/block", {"site": "shop", "sender": "@example.org"})
    assert (answer.status, answer.location) == (303, f"{path}?done=blocked")
    assert await blocked.listing(p.world.store.reader, p.world.site().id) == ["@example.org"]
    text = await seen(p, path)
    assert "@example.org is blocked at shop." in text
    assert "Block at other" in text
    answer = await p.post(f"{path}/block", {"site": "shop", "sender": "@example.org", "undo": "1"})
    assert answer.location == f"{path}?done=unblocked"
    assert await blocked.listing(p.world.store.reader, p.world.site().id) == []
    wrong = await p.post(f"{path}/block", {"site": "shop", "sender": "not an address"})
    assert wrong.status == 400


async def test_a_block_is_seen_whichever_way_the_domain_is_written(p: Pages) -> None:
    accepted = await letter(p.world, sender="ann@bücher.example")
    path = f"/ui/messages/{accepted.message_id}"
    answer = await p.post(f"{path}/block", {"site": "shop", "sender": "ann@bücher.example"})
    assert (answer.status, answer.location) == (303, f"{path}?done=blocked")
    assert "ann@xn--bcher-kva.example is blocked at shop." in await seen(p, path)


async def test_it_is_erased_only_by_who_is_sure(p: Pages) -> None:
    accepted = await letter(p.world)
    path = f"/ui/messages/{accepted.message_id}/erase"
    unsure = await p.post(path)
    assert unsure.status == 400
    assert "tick the box" in unsure.text
    assert '<details class="erase" open>' in unsure.text
    answer = await p.post(path, {"sure": "yes"})
    assert (answer.status, answer.location) == (303, "/ui/history?done=erased")
    assert await p.world.rows(select(messages.c.id)) == []


async def test_what_is_still_being_forwarded_is_not_erased(p: Pages) -> None:
    accepted = await letter(p.world, forward=False)
    answer = await p.post(f"/ui/messages/{accepted.message_id}/erase", {"sure": "yes"})
    assert (answer.status, "it is still being forwarded" in answer.text) == (409, True)


async def test_everything_of_a_sender_is_erased(p: Pages) -> None:
    ids = [(await letter(p.world, message=b"From: x\r\n\r\n%d" % n)).message_id for n in range(3)]
    kept = await letter(p.world, message=b"From: y\r\n\r\n", sender="bob@example.org")
    answer = await p.post(f"/ui/messages/{ids[0]}/erase", {"sure": "yes", "all": "1"})
    assert answer.location == "/ui/history?done=erased"
    assert await p.world.rows(select(messages.c.id)) == [(kept.message_id,)]
    waits = await letter(p.world, message=b"From: y\r\n\r\n2", sender="bob@example.org", forward=False)
    answer = await p.post(f"/ui/messages/{kept.message_id}/erase", {"sure": "yes", "all": "1"})
    assert answer.location == "/ui/history?done=erased_in_part"
    assert await p.world.rows(select(messages.c.id)) == [(waits.message_id,)]


@pytest.mark.parametrize("role", ["viewer", "manager"])
async def test_who_may_not_is_neither_shown_the_form_nor_obeyed(p: Pages, role: str) -> None:
    accepted = await letter(p.world)
    somebody = await p.user(role)
    path = f"/ui/messages/{accepted.message_id}"
    page = (await somebody.get(path)).text
    forbidden = ("erase", "deal", "replay", "resend", "block") if role == "viewer" else ("erase",)
    for action in forbidden:
        assert f'action="{path}/{action}"' not in page
        answer = await somebody.post(f"{path}/{action}", {"sure": "yes", "id": "1", "site": "shop"})
        assert answer.status == 403, action
    assert await p.world.rows(select(messages.c.id)) == [(accepted.message_id,)]


async def test_what_is_done_is_written_down(p: Pages) -> None:
    accepted = await letter(p.world)
    path = f"/ui/messages/{accepted.message_id}"
    await p.post(f"{path}/deal", {"id": "1", "url": ""})
    await p.post(f"{path}/erase", {"sure": "yes"})
    noted = await p.world.rows(select(changes.c.name, changes.c.action).order_by(changes.c.id))
    assert noted == [("admin-all", "PUT /v1/messages/{id}/deal"), ("admin-all", "DELETE /v1/messages/{id}")]


# ---- hostile


class Shape(HTMLParser):
    """The kinds of elements of a page: tag and names of attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.kinds: set[tuple[str, ...]] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.kinds.add((tag, *sorted(name for name, _ in attrs)))
        for name, value in attrs:
            if name in ("href", "src", "action"):
                assert re.match(r"(/|#|https?://|$)", value or ""), (tag, name, value)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


async def shapes(p: Pages, count: int) -> set[tuple[str, ...]]:
    kinds: set[tuple[str, ...]] = set()
    for number in range(1, count + 1):
        for path in ("", "?show=source", "/letter"):
            answer = await p.get(f"/ui/messages/{number}{path}")
            assert answer.status == 200
            kinds |= Shape(answer.text).kinds
    return kinds


@pytest.mark.parametrize("seed", range(1, 21 if SOAK else 2))
async def test_hostile_strings_in_every_field_add_no_element(tmp_path: Path, seed: int) -> None:
    assert len(vectors()) > 500
    async with pages(tmp_path, SHOP, OTHER) as p:
        await fill(p.world, 6)
        # what a page looks like when everything has a value, quoted lines and all
        benign = "UPDATE texts SET head = 'x' || char(10) || '> y'", "UPDATE messages SET automatic = 'list', tls = 'x'"
        for sql in benign:
            await p.world.store.write(lambda tx, sql=sql: tx.sql(sql))  # type: ignore[misc]
        expected = await shapes(p, 6)
        await p.world.store.write(lambda tx: spoil(tx, seed))
        await p.world.store.redefine(lambda tx: None)
        assert await shapes(p, 6) - expected <= {("a", "href"), ("span",), ("small",), ("small", "class")}
