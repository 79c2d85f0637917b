"""docs/crm: the handler and the receivers that a CRM developer copies, run and posted to."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from standardwebhooks import Webhook

from relay.core import payload
from tests.corpora import corpus
from tests.crm_receivers import CLOCKS, COMMANDS, CRM, Process, lacking, running, source_of
from tests.missing import missing
from tests.scenarios.world import SECRET, World, letter, site, target, unique_letter, world
from tests.webhook_receiver import Receiver
from webapi.signature import new_secret, sign

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

#: What a receiver is started with besides SECRET: the secret that takes its place.
NEXT_SECRET = new_secret(b"the next one of a CRM's secrets")
STRANGE_SECRET = new_secret(b"nobody's secret: 24 octets")
#: The reference's manual, "Example of a handler that supplements the log".
PRINTED = (
    "<?php $data = json_decode(trim(file_get_contents('php://input')), true); "
    "file_put_contents('webhook-log.html', serialize($data) . '<br />', FILE_APPEND); "
    '// In $data will be array "key" => value with information about the letter described above'
)


@pytest.fixture(scope="module")
def receivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """Those that this machine can run, and the reference's handler."""
    home = tmp_path_factory.mktemp("receivers")
    secrets = f"{SECRET} {NEXT_SECRET}"
    with contextlib.ExitStack() as stack:
        made = {}
        for name, command in COMMANDS.items():
            if lacking(name) is None:
                made[name] = stack.enter_context(running(command, home / name, source_of(name), secrets))
        if "php" in made:
            command = ["php", "-S", "127.0.0.1:0", "handler.php"]
            source = (CRM / "handler.php").read_text()
            made["handler"] = stack.enter_context(running(command, home / "handler", source, ""))
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(receivers: dict[str, Process], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A site for each receiver, whose letters ``relay.others["witness"]`` gets as well: it knows what was posted."""
    async with Receiver() as witness:
        sites = [
            site(
                target(f"{name}@example.test", "plus"),
                name=name,
                key=f"pk_{name}",
                webhook=[{"url": url, "secret": SECRET} for url in (f"{receiver.url}/hook", witness.url)],
            )
            for name, receiver in receivers.items()
        ]
        async with world(tmp_path_factory.mktemp("relay"), sites=sites) as made:
            made.others["witness"] = witness
            yield made


@pytest.fixture(params=[*COMMANDS])
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if (reason := lacking(chosen)) is not None:
        missing(reason)
    return chosen


@pytest.fixture
def receiver(name: str, receivers: dict[str, Process]) -> Process:
    return receivers[name]


async def mailed(relay: World, name: str, content: bytes) -> tuple[int, dict[str, Any]]:
    """A letter to the receiver's site, and the JSON that was posted of it."""
    bound = await relay.bind(f"{name}@example.test", site=f"pk_{name}")
    message = await relay.mail(bound["addresses"][f"{name}@example.test"], content)
    event, witness = await relay.event(message), relay.others["witness"]
    for count in itertools.count(1):
        posts = await witness.wait_for(count)
        if (post := posts[count - 1]).headers["webhook-id"] == event:
            return message, post.json
    raise AssertionError


async def deal_of(relay: World, message: int) -> dict[str, Any]:
    item = await relay.until(
        lambda: relay.call("GET", f"/v1/messages/{message}"), lambda found: found["deal"]["id"] is not None
    )
    deal: dict[str, Any] = item["deal"]
    return deal


def signed(event: str, body: bytes, secrets: Sequence[str] = (SECRET,), age: float = 0) -> dict[str, str]:
    timestamp = int(time.time() - age)
    return {
        "webhook-id": event,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secrets, event, timestamp, body),
    }


