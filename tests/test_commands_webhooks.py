"""`relay webhook …`, blocked senders and replays, each beside a running daemon and without one."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from relay.store.webhooks import MOST
from tests.daemon import PATIENCE, Daemon
from tests.dead_ends import CARD, SECRET, SETTINGS, declared, letter
from tests.ports import dead_port
from tests.test_commands import ALONE, BESIDE, Place, left_of
from tests.webhook_receiver import Answer, Receiver, deal

POOL = tuple(f"info{number}@track.test" for number in (1, 2, 3))
SECRETS = ("headerS3cret", "passwordS3cret", "variableS3cret", "bearerS3cret", SECRET.removeprefix("whsec_"))
HOOK = """
fill = "likely"
events = ["message.received", "message.failed"]
extras = true
basic = "user:passwordS3cret"
concurrency = 2
deal_id = "/lead/id"
template = "own.toml"
headers = { "X-Api-Key" = "headerS3cret" }
variables = { key = "variableS3cret" }
conditions = { subject = "^offer", first_letter = "1h" }
"""
TEMPLATE = 'body = \'{"subject": {{ subject|tojson }}, "key": {{ variables.key|tojson }}}\'\n'


@pytest.fixture(scope="module")
def crm() -> Iterator[Receiver]:
    """A receiver in a thread of its own: commands block."""
    loop, receiver = asyncio.new_event_loop(), Receiver()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(receiver.__aenter__(), loop).result(PATIENCE)
    yield receiver
    asyncio.run_coroutine_threadsafe(receiver.__aexit__(None, None, None), loop).result(PATIENCE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    loop.close()


@dataclass
class Hooks(Place):
    """``letters``: the number of the message to each address. ``bound``: the one whose visit came to light later."""

    letters: dict[str, int] = field(default_factory=dict)
    bound: str = ""

    def hook(self, ending: str) -> str:
        """The id of the webhook whose URL ends so."""
        (found,) = [hook["id"] for hook in self.json("webhook", "list") if hook["url"].endswith(ending)]
        return str(found)

    def shown(self, hook: str) -> Any:
        return json.loads(self.done("webhook", "show", hook))


@pytest.fixture(scope="module")
def settings(crm: Receiver) -> dict[str, Any]:
    """With one webhook that works, one whose conditions withhold every letter, and one that nobody answers."""
    hooks = [
        {"url": crm.at("/works"), "secret": SECRET},
        {"url": crm.at("/picky"), "secret": SECRET, "conditions": {"min_size": 1_000_000}},
        {"url": f"http://127.0.0.1:{dead_port()}/dead", "secret": SECRET, "bearer": "bearerS3cret"},
    ]
    return SETTINGS | {"site": [declared() | {"webhook": hooks}], "log": {"level": "debug"}}


@pytest.fixture(scope="module")
def beside(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hooks]:
    """A daemon that has taken and posted letters."""
    daemon = Daemon(tmp_path_factory.mktemp("beside"), settings)
    letters: dict[str, int] = {}
    with daemon:
        for number, address in enumerate((CARD, *POOL), 1):
            body = letter(number).replace(b"Date: Mon, 23 Nov 2026 08:00:00 +0000\r\n", b"")
            daemon.send("ann@customer.test", [address], body)
            letters[address] = daemon.wait_for("message", id=number)["id"]
        seen = 0
        for _ in range(2 * len(letters)):  # the third webhook of each is withheld
            seen = daemon.log.index(daemon.wait_for("post", since=seen, attempt=1)) + 1
        found = Hooks(daemon, BESIDE, (), letters, _page_view(daemon))
        found.write("UPDATE bindings SET started_at = started_at - 3600")
        yield found


@pytest.fixture(scope="module")
def alone(beside: Hooks, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Hooks:
    """What a kill while it posts would have left of it, and its log as well."""
    daemon = left_of(beside.daemon, tmp_path_factory.mktemp("alone"), settings)
    daemon.log.extend(beside.daemon.log)
    found = replace(beside, daemon=daemon, mode=ALONE)
    dead = "SELECT id FROM webhooks WHERE url LIKE '%/dead'"
    claim = "claim = 'f00d', claimed_until = next_at + 600, attempts = attempts + 1"
    found.write(f"UPDATE posts SET {claim} WHERE webhook_id = ({dead}) AND event_id = 1")
    return found


@pytest.fixture(scope="module", params=[BESIDE, ALONE])
def place(request: pytest.FixtureRequest, beside: Hooks, alone: Hooks) -> Hooks:
    return beside if request.param == BESIDE else alone


def _page_view(daemon: Daemon) -> str:
    """The substitute that a new visit is shown."""
    origin = "https://www.example.test"
    body = {"site": "pk_example", "page": f"{origin}/?rs=ads_1", "addresses": ["sales@example.test"]}
    headers = {"Origin": origin, "Content-Type": "text/plain", "User-Agent": "Mozilla/5.0 (X11) Firefox/140.0"}
    request = urllib.request.Request(f"{daemon.url}/v1/bind", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        found: str = json.load(answer)["addresses"]["sales@example.test"]
        return found


class TestOptions:
    def test_a_file_has_the_options_and_names_its_own_template(self, place: Hooks, tmp_path: Path) -> None:
        """The template lies beside the file of options, wherever the daemon's own files are."""
        name = place.shop("optioned")
        (tmp_path / "own.toml").write_text(TEMPLATE)
        (tmp_path / "hook.toml").write_text(HOOK)
        url = "https://crm.optioned.test/"
        place.done("webhook", "add", name, url, "--settings", str(tmp_path / "hook.toml"))
        shown = place.shown(place.hook(url))
        assert {key: shown[key] for key in ("fill", "events", "extras", "login", "concurrency", "deal_id")} == {
            "fill": "likely",
            "events": ["message.received", "message.failed"],
            "extras": True,
            "login": "basic",
            "concurrency": 2,
            "deal_id": "/lead/id",
        }
        assert (shown["template"], shown["headers"], shown["variables"]) == (TEMPLATE, ["X-Api-Key"], ["key"])
        assert (shown["conditions"]["subject"], shown["conditions"]["first_letter"]) == ("^offer", "1h")
        assert (shown["waiting"], shown["failed"], shown["last_at"]) == (0, 0, None)

        (tmp_path / "less.toml").write_text('bearer = "t0ken"\nbasic = ""\n')
        place.done("webhook", "change", shown["id"], "--settings", str(tmp_path / "less.toml"), "--url", url + "2")
        changed = place.shown(shown["id"])
        assert (changed.pop("login"), changed.pop("url")) == ("bearer", url + "2")
        assert changed.pop("edition") != shown["edition"]
        assert changed == {key: value for key, value in shown.items() if key not in ("login", "url", "edition")}

    def test_an_option_on_the_line_goes_over_the_file(self, place: Hooks, tmp_path: Path) -> None:
        name = place.shop("overruled")
        (tmp_path / "hook.toml").write_text('fill = "likely"\n')
        url = "https://crm.overruled.test/"
        place.done("webhook", "add", name, url, "--fill", "exact", "--settings", str(tmp_path / "hook.toml"))
        assert place.shown(place.hook(url))["fill"] == "exact"

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('colour = "red"', "colour: unknown key"),
            ("extras = 1", "extras: must be true or false, not a whole number"),
            ('basic = "a:sesame"\nbearer = "sesame"', "bearer: there is a basic login"),
            ('headers = { "Host" = "sesame" }', 'headers: "Host" is not the name of a header field'),
            ('template = "kommo"\nvariables = { nothing = "sesame" }', "variables.nothing: the template has no such"),
            ("template = \"body = '{{ subject }}'\"", "template.body: does not come out as JSON"),
            ('conditions = { subject = "(" }', "conditions.subject: is not a regular expression"),
            ('deal_id = "/~"', "deal_id: must have"),
        ],
    )
    def test_what_cannot_be_is_named_and_changes_nothing(
        self, place: Hooks, tmp_path: Path, text: str, problem: str
    ) -> None:
        name = "refused"
        if name not in [site["name"] for site in place.json("site", "list")]:
            place.shop(name)
            place.done("webhook", "add", name, "https://crm.refused.test/")
        hook = place.hook("refused.test/")
        before = place.json("webhook", "list", "--site", name)
        (tmp_path / "hook.toml").write_text(text)
        settings = ("--settings", str(tmp_path / "hook.toml"))
        for words in (("add", name, "https://crm.refused.test/2"), ("change", hook)):
            said = place.refused("webhook", *words, *settings)
            assert said.startswith(problem)
            assert "sesame" not in said
        assert place.json("webhook", "list", "--site", name) == before

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("fill = ", "hook.toml: Invalid value"),
            ('template = "gone.toml"', "hook.toml: [Errno 2] No such file or directory"),
            (f'secret = "{SECRET}"', "hook.toml: secret: is given on the command line, a secret by stdin"),
            ('url = "https://x.test"', "hook.toml: url: is given on the command line"),
        ],
    )
    def test_a_file_that_is_no_good_is_named(self, place: Hooks, tmp_path: Path, text: str, problem: str) -> None:
        (tmp_path / "hook.toml").write_text(text)
        said = place.refused("webhook", "add", "example", "https://x.test", "--settings", str(tmp_path / "hook.toml"))
        assert problem in said
        assert SECRET not in said

    def test_a_file_that_is_not_there_is_wrong_use(self, place: Hooks) -> None:
        assert place.run("webhook", "add", "example", "https://x.test", "--settings", "gone.toml").exit_code == 2

    def test_the_urls_of_a_site_differ(self, place: Hooks) -> None:
        name = place.shop("differing")
        for number in "12":
            place.done("webhook", "add", name, f"https://crm.differing.test/{number}")
        said = place.refused(
            "webhook", "change", place.hook("differing.test/2"), "--url", "https://crm.differing.test/1"
        )
        assert said == "site 'differing' has a webhook with this URL already"

    def test_a_site_has_so_many_and_no_more(self, place: Hooks) -> None:
        name = place.shop("crowded")
        for number in range(MOST):
            place.done("webhook", "add", name, f"https://crm.crowded.test/{number}")
        said = place.refused("webhook", "add", name, "https://crm.crowded.test/more")
        assert said == f"site 'crowded' has {MOST} webhooks, the most it may have"

    def test_the_daemon_reads_no_template_by_its_name(self, place: Hooks, tmp_path: Path) -> None:
        (place.daemon.config.parent / "own.toml").write_text(TEMPLATE)
        (tmp_path / "hook.toml").write_text('template = "own"')
        said = place.refused("webhook", "add", "example", "https://x.test", "--settings", str(tmp_path / "hook.toml"))
        assert said.startswith("template: is neither")

    def test_what_relay_toml_declares_is_changed_there(self, place: Hooks) -> None:
        hook = place.hook("/works")
        for words in (("change", hook, "--url", "https://x.test"), ("rotate", hook), ("remove", hook)):
            assert place.refused("webhook", *words) == "site example is defined in relay.toml: change it there"

    @pytest.mark.parametrize(
        "verb", ["show", "change", "rotate", "test", "log", "enable", "disable", "remove", "replay"]
    )
    def test_one_that_does_not_exist_is_said_so(self, place: Hooks, verb: str) -> None:
        more = ("--failed",) if verb == "replay" else ()
        assert place.refused("webhook", verb, "4711", *more) == "there is no webhook 4711"


