"""Commands that write, each beside a running daemon and without one, and those that read what they did."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import getpass
import io
import json
import os
import re
import shutil
import sqlite3
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relay.cli.root import cli
from relay.control import ControlError, DirectoryLock, account, call
from relay.secrets import token_hash
from tests.daemon import PATIENCE, ROOT, Daemon, Settings, environment
from tests.dead_ends import CARD, SECRET, SETTINGS, declared, letter, mail
from tests.missing import missing
from tests.ports import dead_port
from tests.smtp_sink import SmtpSink
from webapi.hook_models import WebhookShown
from webapi.message_views import MessageItem
from webapi.site_models import TargetSubstitutes
from webapi.visits import VisitShown

MAILS = 8
BESIDE, ALONE = "beside the daemon", "alone"


@dataclass
class Place:
    """A data_dir with some mail that could be neither forwarded nor posted."""

    daemon: Daemon
    mode: str
    visits: tuple[str, ...]  # the first three are of one browser, each begun by another mark

    def run(self, *arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(cli, [*arguments, "--config", str(self.daemon.config)], input=stdin)

    def done(self, *arguments: str, stdin: str = "") -> str:
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result.stdout

    def refused(self, *arguments: str, stdin: str = "") -> str:
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("Error: ").rstrip()

    def json(self, *arguments: str) -> Any:
        return json.loads(self.done(*arguments, "--json"))

    def write(self, sql: str, *parameters: Any) -> None:
        """Change the database past the daemon, if it runs."""
        with contextlib.closing(sqlite3.connect(self.daemon.data_dir / "relay.db")) as database:
            database.execute(sql, parameters)
            database.commit()

    def shop(self, name: str) -> str:
        """A site of the database with one target sales@NAME.test."""
        self.done("site", "add", name, "--origin", f"https://www.{name}.test")
        self.done("target", "add", name, f"sales@{name}.test", "--domain", f"track.{name}.test", "--pool-size", "2")
        return name


def page_view(daemon: Daemon, page: str = "", **fields: Any) -> str:
    """The number of the visit that a page of the site was answered with."""
    origin = "https://www.example.test"
    body = {"site": "pk_example", "page": f"{origin}/{page}", "addresses": ["sales@example.test"]} | fields
    headers = {"Origin": origin, "Content-Type": "text/plain", "User-Agent": "Mozilla/5.0 (X11) Firefox/140.0"}
    url = f"http://127.0.0.1:{daemon.http_port}/v1/bind"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        number: str = json.load(answer)["visit"]
        return number


def left_of(running: Daemon, directory: Path, settings: Settings) -> Daemon:
    """Another one in ``directory``, with what a kill just now would have left of it."""
    daemon = Daemon(directory, settings)
    shutil.copytree(running.data_dir, daemon.data_dir, ignore=shutil.ignore_patterns("relay.db*", "control.sock"))
    with (
        contextlib.closing(sqlite3.connect(running.data_dir / "relay.db")) as there,
        contextlib.closing(sqlite3.connect(daemon.data_dir / "relay.db")) as here,
    ):
        there.backup(here)
    return daemon


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    daemon = Daemon(tmp_path_factory.mktemp("beside"), SETTINGS)
    with daemon:
        for number in range(1, MAILS + 1):
            daemon.send("ann@customer.test", [CARD], letter(number))
            daemon.wait_for("message", id=number)
        seen = 0
        for _ in range(MAILS):  # posted at the least once each: so every message has been read
            seen = daemon.log.index(daemon.wait_for("post", since=seen, attempt=1)) + 1
        daemon.wait_for("delivery", state="deferred")
        deadline = time.monotonic() + PATIENCE
        while daemon.query("SELECT 1 FROM texts WHERE indexed = 0"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        visits: list[str] = []
        for page in ("?rs=ads_1", "?rs=mail_2", "?rs=mail_3"):
            visits.append(page_view(daemon, page=page, visit=visits[-1] if visits else None))
        visits.append(page_view(daemon))
        yield Place(daemon, BESIDE, tuple(visits))


@pytest.fixture(scope="module")
def alone(beside: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(left_of(beside.daemon, tmp_path_factory.mktemp("alone"), SETTINGS), ALONE, beside.visits)


@pytest.fixture(scope="module", params=[BESIDE, ALONE])
def place(request: pytest.FixtureRequest, beside: Place, alone: Place) -> Place:
    return beside if request.param == BESIDE else alone


class TestTokens:
    def test_a_token_is_the_last_word_and_only_its_hash_is_stored(self, place: Place) -> None:
        token = place.done("token", "create", "reports", "--site", "example", "--role", "viewer").split()[-1]
        assert token.startswith("vr_")
        rows = place.daemon.query("SELECT hash, role, sites FROM tokens WHERE name = 'reports'")
        assert rows == [(token_hash(token), "viewer", '["example"]')]
        database = b"".join(path.read_bytes() for path in place.daemon.data_dir.glob("relay.db*"))
        assert token.encode() not in database
        assert token not in str(place.daemon.log)

    def test_tokens_are_listed_without_their_secrets(self, place: Place) -> None:
        token = place.done("token", "create", "listed").split()[-1]
        (row,) = [row for row in place.json("token", "list") if row["name"] == "listed"]
        assert (row["role"], row["sites"]) == ("admin", None)
        text = place.done("token", "list")
        assert "listed" in text
        assert token not in text

    def test_a_name_is_given_once(self, place: Place) -> None:
        place.done("token", "create", "twice")
        assert place.refused("token", "create", "twice") == "there is a token named 'twice' already"

    def test_a_site_that_does_not_exist_is_named(self, place: Place) -> None:
        assert place.refused("token", "create", "lost", "--site", "nowhere") == "there is no site named 'nowhere'"

    def test_a_revoked_token_is_gone(self, place: Place) -> None:
        place.done("token", "create", "short")
        place.done("token", "revoke", "short")
        assert "short" not in place.done("token", "list")
        assert place.refused("token", "revoke", "short") == "there is no token named 'short'"


class TestUsers:
    def test_the_link_is_the_last_word_and_only_its_hash_is_stored(self, place: Place) -> None:
        said = place.done("user", "create", "Vera@Shop.test", "--site", "example")
        assert said.startswith("user vera@shop.test (viewer, example): http://")
        link = said.split()[-1].rpartition("/")[2]
        assert place.daemon.query("SELECT count(*) FROM invitations WHERE hash = ?", token_hash(link)) == [(1,)]
        database = b"".join(path.read_bytes() for path in place.daemon.data_dir.glob("relay.db*"))
        assert link.encode() not in database
        assert link not in str(place.daemon.log)

    def test_they_are_listed_with_their_rights(self, place: Place) -> None:
        place.done("user", "create", "listed", "--role", "manager")
        (row,) = [row for row in place.json("user", "list") if row["name"] == "listed"]
        assert set(row) == {"name", "role", "sites", "created_at", "seen_at", "waiting"}
        assert (row["role"], row["sites"], row["waiting"]) == ("manager", None, True)
        assert re.search(r"listed +manager +all .*has no password yet", place.done("user", "list"))

    def test_a_new_link_ends_the_one_before(self, place: Place) -> None:
        first = place.done("user", "create", "again").split()[-1]
        second = place.done("user", "invite", "again").split()[-1]
        assert first != second
        rows = place.daemon.query(
            "SELECT hash FROM invitations WHERE user_id = (SELECT id FROM users WHERE name = 'again')"
        )
        assert rows == [(token_hash(second.rpartition("/")[2]),)]

    def test_rights_are_given_whole(self, place: Place) -> None:
        place.done("user", "create", "changed", "--site", "example", "--role", "admin")
        assert place.done("user", "change", "CHANGED", "--role", "viewer") == "user changed (viewer, all sites)\n"
        (row,) = [row for row in place.json("user", "list") if row["name"] == "changed"]
        assert (row["role"], row["sites"]) == ("viewer", None)

    def test_who_is_removed_is_gone(self, place: Place) -> None:
        place.done("user", "create", "leaving")
        assert place.done("user", "remove", "leaving") == "user leaving is removed\n"
        assert "leaving" not in place.done("user", "list")

    def test_what_cannot_be_is_said_so(self, place: Place) -> None:
        if "taken" not in place.done("user", "list"):
            place.done("user", "create", "taken")
        assert place.refused("user", "create", "Taken") == "there is a user named 'taken' already"
        assert place.refused("user", "create", "lost", "--site", "nowhere") == "there is no site named 'nowhere'"
        assert place.refused("user", "change", "taken", "--role", "viewer", "--site", "nowhere").endswith("'nowhere'")
        assert place.refused("user", "create", "a b").startswith("name: must be letters, digits")
        for words in (("invite", "nobody"), ("change", "nobody", "--role", "viewer"), ("remove", "nobody")):
            assert place.refused("user", *words) == "there is no user named 'nobody'"

    def test_what_commands_do_is_noted_with_who_ran_them(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOGNAME", "olga")  # not the daemon's own
        place.done("user", "create", "noted", "--site", "example")
        place.done("site", "crm", "example", "on")
        rows = place.daemon.query("SELECT kind, name, action, subject, details FROM changes ORDER BY id DESC LIMIT 2")
        assert [row[:4] for row in rows] == [
            ("command", "olga", "site.crm", "example"),
            ("command", "olga", "user.create", "noted"),
        ]
        assert json.loads(rows[1][4]) == {"name": "noted", "role": "viewer", "sites": ["example"]}

    def test_the_site_of_what_they_name_is_noted_with_it(self, place: Place) -> None:
        name = place.shop("logged")
        place.done("webhook", "add", name, "https://crm.logged.test/")
        (hook,) = [str(row["id"]) for row in place.json("webhook", "list") if "logged" in row["url"]]
        waiting = str(place.json("queue", "list")[0]["id"])
        for words in (
            ("webhook", "disable", hook),
            ("webhook", "enable", hook),
            ("message", "replay", "1"),
            ("queue", "retry", waiting),
        ):
            place.done(*words)
        query = "SELECT action, sites.name FROM changes LEFT JOIN sites ON sites.id = site_id ORDER BY changes.id DESC"
        assert place.daemon.query(f"{query} LIMIT 4") == [
            ("queue.retry", "example"),
            ("message.replay", "example"),
            ("webhook.enable", name),
            ("webhook.disable", name),
        ]

    def test_what_was_refused_is_not_noted(self, place: Place) -> None:
        before = place.daemon.query("SELECT count(*) FROM changes")
        place.refused("user", "remove", "nobody")
        place.refused("token", "revoke", "nothing")
        for verb in ("retry", "drop"):
            place.refused("queue", verb, "4711")
        assert place.daemon.query("SELECT count(*) FROM changes") == before


def test_an_account_without_a_name_is_noted_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unnamed() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", unnamed)
    assert account() == str(os.getuid())


class TestSites:
    def test_a_site_is_added_with_a_key_of_its_own(self, place: Place) -> None:
        key = place.done("site", "add", "added", "--origin", "https://added.test", "--no-crm").split()[-1]
        site = place.json("site", "show", "added")
        assert (site["key"], site["tracking"], site["send_to_crm"]) == (key, True, False)
        assert site["declared"] is False

    def test_names_and_keys_are_given_once(self, place: Place) -> None:
        place.done("site", "add", "first", "--origin", "https://first.test", "--key", "pk_first")
        assert "'first'" in place.refused("site", "add", "first", "--origin", "https://first.test")
        assert "'pk_first'" in place.refused("site", "add", "other", "--origin", "https://x.test", "--key", "pk_first")

    def test_a_removed_site_is_gone_and_its_routes_stay(self, place: Place) -> None:
        place.shop("closing")
        place.done("site", "remove", "closing")
        assert "closing" not in [site["name"] for site in place.json("site", "list")]
        routes = place.daemon.query("SELECT retired_at IS NOT NULL FROM routes WHERE domain = 'track.closing.test'")
        assert set(routes) == {(1,)}
        assert place.refused("site", "remove", "closing") == "there is no site named 'closing'"

    def test_switches_work_on_a_declared_site_too(self, place: Place) -> None:
        for command, field in (("tracking", "tracking"), ("crm", "send_to_crm")):
            for state in ("off", "on"):
                place.done("site", command, "example", state)
                assert place.json("site", "show", "example")[field] is (state == "on")

    def test_what_relay_toml_declares_is_changed_there(self, place: Place) -> None:
        hook: str = place.json("webhook", "list", "--site", "example")[0]["id"]
        for words in (
            ("site", "remove", "example"),
            ("target", "add", "example", "more@example.test", "--domain", "track.test"),
            ("target", "remove", "example", "sales@example.test"),
            ("webhook", "add", "example", "https://crm.example.test/2"),
            ("webhook", "remove", hook),
        ):
            assert place.refused(*words) == "site example is defined in relay.toml: change it there"

    def test_what_is_shown_of_a_site_is_readable(self, place: Place) -> None:
        text = place.done("site", "show", "example")
        assert "target   sales@example.test: pool at track.test" in text
        assert "enabled" in text
        assert place.refused("site", "show", "nowhere") == "there is no site named 'nowhere'"
        assert "relay.toml" in place.done("site", "list")


class TestTargets:
    def test_a_target_comes_with_its_pool(self, place: Place) -> None:
        place.done("site", "add", "pooled", "--origin", "https://pooled.test")
        shown = place.done(
            *("target", "add", "pooled", "Info@pooled.test", "--pool", "a@t.pooled.test", "--pool", "b@t.pooled.test"),
            *("--lease", "30m", "--forward-to", "box@mail.test"),
        )
        assert shown.splitlines()[1:] == ["a@t.pooled.test", "b@t.pooled.test"]
        (target,) = place.json("target", "list", "--site", "pooled")
        assert (target["address"], target["lease"]) == ("Info@pooled.test", "30m")
        assert place.json("site", "show", "pooled")["targets"][0]["forward_to"] == "box@mail.test"
        assert [row["address"] for row in target["substitutes"]] == ["a@t.pooled.test", "b@t.pooled.test"]

    def test_another_target_leaves_the_first_as_it_was(self, place: Place) -> None:
        name = place.shop("second")
        before = place.json("target", "list", "--site", name)
        place.done("target", "add", name, "plus@second.test", "--method", "plus", "--domain", "track.second.test")
        assert place.json("target", "list", "--site", name)[:1] == before
        place.done("target", "remove", name, "plus@second.test")
        assert place.json("target", "list", "--site", name) == before

    def test_a_next_hop_is_sealed_and_never_shown(self, place: Place) -> None:
        name = place.shop("hopping")
        url = "smtps://user:S3cretPass@mail.hopping.test:465"
        words = ("target", "add", name, "x@hopping.test", "--method", "unique", "--domain", "u.hopping.test")
        place.done(*words, "--next-hop-from-stdin", stdin=url + "\n")
        ((sealed,),) = place.daemon.query("SELECT next_hop FROM targets WHERE address = 'x@hopping.test'")
        assert sealed.startswith("s1.")
        assert "S3cretPass" not in place.done("target", "list") + place.done("target", "list", "--json")
        assert "S3cretPass" not in place.done("site", "show", name, "--json")

    def test_a_next_hop_from_stdin_that_is_none_is_wrong_use(self, place: Place) -> None:
        result = place.run("target", "add", "example", "x@y.test", "--next-hop-from-stdin", stdin="http://x\n")
        assert result.exit_code == 2

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (["--method", "plus"], 'domain: is required with method "plus"'),
            ([], "the target: needs a list of addresses (pool) or a domain"),
            (["--pool", "a+b@t.test"], "pool[0]: a+b@t.test must not contain"),
            (["--pool", "abuse@t.test"], "pool[0]: abuse@t.test cannot be a substitute"),
            (["--pool", "new@broken.test"], "address: new@broken.test is a substitute"),
            (["--pool", "info1@track.test"], "info1@track.test is another substitute already"),
            (["--pool", "sales@example.test"], "sales@example.test is where a target's mail goes"),
            (["--domain", "t.test", "--forward-to", CARD], f"{CARD} is a substitute: its mail would come back here"),
        ],
    )
    def test_what_would_not_work_is_refused(self, place: Place, options: list[str], problem: str) -> None:
        if "broken" not in [site["name"] for site in place.json("site", "list")]:
            place.done("site", "add", "broken", "--origin", "https://broken.test")
        address = "new@broken.test"
        assert place.refused("target", "add", "broken", address, *options).startswith(problem)
        assert place.json("target", "list", "--site", "broken") == []

    def test_a_target_is_added_and_removed_once(self, place: Place) -> None:
        name = place.shop("once")
        words = ("target", "add", name, "SALES@once.test", "--domain", "track.once.test")
        assert place.refused(*words) == "SALES@once.test is a target of site 'once' already"
        place.done("target", "remove", name, "sales@once.test")
        assert (
            place.refused("target", "remove", name, "sales@once.test") == "sales@once.test is no target of site 'once'"
        )

    def test_the_pool_of_a_declared_target_takes_additions(self, place: Place) -> None:
        place.done("target", "pool", "add", "example", "sales@example.test", "extra@track.test")
        made = place.done("target", "pool", "grow", "example", "sales@example.test", "2").splitlines()
        assert len(made) == 2
        (target,) = place.json("target", "list", "--site", "example")
        addresses = [row["address"] for row in target["substitutes"]]
        assert {"info1@track.test", "extra@track.test", *made} <= set(addresses)

    def test_a_pool_takes_only_what_is_free_and_sound(self, place: Place) -> None:
        sales = ("example", "sales@example.test")
        assert "is another substitute already" in place.refused("target", "pool", "add", *sales, CARD)
        assert place.refused("target", "pool", "add", *sales, "x+y@track.test").startswith("pool[0]: ")
        name = place.shop("unlisted")
        place.done("target", "add", name, "u@unlisted.test", "--method", "unique", "--domain", "u.unlisted.test")
        expected = "u@unlisted.test has no pool: its method is unique"
        assert place.refused("target", "pool", "grow", name, "u@unlisted.test", "1") == expected
        place.done("target", "add", name, "l@unlisted.test", "--pool", "l1@p.unlisted.test")
        assert "has no domain" in place.refused("target", "pool", "grow", name, "l@unlisted.test", "1")

    def test_targets_of_a_site_that_does_not_exist_cannot_be_listed(self, place: Place) -> None:
        assert place.refused("target", "list", "--site", "nowhere") == "there is no site named 'nowhere'"
        assert "sales@example.test" in place.done("target", "list")


class TestWebhooks:
    def test_a_secret_is_made_up_and_shown_once(self, place: Place) -> None:
        name = place.shop("hooked")
        secret = place.done("webhook", "add", name, "https://crm.hooked.test/hook").split()[-1]
        assert secret.startswith("whsec_")
        for words in (("webhook", "list"), ("webhook", "list", "--json"), ("site", "show", name)):
            assert secret not in place.done(*words)
        ((sealed,),) = place.daemon.query("SELECT secret FROM webhooks WHERE url = 'https://crm.hooked.test/hook'")
        assert sealed.startswith("s1.")

    def test_a_secret_of_ones_own_is_read_from_stdin_and_not_shown(self, place: Place) -> None:
        name = place.shop("given")
        shown = place.done("webhook", "add", name, "https://x.test/", "--secret-from-stdin", stdin=SECRET + "\n")
        assert "whsec_" not in shown
        result = place.run("webhook", "add", name, "https://y.test/", "--secret-from-stdin", stdin="whsec_short\n")
        assert result.exit_code == 2

    def test_a_webhook_is_removed_and_then_unknown(self, place: Place) -> None:
        name = place.shop("unhooked")
        place.done("webhook", "add", name, "https://x.test/")
        assert "already" in place.refused("webhook", "add", name, "https://x.test/")
        (hook,) = place.json("webhook", "list", "--site", name)
        place.done("webhook", "remove", hook["id"])
        assert place.json("webhook", "list", "--site", name) == []
        assert place.refused("webhook", "enable", hook["id"]) == f"there is no webhook {hook['id']}"

    def test_webhooks_of_a_site_that_does_not_exist_cannot_be_listed(self, place: Place) -> None:
        assert place.refused("webhook", "list", "--site", "nowhere") == "there is no site named 'nowhere'"


class TestQueue:
    def test_what_waits_is_listed_with_the_last_answer(self, place: Place) -> None:
        rows = place.json("queue", "list")
        assert {row["state"] for row in rows} <= {"queued", "deferred"}
        assert any("Connection refused" in (row["answer"] or "") for row in rows)
        assert "sales@example.test" in place.done("queue", "list", "--limit", "1")

    def test_a_dropped_delivery_waits_no_more_and_stays_in_the_history(self, place: Place) -> None:
        assert place.done("queue", "drop", "1") == "1 delivery dropped\n"
        assert 1 not in [row["id"] for row in place.json("queue", "list")]
        assert place.json("message", "show", "1")["state"] == "dropped"
        again = place.run("queue", "drop", "1", "2")
        assert again.exit_code == 1
        assert again.stdout == "1 delivery dropped\n"
        assert again.stderr.startswith("Error: 1: does not wait and is not held")

    def test_deliveries_are_tried_now(self, place: Place) -> None:
        assert place.done("queue", "retry", "3", "4") == "2 deliveries tried now\n"
        # A daemon may be trying some of them at this moment.
        assert re.fullmatch(r"\d+ deliver(y|ies) tried now\n", place.done("queue", "retry", "--all"))
        assert place.refused("queue", "retry", "999") == "999: does not wait and is not held"


class TestMessages:
    def test_a_message_is_given_back_byte_for_byte(self, place: Place) -> None:
        result = place.run("message", "raw", "5")
        assert result.exit_code == 0
        assert result.stdout_bytes == letter(5)

    def test_a_message_is_shown_with_its_life(self, place: Place) -> None:
        text = place.done("message", "show", "5")
        for part in (
            "letter 5",
            "ann@customer.test",
            CARD,
            "sales@example.test",
            "exact",
            "Connection refused",
            "event",
        ):
            assert part in text
        shown = place.json("message", "show", "5")
        assert shown["text"] == "Hello\n.leading dot 5"
        assert shown["events"][0]["state"] == "posted"

    def test_a_message_is_posted_again(self, place: Place) -> None:
        first = len(place.daemon.log)
        assert place.done("message", "replay", "6") == "message 6 is posted again to 1 webhook\n"
        if place.mode == BESIDE:
            place.daemon.wait_for("post", since=first)

    @pytest.mark.parametrize("command", ["show", "raw", "replay"])
    def test_one_that_does_not_exist_is_said_so(self, place: Place, command: str) -> None:
        assert place.refused("message", command, "4711") == "there is no message 4711"


class TestVisits:
    def test_a_visit_is_shown_with_all_that_is_known_of_it(self, place: Place) -> None:
        text = place.done("visit", "show", "example", place.visits[3])
        for name, value in (
            ("number", place.visits[3]),
            ("channel", "direct"),
            ("browser", "Firefox"),
            ("own", "True"),
        ):
            assert re.search(rf"^{name} +{value}$", text, re.MULTILINE), name
        assert "marker" not in text  # what is not known is left out

    def test_json_has_the_fields_of_the_api(self, place: Place) -> None:
        shown = place.json("visit", "show", "example", place.visits[2])
        assert set(shown) == set(VisitShown.model_fields)
        assert (shown["marker"], shown["first_touch"], shown["own"]) == ("mail_3", "ads_1", True)
        assert shown["first_visit"] == place.visits[0]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d.*", shown["started_at"])

    def test_an_erased_visit_is_gone(self, place: Place) -> None:
        assert place.done("visit", "erase", "example", place.visits[1]) == "1 visit is erased\n"
        for verb in ("show", "erase"):
            said = place.refused("visit", verb, "example", place.visits[1])
            assert said == f"site 'example' has no visit {place.visits[1]}"
        assert place.json("visit", "show", "example", place.visits[2])["last_non_direct_touch"] == "mail_3"
        noted = place.daemon.query("SELECT subject, details FROM changes WHERE action = 'visit.erase'")
        assert noted
        assert place.visits[1] not in str(noted)  # nothing is taken out of the log

    def test_with_its_browser_all_its_visits_go_and_no_others(self, place: Place) -> None:
        assert "erased" in place.done("visit", "erase", "example", place.visits[2], "--browser")
        for number in place.visits[:3]:
            place.refused("visit", "show", "example", number)
        place.done("visit", "show", "example", place.visits[3])
        rows = place.daemon.query("SELECT ip, user_agent, marker FROM visits WHERE erased_at IS NOT NULL")
        assert set(rows) == {(None, None, None)}  # the holders of pool addresses

    def test_what_does_not_exist_is_said_so(self, place: Place) -> None:
        for verb in ("show", "erase"):
            assert place.refused("visit", verb, "example", "4711") == "site 'example' has no visit 4711"
        assert place.refused("visit", "erase", "nowhere", "1") == "there is no site named 'nowhere'"
        place.refused("visit", "show", "nowhere", "1")


class TestHistory:
    def test_the_newest_comes_first_and_the_limit_holds(self, place: Place) -> None:
        assert [int(item["id"]) for item in place.json("history")] == list(range(MAILS, 0, -1))
        assert [item["subject"] for item in place.json("history", "--limit", "1")] == [f"letter {MAILS}"]

    def test_json_has_the_fields_of_the_api(self, place: Place) -> None:
        hook = place.json("webhook", "list")[0]
        target = place.json("target", "list")[0]
        assert list(hook) == list(WebhookShown.model_fields)
        assert list(target) == ["site", *TargetSubstitutes.model_fields]
        assert list(place.json("history", "--limit", "1")[0]) == list(MessageItem.model_fields)

    @pytest.mark.parametrize(
        ("options", "count"),
        [
            (["--site", "example"], MAILS),
            (["--sender", "ANN@CUSTOMER.test"], MAILS),
            (["--sender", "nobody"], 0),
            (["--visit", "123"], 0),
            (["--q", "letter 7"], 1),
            (["--state", "forwarded"], 0),
            (["--since", "1h"], MAILS),
            (["--until", "2020-01-01"], 0),
            (["--since", "2020-01-01T08:00:00+02:00"], MAILS),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
    )
    def test_filters_leave_what_was_asked_for(self, place: Place, options: list[str], count: int) -> None:
        assert len(place.json("history", *options)) == count

    def test_csv_has_a_heading_and_a_row_for_each(self, place: Place) -> None:
        rows = list(csv.DictReader(io.StringIO(place.done("history", "--csv"))))
        assert len(rows) == MAILS
        assert rows[0]["subject"] == f"letter {MAILS}"
        assert rows[0]["receivers"] == CARD

    def test_a_table_has_one_line_for_each(self, place: Place) -> None:
        lines = place.done("history").splitlines()
        assert len(lines) == MAILS + 1
        assert lines[0].split()[:6] == ["id", "received", "sender", "receivers", "visit", "attribution"]
        assert all(" exact " in line for line in lines[1:])

    def test_a_site_that_does_not_exist_is_said_so(self, place: Place) -> None:
        assert place.refused("history", "--site", "nowhere") == "there is no site named 'nowhere'"


@pytest.mark.parametrize("place", [ALONE], indirect=True, scope="module")
class TestAlone:
    """What a test first writes into the database, which nobody has open."""

    def test_the_last_administrator_stays(self, place: Place) -> None:
        place.done("user", "create", "boss", "--role", "admin")
        place.write("UPDATE users SET password = 'hash' WHERE name = 'boss'")  # as its link would
        for words in (("remove", "boss"), ("change", "boss", "--role", "viewer")):
            assert place.refused("user", *words) == "nobody else is an administrator of all sites"
        place.done("user", "create", "other-boss", "--role", "admin")  # who has no password yet does not count
        assert place.refused("user", "remove", "boss") == "nobody else is an administrator of all sites"

    def test_what_was_under_way_at_a_kill_can_be_dropped(self, place: Place) -> None:
        place.write("UPDATE deliveries SET claim = 'f00d', claimed_until = ? WHERE id = 7", time.time() + 600)
        assert place.done("queue", "drop", "7") == "1 delivery dropped\n"
        assert 7 not in [row["id"] for row in place.json("queue", "list")]


@pytest.mark.parametrize("place", [BESIDE], indirect=True, scope="module")
class TestControlSocket:
    def test_the_daemon_tells_its_ports(self, place: Place) -> None:
        status = call(place.daemon.data_dir / "control.sock", "status", {})
        assert status == {
            "pid": place.daemon.pid,
            "smtp": [place.daemon.smtp_port],
            "http": [place.daemon.http_port],
        }

    @pytest.mark.parametrize(
        ("command", "arguments", "field"),
        [
            ("token.create", {}, "name"),
            ("token.create", {"name": "x", "role": "king"}, "role"),
            ("token.create", {"name": "x", "more": 1}, "more"),
            ("queue.retry", {}, "deliveries"),
            ("queue.retry", {"all": True, "deliveries": [1]}, "deliveries"),
            ("queue.drop", {"deliveries": []}, "deliveries"),
            ("queue.drop", {"deliveries": ["1"]}, "deliveries[0]"),
            ("site.tracking", {"site": "example", "on": "yes"}, "on"),
            ("target.add", {"site": "example", "address": "x"}, "address"),
            ("webhook.enable", {"webhook": 0}, "webhook"),
        ],
    )
    def test_arguments_that_are_no_good_are_named(
        self, place: Place, command: str, arguments: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(ControlError) as caught:
            call(place.daemon.data_dir / "control.sock", command, arguments)
        assert caught.value.field == field


async def test_held_mail_is_forwarded_once_the_next_hop_takes_it(tmp_path: Path) -> None:
    async with SmtpSink(script={"rcpt": ["450 4.2.1 full"]}) as sink:
        forward = {"next_hop": f"smtp://{sink.address}", "retry_for": "0s"}
        async with Daemon(tmp_path, {"forward": forward, "site": [declared()]}) as daemon:
            await mail(daemon, letter(1))
            await daemon.logged("delivery", state="failed")
            daemon.stop()
            retried = await asyncio.to_thread(Place(daemon, ALONE, ()).done, "queue", "retry", "--all")
            assert retried == "1 delivery tried now\n"
            daemon.start()
            (received,) = await sink.wait_for_messages(1)
            assert received.content.endswith(letter(1))
            await daemon.logged("delivery", state="forwarded")


async def test_mail_that_waits_is_taken_out_and_sent_on_by_the_commands_of_the_documentation(tmp_path: Path) -> None:
    """docs/operations.md, "Back to the old version", letter for letter, but for the host and the places."""
    for name in ("bash", "curl", "jq"):
        if shutil.which(name) is None:
            missing(f"NOT TESTED, how mail is taken out before a rollback: {name} is not installed")
    chapter = (ROOT / "docs" / "operations.md").read_text().partition("**Back to the old version**")[2]
    first, _, then = re.findall(r"```\n(.*?)```", chapter, re.DOTALL)[:3]
    take = first.partition("systemctl stop relay.socket relay.service\n")[2]
    assert take.count("relay ") == 2
    letters = {letter(1), letter(2) + b"%DATE% \\n\r\n" * 20_000}  # the second has a file of its own
    dead = dead_port()
    settings = {"forward": {"next_hop": f"smtp://127.0.0.1:{dead}"}, "site": [declared()]}
    async with Daemon(tmp_path, settings) as daemon:
        for content in letters:
            await mail(daemon, content)
        await daemon.logged("delivery", state="deferred")
        daemon.stop()
        async with SmtpSink() as sink:
            script = (
                f'set -eu -o pipefail; relay() {{ {sys.executable} -m relay "$@"; }}; '
                f"RELAY='--config {daemon.config}'\n{take}{then}"
            )
            for old, new in (("/root/taken-out", str(tmp_path / "out")), ("mail.example.com:25", sink.address)):
                assert old in script
                script = script.replace(old, new)
            done = await asyncio.create_subprocess_exec("bash", "-c", script, env=environment())
            assert await done.wait() == 0
            received = await sink.wait_for_messages(2)
    assert {one.content for one in received} == letters
    assert {tuple(one.recipients) for one in received} == {("sales@example.test",)}


def test_a_rollback_leaves_the_shell_in_which_it_installs_as_it_was() -> None:
    """What pip installs under a umask of 077 the daemon's user cannot read."""
    chapter = (ROOT / "docs" / "operations.md").read_text().partition("**Back to the old version**")[2]
    blocks = re.findall(r"```\n(.*?)```", chapter.partition("\n## ")[0], re.DOTALL)
    assert "/opt/visit-relay/bin/pip install" in "".join(blocks)
    assert "umask" not in "".join(blocks)