async def posted(receiver: Process, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """Status and JSON of the answer to a post made by hand."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            receiver.url, data=io.BytesIO(body), headers={"Content-Length": str(len(body)), **headers}
        ) as response,
    ):
        return response.status, json.loads(await response.read())


# the reference's handler


async def test_the_handler_is_the_one_that_the_reference_prints() -> None:
    assert (CRM / "handler.php").read_text().split() == PRINTED.split()


async def test_the_references_handler_logs_exactly_what_was_posted(receivers: dict[str, Process], relay: World) -> None:
    if (reason := lacking("php")) is not None:
        missing(reason)
    parts = (
        "Content-Type: text/plain; charset=utf-8",
        "",
        'Добрый день! "Сколько" стоит \'это\'; s:1:"}<br />',
        "--b",
        'Content-Type: application/pdf; name="plan.pdf"',
        "Content-Disposition: attachment",
        "",
        "PDF",
        "--b--",
        "",
    )
    text = "\r\n".join(["--b", *parts])
    fields = ["MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=b"]
    _, sent = await mailed(relay, "handler", letter('Счёт № 7, "срочно"', text, *fields))
    assert "Добрый день!" in sent["text"]
    assert [part["name"] for part in sent["attachments"]] == ["plan.pdf"]
    log = receivers["handler"].home / "webhook-log.html"

    async def logged() -> bytes:
        return log.read_bytes() if log.exists() else b""

    octets = await relay.until(logged, lambda found: found.endswith(b"}<br />"))
    code = "echo json_encode(unserialize(substr(stream_get_contents(STDIN), 0, -6), ['allowed_classes' => false]));"
    read = subprocess.run(["php", "-r", code], input=octets, capture_output=True, check=True).stdout
    assert json.loads(read) == sent
    assert [*json.loads(read)] == [*payload.KEYS]


# letters from the daemon


async def test_a_letter_is_kept_and_its_deal_stands_in_history(name: str, receiver: Process, relay: World) -> None:
    content = letter("Вопрос", 'Сколько "это"?\r\n')
    message, sent = await mailed(relay, name, content)
    deal = await deal_of(relay, message)
    (entry,) = receiver.of(await relay.event(message))
    assert entry["letter"] == sent
    assert entry["letter"]["subject"] == "Вопрос"
    assert entry["answer"] == {"deal_id": deal["id"], "deal_url": deal["url"]}
    assert deal["url"] == f"https://crm.example.com/deals/{deal['id']}"


async def test_a_replay_makes_no_second_deal(name: str, receiver: Process, relay: World) -> None:
    message, _ = await mailed(relay, name, unique_letter())
    before, kept, since = await deal_of(relay, message), len(receiver.stored()), len(relay.daemon.log)
    event = await relay.event(message)
    hook, *_ = await relay.row("SELECT id FROM webhooks WHERE url = ?", f"{receiver.url}/hook")
    assert (await relay.call("POST", f"/v1/messages/{message}/replay", expect=202)) == {"posts": 2, "reattributed": 0}
    entry = await relay.daemon.logged("post", since=since, uid=event, webhook=hook)
    assert (entry["status"], entry["state"]) == (200, "delivered")
    assert await deal_of(relay, message) == before
    assert len(receiver.stored()) == kept
    assert len(receiver.of(event)) == 1


# posts made by hand

BODY = b'{"id": "1", "subject": "Test"}'


@pytest.mark.parametrize("secrets", [[SECRET], [NEXT_SECRET], [SECRET, NEXT_SECRET], [STRANGE_SECRET, NEXT_SECRET]])
async def test_while_a_secret_is_exchanged_either_is_good(secrets: list[str], receiver: Process) -> None:
    event = f"evt_exchange_{len(receiver.stored())}"
    status, answer = await posted(receiver, BODY, signed(event, BODY, secrets))
    assert (status, receiver.of(event)[0]["answer"]) == (200, answer)


async def test_the_standards_own_library_is_a_good_sender(receiver: Process) -> None:
    now = datetime.now(UTC)
    signature = Webhook(SECRET).sign("msg_library", now, BODY.decode())
    headers = {
        "webhook-id": "msg_library",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
    status, _ = await posted(receiver, BODY, headers)
    assert (status, len(receiver.of("msg_library"))) == (200, 1)


GOOD = "evt_refused"
#: Signed when they are posted: a slow run comes to them minutes after it began.
REFUSALS: dict[str, tuple[Callable[[], dict[str, str]], str]] = {
    "another secret": (lambda: signed(GOOD, BODY, [STRANGE_SECRET]), "signature"),
    "an altered body": (lambda: signed(GOOD, BODY + b" "), "signature"),
    "another id": (lambda: signed("evt_other", BODY) | {"webhook-id": GOOD}, "signature"),
    "another version": (lambda: signed(GOOD, BODY) | {"webhook-signature": "v1a,AAAA v2,AAAA v1, ,"}, "signature"),
    "no signature": (lambda: signed(GOOD, BODY) | {"webhook-signature": ""}, "signature"),
    "too old": (lambda: signed(GOOD, BODY, age=310), "timestamp"),
    "from the future": (lambda: signed(GOOD, BODY, age=-900), "timestamp"),
    "no number": (lambda: signed(GOOD, BODY) | {"webhook-timestamp": "1e9"}, "timestamp"),
    "a path": (lambda: signed("../evt", BODY), "webhook-id"),
}


def without(header: str) -> dict[str, str]:
    return {key: value for key, value in signed(GOOD, BODY).items() if key != header}


for header in ("webhook-id", "webhook-timestamp", "webhook-signature"):
    REFUSALS[f"without {header}"] = (partial(without, header), header.removeprefix("webhook-"))


@pytest.mark.parametrize("case", REFUSALS)
async def test_what_does_not_verify_is_refused_with_the_reason(case: str, receiver: Process) -> None:
    (headers, reason), kept = REFUSALS[case], len(receiver.stored())
    status, answer = await posted(receiver, BODY, headers())
    assert (status, [*answer]) == (401, ["error"])
    assert reason in answer["error"]
    assert len(receiver.stored()) == kept


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"text"', b"null", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_refused(body: bytes, receiver: Process) -> None:
    assert await posted(receiver, body, signed("evt_body", body)) == (400, {"error": "not a JSON object"})
    assert receiver.of("evt_body") == []


async def test_a_body_that_is_too_large_is_refused(receiver: Process) -> None:
    """Unread where the receiver sees the request first; php -S reads it before that."""
    host, port = receiver.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST / HTTP/1.1\r\nHost: crm.test\r\nContent-Length: 8000001\r\n\r\n")
    if "php" in receiver.home.name:
        writer.write(b" " * 8_000_001)
    assert b" 413 " in await reader.readline()
    writer.close()


async def test_the_largest_letter_is_taken(receiver: Process) -> None:
    body = payload.encode({**dict.fromkeys(payload.KEYS), "text": "\x01" * 1_000_000})
    status, _ = await posted(receiver, body, signed("evt_large", body))
    assert (status, len(receiver.of("evt_large")[0]["letter"]["text"])) == (200, 1_000_000)


async def test_posts_of_one_event_at_once_make_one_deal(receiver: Process) -> None:
    headers = signed("evt_parallel", BODY)
    answers = await asyncio.gather(*(posted(receiver, BODY, headers) for _ in range(16)))
    assert {status for status, _ in answers} == {200}
    assert {json.dumps(answer, sort_keys=True) for _, answer in answers} == {
        json.dumps(entry["answer"], sort_keys=True) for entry in receiver.of("evt_parallel")
    }
    assert len(receiver.of("evt_parallel")) == 1


async def test_what_cannot_be_stored_is_not_acknowledged(receiver: Process) -> None:
    away = receiver.letters.rename(receiver.home / "away")
    try:
        status, answer = await posted(receiver, BODY, signed("evt_again", BODY))
    finally:
        away.rename(receiver.letters)
    assert (status, "deal_id" in answer) == (500, False)
    assert (await posted(receiver, BODY, signed("evt_again", BODY)))[0] == 200


# receivers of other settings


async def test_the_vectors_of_the_standard_are_verified(name: str, tmp_path: Path) -> None:
    """With a clock that stands where the vector was made."""
    vectors = json.loads((corpus("webhooks-standard") / "vectors.json").read_text())
    for number, vector in enumerate(vectors):
        before, found, after = source_of(name).partition(CLOCKS[name])
        assert found
        source = before + vector["webhook-timestamp"] + after
        with running(COMMANDS[name], tmp_path / str(number), source, vector["secret"]) as receiver:
            headers = {key: value for key, value in vector.items() if key.startswith("webhook-")}
            assert (await posted(receiver, vector["body"].encode(), headers))[0] == 200
            assert (await posted(receiver, vector["body"].encode() + b" ", headers))[0] == 401
            (entry,) = receiver.stored()
            assert entry["letter"] == json.loads(vector["body"])
    assert len(vectors) >= 1


@pytest.mark.parametrize("secrets", ["", " ", "whsec_", "whsec_c2hvcnQ=", f"{SECRET} whsec_c2hvcnQ="])
async def test_without_a_whole_secret_nothing_is_received(secrets: str, name: str, tmp_path: Path) -> None:
    if name == "php":
        with running(COMMANDS[name], tmp_path, source_of(name), secrets) as receiver:
            headers = {key: value for key, value in signed("evt_1", BODY).items() if key != "webhook-signature"}
            async with aiohttp.ClientSession() as http, http.post(receiver.url, data=BODY, headers=headers) as answer:
                assert answer.status == 500
            assert receiver.stored() == []
        return
    environment = {**os.environ, "RELAY_WEBHOOK_SECRET": secrets, "RELAY_WEBHOOK_DIR": str(tmp_path)}
    ended = subprocess.run(COMMANDS[name], env=environment, cwd=CRM, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "RELAY_WEBHOOK_SECRET must be whsec_…" in ended.stderr


# what the page says


async def test_the_page_names_every_key_in_its_order() -> None:
    page = (CRM / "README.md").read_text()
    named = [key for row in re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)]
    assert [key for key in named if key in payload.KEYS] == [*payload.KEYS]


async def test_the_page_says_how_to_post_by_hand(receiver: Process) -> None:
    for program in ("bash", "curl", "openssl"):
        if shutil.which(program) is None:
            missing(f"NOT TESTED: a post by hand as docs/crm says: this machine lacks {program}")
    code = re.search(r"^```sh\n(secret=.*?)^```", (CRM / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert code is not None
    script = re.sub(r"^secret=.*$", f"secret={SECRET} url={receiver.url}/hook", code[1], flags=re.MULTILINE)
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-euc", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert '{"deal_id":' in done.stdout.replace(" ", "").replace("\\", ""), done.stdout