class TestRotation:
    def test_a_new_secret_is_shown_once_and_the_old_one_signs_as_well(self, place: Hooks, crm: Receiver) -> None:
        name = place.shop("rotated")
        url = crm.at("/rotated")
        old = place.done("webhook", "add", name, url).split()[-1]
        hook = place.hook("/rotated")
        said = place.done("webhook", "rotate", hook, "--keep", "1h")
        new = said.split()[-1]
        assert (new.startswith("whsec_"), "for 1h" in said, new != old) == (True, True, True)
        assert new not in place.done("webhook", "show", hook) + place.done("webhook", "list", "--json")
        place.done("webhook", "test", hook)
        crm.posts[-1].verify(new)
        crm.posts[-1].verify(old)

    def test_ones_own_is_read_from_stdin_and_not_shown(self, place: Hooks) -> None:
        name = place.shop("own-secret")
        place.done("webhook", "add", name, "https://crm.own.test/")
        hook = place.hook("crm.own.test/")
        said = place.done("webhook", "rotate", hook, "--secret-from-stdin", stdin=SECRET + "\n")
        assert "whsec_" not in said
        for words, stdin in ((("--secret-from-stdin",), "short\n"), (("--keep", "soon"), "")):
            assert place.run("webhook", "rotate", hook, *words, stdin=stdin).exit_code == 2
        assert "keep: " in place.refused("webhook", "rotate", hook, "--keep", "31d")


