"""No secret in anything that the real daemon says at its most talkative, whatever is done with it and goes wrong.

Every secret is used as it is meant to be, and wrongly, and while the store cannot write; every peer that is given one
repeats it in its answers. Then standard output, standard error and the log are searched for each of them, however
written (tests/leaks.py, whose own tests show that it would find them).
"""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.daemon import Entry, toml
from tests.leaks import leaks
from tests.scenarios.world import DOMAIN, SITE, World, letter, world
from tests.smtp_client import SmtpClient
from tests.smtp_sink import SmtpSink
from tests.webhook_receiver import Answer, Post, Receiver

pytestmark = pytest.mark.scenario

HOP_USER, HOP_PASSWORD = "relay", "canary/hop+password=1"
PLAIN = base64.b64encode(f"\0{HOP_USER}\0{HOP_PASSWORD}".encode()).decode()
USER_PASSWORD = "canary user+password/2"
SIGNING = base64.b64encode(b"canary of the webhook's secret 3").decode()
NEXT_SIGNING = base64.b64encode(b"canary of a rotated webhook's 4.").decode()
LOGIN = "canary/login+password=5"
HEADER = "canary-header/value+6"
VARIABLE = "canaryvariable7of8bitrix"
BEARER = "canary-bearer-token-8"
BASE = f"plus@{DOMAIN}"
ATTACHED = (
    b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n"
    b"From: ann@customer.test\r\nSubject: offer\r\n\r\n"
    b"--b\r\n\r\nHello\r\n--b\r\nContent-Disposition: attachment; filename=plan.pdf\r\n\r\n%PDF\r\n--b--\r\n"
)


def echo(post: Post) -> Answer:
    """A receiver that repeats all that it was told, and refuses it."""
    said = "\n".join([*(f"{name}: {value}" for name, value in post.headers.items()), post.path])
    return Answer(500 if post.path != "/rest/" + VARIABLE else 200, said.encode())


def hooks(crm: Receiver) -> list[dict[str, Any]]:
    return [
        {"url": crm.at("/good"), "secret": f"whsec_{SIGNING}", "basic": f"crm:{LOGIN}"},
        {"url": crm.at("/echo"), "secret": f"whsec_{SIGNING}", "headers": {"X-Api-Key": HEADER}, "bearer": BEARER},
        {
            "url": crm.at("/rest/"),
            "secret": f"whsec_{SIGNING}",
            "template": "bitrix24",
            "variables": {"code": VARIABLE},
        },
        {"url": "http://127.0.0.1:9/dead", "secret": f"whsec_{SIGNING}", "basic": f"crm:{LOGIN}"},
    ]


def answered(post: Post) -> Answer:
    return Answer(200) if post.path == "/good" else echo(post)


async def log_in(relay: World, name: str, password: str) -> tuple[int, str]:
    """Status and session cookie of a login."""
    form = {"name": name, "password": password, "next": "/ui/history"}
    headers = {"Sec-Fetch-Site": "same-origin"}
    url = f"{relay.daemon.url}/ui/login"
    async with relay.http.post(url, data=form, headers=headers, allow_redirects=False) as response:
        cookie = response.headers.get("Set-Cookie", "").partition(";")[0].partition("=")[2]
        return response.status, cookie


async def choose_password(relay: World, link: str, name: str | None, password: str) -> None:
    form = {"password": password, "again": password} | ({"name": name} if name else {})
    url = f"{relay.daemon.url}/ui/welcome/{link}"
    headers = {"Sec-Fetch-Site": "same-origin"}
    async with relay.http.post(url, data=form, headers=headers, allow_redirects=False) as response:
        assert response.status == 303, await response.text()