def test_a_pool_takes_no_addresses_of_a_domain_whose_mx_has_the_mail(tmp_path: Path) -> None:
    place = Place(Daemon(tmp_path, {"site": [declared()]}), ALONE, ())
    for name in ("own", "third"):
        place.shop(name)
    add, sales = ("target", "pool", "add"), ("example", "sales@example.test")
    assert "example.test is a domain of substitutes" in place.refused(*add, *sales, "x@example.test")
    assert "to the MX of own.test" in place.refused(*add, *sales, "x@own.test")
    assert "to the MX of third.test" in place.refused("target", "add", "own", "b@own.test", "--pool", "c@third.test")
    hop = ("--next-hop", "smtp://127.0.0.1:25")
    place.done("target", "add", "own", "sales@hop.test", "--pool", "a@hop.test", *hop)
    place.done(*add, "own", "sales@hop.test", "b@hop.test")


def test_a_command_while_the_daemon_starts_or_stops_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    place = Place(Daemon(tmp_path), ALONE, ())
    data_dir = place.daemon.data_dir
    with DirectoryLock(data_dir):
        said = place.refused("token", "create", "x")
    assert said == f"{data_dir} is in use by another relay (process {os.getpid()})"
    assert [path.name for path in data_dir.iterdir()] == ["lock"]