class TestTest:
    def test_one_that_works_shows_request_answer_and_time(self, place: Hooks, crm: Receiver) -> None:
        crm.script = [deal(17, "https://crm.example/17")]
        count = place.daemon.query("SELECT count(*) FROM post_attempts")
        shown = place.done("webhook", "test", place.hook("/works"))
        lines = shown.splitlines()
        assert lines[0] == f"POST {crm.at('/works')}"
        assert "webhook-signature: ***" in lines
        assert '"subject":"Test of the webhook"' in shown
        assert re.match(r"200 after \d+\.\d", lines[-3])
        assert lines[-2:] == ["deal 17 https://crm.example/17", "the webhook works"]
        crm.posts[-1].verify(SECRET)
        assert place.daemon.query("SELECT count(*) FROM post_attempts") == count

    def test_one_that_does_not_ends_with_exit_code_1(self, place: Hooks, crm: Receiver) -> None:
        result = place.run("webhook", "test", place.hook("/dead"))
        assert result.exit_code == 1
        assert re.search(r"no answer after \d+\.\d", result.stdout)
        assert "no connection: Connection refused" in result.stdout
        assert result.stdout.splitlines()[-1] == "the webhook does not work"
        crm.script = [Answer(500, b"br\x1b[31moken")]
        result = place.run("webhook", "test", place.hook("/works"), "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)
        assert (found["succeeded"], found["status"], found["answer"]) == (False, 500, "br\x1b[31moken")

    def test_what_a_receiver_says_cannot_paint_the_terminal(self, place: Hooks, crm: Receiver) -> None:
        crm.script = [Answer(500, b"br\x1b[31moken")]
        assert "\x1b" not in place.run("webhook", "test", place.hook("/works")).stdout

    def test_secrets_are_not_shown(self, place: Hooks) -> None:
        shown = place.run("webhook", "test", place.hook("/dead")).stdout
        assert "Authorization: ***" in shown
        assert "bearerS3cret" not in shown


class TestLog:
    def test_what_was_posted_is_listed_newest_first(self, place: Hooks, crm: Receiver) -> None:
        rows = place.json("webhook", "log", place.hook("/works"))
        assert [row["id"] for row in rows] == [
            str(number) for number in sorted((int(r["id"]) for r in rows), reverse=True)
        ]
        assert {row["message"] for row in rows} >= set(map(str, place.letters.values()))
        assert place.json("webhook", "log", place.hook("/works"), "--limit", "1") == rows[:1]
        assert "delivered" in place.done("webhook", "log", place.hook("/works"))
        assert place.json("webhook", "log", place.hook("/works"), "--state", "failed") == []
        assert place.run("webhook", "log", place.hook("/works"), "--state", "lost").exit_code == 2

    def test_a_failure_says_why_and_when_it_is_tried_again(self, place: Hooks) -> None:
        rows = place.json("webhook", "log", place.hook("/dead"), "--state", "waiting")
        assert {row["answer"] for row in rows} == {"no connection: Connection refused"}
        assert all(row["next_at"] for row in rows)
        shown = place.shown(place.hook("/dead"))
        assert (shown["waiting"], shown["last_status"]) == (len(place.letters), None)
        assert shown["last_answer"] == "no connection: Connection refused"

    def test_what_the_conditions_withhold_says_so_here_and_at_the_message(self, place: Hooks) -> None:
        rows = place.json("webhook", "log", place.hook("/picky"))
        assert {(row["state"], row["answer"]) for row in rows} == {("withheld", "smaller than 1000000 octets")}
        text = place.done("message", "show", str(place.letters[CARD]))
        (line,) = [line for line in text.splitlines() if "/picky" in line]
        assert line.endswith("/picky: withheld: smaller than 1000000 octets")
        shown = place.json("message", "show", str(place.letters[CARD]))
        states = {hook["url"].rpartition("/")[2]: hook["state"] for hook in shown["events"][0]["webhooks"]}
        assert states == {"works": "delivered", "picky": "withheld", "dead": "waiting"}


class TestReplay:
    def test_a_range_is_posted_again(self, place: Hooks, crm: Receiver) -> None:
        hook, first = place.hook("/works"), len(place.daemon.log)
        said = place.done("webhook", "replay", hook, "--since", "2020-01-01", "--until", "2099-01-01T00:00:00Z")
        assert said == "4 letters are posted again\n"
        if place.mode == BESIDE:
            for _ in range(4):
                first = place.daemon.log.index(place.daemon.wait_for("post", since=first, webhook=int(hook))) + 1
            assert place.json("webhook", "log", hook, "--state", "waiting") == []
        assert place.done("webhook", "replay", hook, "--until", "2020-01-01") == "0 letters are posted again\n"
        assert place.done("webhook", "replay", place.hook("/picky"), "--since", "2020-01-01").startswith("0 letters")

    def test_all_that_failed_are_posted_again(self, place: Hooks) -> None:
        said = place.done("webhook", "replay", place.hook("/dead"), "--failed")
        # A daemon may be trying some of them at this moment.
        assert said.endswith("posted again\n")
        assert int(said.split()[0]) <= len(place.letters)
        if place.mode == ALONE:
            assert said == "4 letters are posted again\n"

    def test_either_failures_or_a_range(self, place: Hooks) -> None:
        hook = place.hook("/works")
        said = "give either failed, or since and until"
        assert place.refused("webhook", "replay", hook) == said
        assert place.refused("webhook", "replay", hook, "--failed", "--since", "2020-01-01") == said
        assert place.run("webhook", "replay", hook, "--since", "yesterday").exit_code == 2

    def test_a_disabled_one_is_to_be_enabled_first_and_nothing_is_attributed_anew(self, place: Hooks) -> None:
        hook = place.hook("/dead")
        assert place.done("webhook", "disable", hook).endswith("/dead) is disabled\n")
        shown = place.shown(hook)
        assert (shown["enabled"], shown["disabled_reason"]) == (False, "switched off")
        before = place.daemon.query("SELECT attribution, visit_id FROM deliveries ORDER BY id")
        for words in (("--failed",), ("--until", "2020-01-01"), ("--since", "2020-01-01", "--reattribute")):
            assert place.refused("webhook", "replay", hook, *words) == f"webhook {hook} is disabled: enable it first"
        assert place.daemon.query("SELECT attribution, visit_id FROM deliveries ORDER BY id") == before
        assert place.done("webhook", "enable", hook).endswith("/dead) is enabled\n")
        assert place.shown(hook)["enabled"] is True

    def test_a_message_is_attributed_anew_and_says_whether_that_changed_it(self, place: Hooks) -> None:
        message = str(place.letters[place.bound])
        assert place.json("message", "show", message)["attribution"]["state"] == "none"
        said = place.done("message", "replay", message, "--reattribute").splitlines()
        assert said == ["its attribution has changed", f"message {message} is posted again to 3 webhooks"]
        shown = place.json("message", "show", message)
        assert (shown["attribution"]["state"], shown["visit"] is not None) == ("exact", True)
        said = place.done("message", "replay", message, "--reattribute").splitlines()
        assert said[0] == "its attribution is what it was"


class TestBlocked:
    def test_a_sender_is_blocked_listed_and_unblocked(self, place: Hooks) -> None:
        name = place.shop("blocking")
        said = place.done("site", "block", name, "Spam@Example.ORG")
        assert said == f"spam@example.org is blocked at site {name}: its letters become no deals\n"
        place.done("site", "block", name, "@Bücher.example")
        place.done("site", "block", name, "spam@example.org")
        assert place.done("site", "blocked", name).splitlines() == ["@xn--bcher-kva.example", "spam@example.org"]
        said = place.done("site", "unblock", name, "SPAM@example.org")
        assert said == f"spam@example.org is not blocked at site {name} any more\n"
        said = place.refused("site", "unblock", name, "spam@example.org")
        assert said == f"spam@example.org is not blocked at site '{name}'"
        assert place.done("site", "unblock", name, "@bücher.example").startswith("@xn--bcher-kva.example ")
        assert place.done("site", "blocked", name) == ""

    def test_nonsense_is_wrong_use_and_a_site_has_to_be_there(self, place: Hooks) -> None:
        for verb in ("block", "unblock"):
            assert place.run("site", verb, "example", "nobody").exit_code == 2
            assert place.refused("site", verb, "nowhere", "a@example.org") == "there is no site named 'nowhere'"
        assert place.refused("site", "blocked", "nowhere") == "there is no site named 'nowhere'"


def test_secrets_are_neither_in_the_database_nor_in_the_log(place: Hooks) -> None:
    """After all of the above, with the log at level debug."""
    database = b"".join(path.read_bytes() for path in place.daemon.data_dir.glob("relay.db*"))
    for secret in SECRETS:
        assert secret.encode() not in database
        assert secret not in str(place.daemon.log)