async def raw(relay: World, octets: bytes) -> bytes:
    """Octets as they are to the HTTP port, and what comes back until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.daemon.http_port)
    writer.write(octets)
    writer.write_eof()
    answer = await reader.read(65_536)
    writer.close()
    return answer


async def test_no_secret_is_in_anything_that_the_daemon_says(tmp_path: Path) -> None:
    refusals = [f"535 5.7.8 no: AUTH PLAIN {PLAIN}", f"535 5.7.8 no, {HOP_PASSWORD} is wrong"]
    sink = SmtpSink(logins={HOP_USER: HOP_PASSWORD}, script={"auth": refusals})
    hop_login = f"{HOP_USER}:{quote(HOP_PASSWORD, safe='')}"
    async with sink:
        settings = {
            "log": {"level": "debug"},
            "forward": {"next_hop": f"smtp://{hop_login}@{sink.address}"},
            "limits": {"exempt": []},
        }
        async with world(tmp_path, settings, hook=hooks, crm=answered) as relay:
            secrets: dict[str, str | bytes] = {
                "next-hop password": HOP_PASSWORD,
                "user password": USER_PASSWORD,
                "webhook secret": SIGNING,
                "webhook secret, its octets": base64.b64decode(SIGNING),
                "rotated webhook secret": NEXT_SIGNING,
                "webhook login": LOGIN,
                "webhook header": HEADER,
                "webhook variable": VARIABLE,
                "webhook bearer": BEARER,
            }
            secrets |= await use_the_pages(relay)
            secrets |= await use_the_api(relay)
            await mail_and_post(relay, secrets)
            await without_a_store(relay, secrets)
            for path in (relay.daemon.data_dir / "keys").iterdir():
                secrets[path.name] = bytes.fromhex(path.read_text().split()[0])
            assert len(secrets) >= 18
            first_link = str(secrets["first one-time link"])
            said = said_so_far(relay)
            printed = relay.daemon.printed
        said += said_so_far(relay)  # with all that it says when it stops
        assert len(relay.daemon.log) > 20
        # The first administrator's link is printed for a person, once, and is no part of the log.
        assert [first_link in line for line in printed].count(True) == 1
        assert leaks("\n".join(printed), secrets).keys() == {"first one-time link"}
        assert leaks(said, secrets) == {}
        assert leaks(said + f'\n{{"answer":"{LOGIN}"}}', secrets).keys() == {"webhook login"}


def said_so_far(relay: World) -> str:
    return "\n".join(plain(entry) for entry in relay.daemon.log)


def plain(entry: Entry) -> str:
    return "\n".join(f"{name}: {value}" for name, value in entry.items())


async def use_the_pages(relay: World) -> dict[str, str | bytes]:
    """The first administrator, another user, right and wrong passwords, sessions and forms."""
    first = next(line for line in relay.daemon.printed if "/ui/welcome/" in line).rpartition("/")[2]
    await choose_password(relay, first, "boss", USER_PASSWORD)
    other = (await relay.command("user.create", name="ann", role="viewer"))["link"].rpartition("/")[2]
    unused = (await relay.command("user.invite", name="ann"))["link"].rpartition("/")[2]
    async with relay.http.get(f"{relay.daemon.url}/ui/welcome/{unused}x") as response:
        assert response.status == 404
    status, cookie = await log_in(relay, "boss", USER_PASSWORD)
    assert status == 303
    assert (await log_in(relay, USER_PASSWORD, "wrong " + USER_PASSWORD))[0] == 403
    for head in (f"Cookie relay_session={cookie}", f"X: \0{cookie}", f"Cookie: {cookie}\r\n\x01", f"{cookie}" * 300):
        await raw(relay, f"GET /ui/history HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n".encode())
    await raw(relay, f"GET /ui/welcome/{unused} HTTP/7\r\n\r\n".encode())
    for path in ("/ui/history", "/ui/settings", f"/ui/nowhere/{cookie}", f"/ui/history?q={cookie}"):
        async with relay.http.get(
            relay.daemon.url + path, headers={"Cookie": f"__Secure-relay_session={cookie}"}
        ) as response:
            assert response.status in (200, 400, 404)
    return {
        "first one-time link": first,
        "another one-time link": other,
        "unused one-time link": unused,
        "session cookie": cookie,
    }


async def use_the_api(relay: World) -> dict[str, str | bytes]:
    """Tokens right, wrong, revoked and where none belongs; webhooks made, changed, tried and rotated with secrets."""
    token, revoked = await relay.token("canary"), await relay.token("revoked")
    await relay.command("token.revoke", name="revoked")
    bearer = {"Authorization": f"Bearer {token}"}
    for path, headers, expected in (
        ("/v1/sites", bearer, 200),
        ("/v1/sites", {"Authorization": f"Bearer {revoked}"}, 401),
        ("/v1/sites", {"Authorization": f"Bearer {token}x"}, 401),
        ("/v1/sites", {"Authorization": f"Basic {token}"}, 401),
        (f"/v1/messages?q={token}", bearer, 200),
        (f"/v1/{token}", bearer, 404),
        (f"/v1/sites?token={token}", bearer, 400),
        ("/metrics", bearer, 200),
    ):
        async with relay.http.get(relay.daemon.url + path, headers=headers) as response:
            assert response.status == expected, path
    await raw(relay, f"GET /v1/sites HTTP/1.1\r\nAuthorization Bearer {token}\r\n\r\n".encode())
    await raw(relay, f"{token} {HEADER}\r\nCookie: a={token}\r\n\r\n".encode())
    body = f'{{"name": "{token}", "secret": "{LOGIN}"'
    async with relay.http.post(f"{relay.daemon.url}/v1/sites", data=body, headers=bearer) as response:
        assert response.status in (400, 415)
    await relay.call("POST", "/v1/sites", 201, {"name": "other", "origins": ["https://other.test"]})
    new = {"url": f"{relay.crm.url}/new", "secret": f"whsec_{SIGNING}", "basic": f"x:{LOGIN}"}
    made = await relay.call("POST", "/v1/sites/other/webhooks", 201, new)
    await relay.call("PATCH", f"/v1/webhooks/{made['id']}", 200, {"headers": {"X-Api-Key": HEADER}})
    await relay.call("PATCH", f"/v1/webhooks/{made['id']}", 400, {"headers": {"Host": HEADER}, "bearer": BEARER})
    await relay.call("POST", f"/v1/webhooks/{made['id']}/rotate", 200, {"secret": f"whsec_{NEXT_SIGNING}"})
    for webhook in ("1", "2", "3", "4", made["id"]):
        await relay.call("POST", f"/v1/webhooks/{webhook}/test")
    return {"API token": token, "revoked API token": revoked}


async def mail_and_post(relay: World, secrets: dict[str, str | bytes]) -> None:
    """Letters that are forwarded and posted, refused and put off; a next hop that repeats its login; a signed link."""
    message = await relay.mail(await relay.shown("sales@example.test"), ATTACHED)
    refused = await relay.forwarded(message, "deferred")  # the next hop has refused the login, and repeated it
    await relay.retry_all()
    await relay.forwarded(message, "deferred", since=relay.daemon.log.index(refused) + 1)
    await relay.retry_all()
    await relay.forwarded(message)
    await relay.posted(message)
    uid = await relay.event(message)
    for webhook in (2, 3, 4):
        await relay.daemon.logged("post", webhook=webhook, uid=uid)
    said = next(post for post in relay.crm.posts if (post.path, post.headers["webhook-id"]) == ("/good", uid))
    link = said.json["attachments"][0]["url"]
    secrets["signed link"] = link.split("/a/")[1].partition("/")[0]
    assert (await relay.download(link)).startswith(b"%PDF")
    await relay.download(link.replace("/a/", "/a/x"), 404)
    async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
        await client.command(f"AUTH PLAIN {PLAIN}")
        await client.command(f"MAIL FROM:<{HOP_PASSWORD}@x>")


async def without_a_store(relay: World, secrets: dict[str, str | bytes]) -> None:
    """The same while the database is locked: whatever is then logged says nothing either."""
    bearer = {"Authorization": f"Bearer {secrets['API token']}", "Content-Type": "application/json"}
    with closing(sqlite3.connect(relay.daemon.data_dir / "relay.db", isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        new = f'{{"url": "{relay.crm.url}/locked", "secret": "whsec_{SIGNING}", "basic": "x:{LOGIN}"}}'
        url = f"{relay.daemon.url}/v1/sites/other/webhooks"

        async def add() -> int:
            async with relay.http.post(url, data=new, headers=bearer) as response:
                return response.status

        answers = await asyncio.gather(
            add(),
            log_in(relay, "boss", USER_PASSWORD),
            relay.answer(letter("while it is locked"), BASE),
        )
        assert answers[0] == 503
        assert answers[1][0] == 503
        assert answers[2].code == 451
        foreign.execute("ROLLBACK")


async def test_errors_in_the_configuration_do_not_repeat_its_secrets(tmp_path: Path) -> None:
    async with world(tmp_path, hook=hooks, start=False) as relay:
        wrong = dict(relay.settings)
        hook = {"url": "nonsense", "secret": f"whsec_{SIGNING}x!", "basic": LOGIN, "headers": {"Host": HEADER}}
        wrong["site"] = [{**SITE, "webhook": [hook]}]
        wrong["forward"] = {"next_hop": f"smtp+tls://{HOP_USER}:{HOP_PASSWORD}@[::1"}
        relay.daemon.config.write_text(toml(wrong))
        done = await asyncio.to_thread(relay.daemon.cli, "serve")
        assert done.returncode == 2
        assert "site[0].webhook[0]" in done.stderr
        secrets = {"hop": HOP_PASSWORD, "secret": SIGNING, "login": LOGIN, "header": HEADER}
        assert leaks(done.stdout + done.stderr, secrets) == {}
