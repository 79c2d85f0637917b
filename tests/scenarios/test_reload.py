"""SIGHUP: relay.toml is read again; what is sound takes effect without a restart, what is not changes nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from pathlib import Path
from typing import Any

import pytest

from relay.reload import JUDGED_TOGETHER
from tests.certificates import Certificate
from tests.daemon import merged, toml
from tests.scenarios.test_life import https_certificate, smtp_certificate
from tests.scenarios.world import DOMAIN, SITE, World, site, target, unique_letter, world
from tests.smtp_client import SmtpClient

pytestmark = pytest.mark.scenario

BASE = f"plus@{DOMAIN}"
RELOADED = "configuration reloaded"
REFUSED = "configuration not reloaded, the old one stays in use"


async def reload(relay: World, changes: dict[str, Any] | str, event: str = RELOADED) -> dict[str, Any]:
    """Write relay.toml with these changes, or this text, and send SIGHUP; the log's entry of what came of it."""
    since = len(relay.daemon.log)
    text = changes if isinstance(changes, str) else toml(merged(relay.settings, changes))
    relay.daemon.config.write_text(text)
    os.kill(relay.daemon.pid, signal.SIGHUP)
    return await relay.daemon.logged(event, since=since)


def with_site(relay: World, *targets: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The first site with these targets more, its webhooks included."""
    (first,) = relay.settings["site"]
    return {"site": [{**first, **settings, "target": [*first["target"], *targets]}]}


async def test_new_targets_limits_and_log_level_take_effect_and_what_needs_a_restart_is_named(tmp_path: Path) -> None:
    async with world(tmp_path) as relay:
        fresh = f"fresh@{DOMAIN}"
        async with await SmtpClient.hello(relay.daemon.smtp_port) as before:
            assert (await before.command("MAIL FROM:<ann@customer.test>")).code == 250
            assert (await before.command(f"RCPT TO:<{fresh}>")).short == "550 5.1.1"
            entry = await reload(
                relay,
                {
                    **with_site(relay, target("fresh@example.test", "plus")),
                    "operator": "somebody@example.test",
                    "smtp": {"max_message_size": 70_000},
                    "limits": {"recipients": 1, "binds_per_address_per_minute": 7},
                    "forward": {"per_destination": 3},
                    "log": {"level": "warning"},
                },
            )
            changed = "operator, smtp.max_message_size, limits.recipients, limits.binds_per_address_per_minute"
            assert entry["changed"] == f"{changed}, log.level, site"
            restart = await relay.daemon.logged("these settings need a restart")
            assert restart["keys"] == "forward.per_destination"
            # A session that had begun goes on by its own limits, and finds the new target.
            assert (await before.command(f"RCPT TO:<{fresh}>")).code == 250
            assert (await before.command(f"RCPT TO:<{BASE}>")).code == 250
        async with await SmtpClient.hello(relay.daemon.smtp_port) as after:
            assert (await after.command("MAIL FROM:<ann@customer.test> SIZE=80000")).short == "552 5.3.4"
            assert (await after.command("MAIL FROM:<ann@customer.test>")).code == 250
            assert (await after.command("RCPT TO:<postmaster>")).code == 250
            assert (await after.command(f"RCPT TO:<{fresh}>")).code == 452
        quiet, content = len(relay.daemon.log), unique_letter()
        await relay.mail("postmaster", content)
        (received,) = await relay.arrived(content)
        assert received.recipients == ["somebody@example.test"]
        assert [entry for entry in relay.daemon.log[quiet:] if entry["level"] == "info"] == []


async def test_a_bad_file_is_refused_with_the_key_and_changes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as relay:
        fresh = with_site(relay, target("fresh@example.test", "plus"))
        bad: dict[str, dict[str, Any] | str] = {
            "smtp.min_fre": {**fresh, "smtp": {"min_fre": 1}},
            "not TOML": "this is not TOML",
            "smtp.tls_cert": {**fresh, "smtp": {"tls_cert": "gone.pem", "tls_key": "gone.key"}},
        }
        for named, changes in bad.items():
            entry = await reload(relay, changes, REFUSED)
            assert entry["level"] == "error"
            assert named in entry["error"]
        assert (await relay.answer(unique_letter(), BASE)).code == 250
        async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
            assert (await client.command("MAIL FROM:<ann@customer.test>")).code == 250
            assert (await client.command(f"RCPT TO:<fresh@{DOMAIN}>")).code == 550
        await reload(relay, {})  # and a sound one is taken after it


async def test_what_was_judged_together_with_a_key_that_needs_a_restart_waits_for_it(tmp_path: Path) -> None:
    async with world(tmp_path) as relay:
        fresh = with_site(relay, target("fresh@example.test", "plus"))
        edit = {
            **fresh,
            "operator": "somebody@example.test",
            "forward": {"next_hop": "smtp://127.0.0.1:9"},
            "attribution": {"window": "20d", "known_sender": "80d"},
            "retention": {"routes": "401d"},
        }
        entry = await reload(relay, edit)
        assert entry["changed"] == "attribution.known_sender"
        restart = await relay.daemon.logged("these settings need a restart")
        assert restart["keys"] == "operator, forward.next_hop, attribution.window, retention.routes, site"
        async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
            assert (await client.command("MAIL FROM:<ann@customer.test>")).code == 250
            assert (await client.command(f"RCPT TO:<fresh@{DOMAIN}>")).short == "550 5.1.1"
            await reload(relay, fresh)  # without the new next hop nothing has to wait
            assert (await client.command(f"RCPT TO:<fresh@{DOMAIN}>")).code == 250


def test_operator_and_sites_are_judged_with_each_other_so_neither_waits_alone() -> None:
    assert {key for key, waiting in JUDGED_TOGETHER.items() if ("operator" in waiting) != ("site" in waiting)} == set()


async def test_a_site_that_another_has_the_key_of_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as relay:
        await relay.command("site.add", site="other", origins=["https://other.test"], key="pk_other")
        mine = site(target("fresh@example.test", "plus"), name="mine", key="pk_other")
        entry = await reload(relay, {"site": [*relay.settings["site"], mine], "log": {"level": "error"}}, REFUSED)
        assert "pk_other" in entry["error"]
        content = unique_letter()
        message = await relay.mail(BASE, content)
        await relay.forwarded(message)  # logged at level info, which is still on


async def test_a_site_that_is_gone_from_the_file_is_gone_and_its_addresses_still_forward(tmp_path: Path) -> None:
    second = site(target("late@example.test", "unique"), name="second", key="pk_second")
    async with world(tmp_path, sites=[SITE, second]) as relay:
        address = await relay.shown("late@example.test", site="pk_second")
        await reload(relay, {"site": relay.settings["site"][:1]})
        await relay.daemon.logged("site removed", site="second", level="warning")
        await relay.bind("late@example.test", site="pk_second", expect=404)
        content = unique_letter()
        await relay.mail(address, content)
        (received,) = await relay.arrived(content)
        assert received.recipients == ["late@example.test"]


async def test_another_certificate_is_shown_by_smtp_and_https(tmp_path: Path) -> None:
    pairs = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        made = Certificate.make(tmp_path / name, "mx.track.test")
        pairs.append({"tls_cert": str(made.cert), "tls_key": str(made.key)})
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    async with world(tmp_path, {"smtp": pairs[0], "http": pairs[0]}) as relay:
        before = await smtp_certificate(relay, anyone)
        await reload(relay, {"smtp": pairs[1], "http": pairs[1]})
        after = await smtp_certificate(relay, anyone)
        assert after != before
        assert await https_certificate(relay, anyone) == after


async def test_mail_that_comes_in_while_the_file_is_read_again_and_again_is_neither_lost_nor_refused(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as relay:
        sent: list[bytes] = []
        done = asyncio.Event()

        async def keep_sending() -> None:
            while not done.is_set():
                sent.append(unique_letter())
                await relay.mail(BASE, sent[-1])

        async with asyncio.TaskGroup() as group:
            group.create_task(keep_sending())
            for number in range(10):
                await reload(relay, with_site(relay, target(f"fresh{number}@example.test", "plus")))
            done.set()
        for content in sent:
            assert len(await relay.arrived(content)) == 1
