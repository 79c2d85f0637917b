"""The request that posts one event: its fields, signatures and body, templates, and what is shown of it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from relay import presets
from relay.config.webhook import HookOptions
from relay.core import extras as extras_module
from relay.core.extras import PayloadExtras
from relay.core.hook import Access, EventType, HookSettings
from relay.core.model import Attribution, AttributionState
from relay.core.payload import KEYS, PayloadMessage, PayloadVisit
from relay.core.template import TemplateError
from relay.secrets import Keys, SealError
from relay.store.post import Hook, PostJob
from tests.poster_fixtures import CARD, SECRET
from tests.store_fixtures import DAY, part
from tests.webhook_receiver import stop_clock
from webapi import links
from webapi.compose import Composer, NotWanted, Request
from webapi.poster_frames import Submit, pack, read

NOW = 1_796_000_000.0
OTHER_SECRET = "whsec_" + "b3RoZXIgb3RoZXIgb3RoZXIgb3RoZXIgb3RoZXI="
URL = "https://crm.example/hook"


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_clock(monkeypatch, NOW)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.load(tmp_path_factory.mktemp("data") / "keys")


@pytest.fixture
def composer(keys: Keys) -> Composer:
    return Composer(keys, "https://relay.example/base/", DAY)


def hook_of(keys: Keys, url: str = URL, secret: str = SECRET, **options: Any) -> Hook:
    """A webhook that is told ``options``, as the API takes them."""
    previous = options.pop("previous", None)
    until = options.pop("until", None)
    given = HookOptions(**options)
    access = given.access()
    return Hook(
        1,
        url,
        keys.seal(secret),
        given.settings(),
        None if previous is None else keys.seal(previous),
        until,
        None if access == Access() else keys.seal(access.to_json()),
    )


def job_of(
    hook: Hook, data: Mapping[str, Any] | None = None, event: str = "message.received", **changes: Any
) -> PostJob:
    visit = PayloadVisit(number="123456", first_visit="1001", marker="fb_new", utm_source="fb")
    extras = PayloadExtras(
        event=event,
        site="shop",
        received_at=NOW - 100,
        written_at=NOW - 120,
        message_id="1@example.org",
        in_reply_to=None,
        references=(),
        mail_from="ann@example.org",
        size=7,
        automatic=None,
        bounce=False,
        html=None,
        channel="campaign",
        candidates=(),
        first_touch=None,
        deal_id=None,
        deal_url=None,
        data=data or {},
    )
    job = PostJob(
        post_id=1,
        claim="me",
        attempts=1,
        uid="evt_1",
        hook=hook,
        site_id=1,
        message_id=17,
        created_at=NOW - 100,
        message=PayloadMessage("17", "17", "Hi", "Hello", "ann@example.org", CARD),
        parts=(),
        visit=visit,
        attribution=Attribution(AttributionState.EXACT, "plus/1"),
        extras=extras if hook.settings.extended or event != "message.received" else None,
    )
    return replace(job, **changes)


def body_of(request: Request) -> dict[str, Any]:
    found = json.loads(request.body)
    assert isinstance(found, dict)
    return found


def names(request: Request) -> list[str]:
    return sorted(name.lower() for name in request.headers)


def verified(request: Request, secret: str) -> bool:
    """Whether the receiver's library takes it now."""
    try:
        Webhook(secret).verify(request.body, {name.lower(): value for name, value in request.headers.items()})
    except WebhookVerificationError:
        return False
    return True


class TestFields:
    def test_without_options_there_are_the_signature_and_what_every_request_has(
        self, keys: Keys, composer: Composer
    ) -> None:
        request = composer.compose(job_of(hook_of(keys)), NOW + 0.9)
        assert (request.method, request.url) == ("POST", URL)
        assert dict(request.headers) == {
            "User-Agent": request.headers["User-Agent"],
            "Content-Type": "application/json",
            "webhook-id": "evt_1",
            "webhook-timestamp": str(int(NOW)),
            "webhook-signature": request.headers["webhook-signature"],
        }
        assert request.headers["User-Agent"].startswith("visit-relay")

    @pytest.mark.parametrize("login", ["user:pass:word", "Jörg:größe", ":"])
    def test_a_basic_login_is_sent_in_utf8(self, keys: Keys, composer: Composer, login: str) -> None:
        request = composer.compose(job_of(hook_of(keys, basic=login)), NOW)
        scheme, _, sent = request.headers["Authorization"].partition(" ")
        assert (scheme, base64.b64decode(sent).decode()) == ("Basic", login)

    def test_a_bearer_token_is_sent_as_it_is(self, keys: Keys, composer: Composer) -> None:
        assert (
            composer.compose(job_of(hook_of(keys, bearer="t0ken==")), NOW).headers["Authorization"] == "Bearer t0ken=="
        )

    def test_own_fields_are_added(self, keys: Keys, composer: Composer) -> None:
        request = composer.compose(job_of(hook_of(keys, headers={"X-Api-Key": "k", "X-Empty": ""})), NOW)
        assert (request.headers["X-Api-Key"], request.headers["X-Empty"]) == ("k", "")
        assert request.headers["Content-Type"] == "application/json"

    def test_a_field_is_there_once_whatever_its_capitals(self, keys: Keys, composer: Composer) -> None:
        request = composer.compose(job_of(hook_of(keys, headers={"USER-AGENT": "mine"})), NOW)
        assert names(request).count("user-agent") == 1
        assert request.headers["USER-AGENT"] == "mine"

    def test_what_was_stored_against_the_rules_does_not_replace_what_is_ours(
        self, keys: Keys, composer: Composer
    ) -> None:
        stored = Access((("Webhook-Id", "forged"), ("AUTHORIZATION", "forged")), "Bearer real", {})
        hook = replace(hook_of(keys), access=keys.seal(stored.to_json()))
        request = composer.compose(job_of(hook), NOW)
        assert (request.headers["webhook-id"], request.headers["Authorization"]) == ("evt_1", "Bearer real")
        assert len(set(names(request))) == len(request.headers)

    def test_a_templates_field_gives_way_to_the_webhooks_own_and_to_its_login(
        self, keys: Keys, composer: Composer
    ) -> None:
        shape = 'body = "{}"\n[headers]\nx-tag = "templates"\nauthorization = "templates"\nx-more = "{{ subject }}"'
        hook = hook_of(keys, template=shape, headers={"X-Tag": "own"}, bearer="real")
        request = composer.compose(job_of(hook), NOW)
        assert {name: request.headers[name] for name in ("X-Tag", "Authorization", "x-more")} == {
            "X-Tag": "own",
            "Authorization": "Bearer real",
            "x-more": "Hi",
        }
        assert len(set(names(request))) == len(request.headers)


class TestSignature:
    def test_a_rotated_secret_and_the_one_before_both_verify(self, keys: Keys, composer: Composer) -> None:
        request = composer.compose(job_of(hook_of(keys, previous=OTHER_SECRET, until=NOW + 10)), NOW)
        assert len(request.headers["webhook-signature"].split()) == 2
        assert verified(request, SECRET)
        assert verified(request, OTHER_SECRET)
        assert not verified(request, "whsec_" + "bm90IHRoaXMgbm90IHRoaXMgbm90IHRoaXM=")

    @pytest.mark.parametrize(("later", "stands"), [(9, True), (10, False), (11, False)])
    def test_the_old_secret_signs_until_its_time_is_over(
        self, keys: Keys, composer: Composer, later: int, stands: bool
    ) -> None:
        request = composer.compose(job_of(hook_of(keys, previous=OTHER_SECRET, until=NOW + 10)), NOW + later)
        assert verified(request, SECRET)
        assert verified(request, OTHER_SECRET) is stands
        assert len(request.headers["webhook-signature"].split()) == 1 + stands

    def test_a_declared_previous_secret_signs_as_long_as_it_is_declared(self, keys: Keys, composer: Composer) -> None:
        job = job_of(hook_of(keys, previous=OTHER_SECRET))
        assert verified(composer.compose(job, NOW), OTHER_SECRET)
        assert len(composer.compose(job, NOW + 4000 * DAY).headers["webhook-signature"].split()) == 2

    def test_the_body_of_a_template_is_what_is_signed(self, keys: Keys, composer: Composer) -> None:
        request = composer.compose(job_of(hook_of(keys, template="body = '[\"Hällo\", {{ subject|tojson }} ]'")), NOW)
        assert request.body == '["Hällo", "Hi" ]'.encode()
        assert verified(request, SECRET)
        assert not verified(replace(request, body=b'["H\xc3\xa4llo", "Hi"]'), SECRET)

    def test_the_id_stays_over_retries_and_the_timestamp_is_each_attempts_own(
        self, keys: Keys, composer: Composer
    ) -> None:
        first, second = (composer.compose(job_of(hook_of(keys)), NOW + after) for after in (0, 300))
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body
        assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 300

    def test_what_our_keys_do_not_open_is_said_to_be_so(self, keys: Keys, composer: Composer) -> None:
        for broken in (
            replace(hook_of(keys), secret="s1.AAAA"),
            replace(hook_of(keys), previous_secret="s1.AAAA"),
            replace(hook_of(keys), access="s1.AAAA"),
        ):
            with pytest.raises(SealError):
                composer.compose(job_of(broken), NOW)


class TestBody:
    def test_without_extras_it_has_exactly_the_references_keys(self, keys: Keys, composer: Composer) -> None:
        job = job_of(hook_of(keys), parts=(part(0),))
        found = body_of(composer.compose(job, NOW))
        assert tuple(found) == KEYS
        assert [set(file) for file in found["attachments"]] == [{"name", "url"}]
        assert (found["visit_id"], found["source_level_1"], found["source_level_2"]) == ("123456", "fb", "new")

    def test_extras_that_are_at_hand_but_not_asked_for_are_not_sent(self, keys: Keys, composer: Composer) -> None:
        asked = job_of(hook_of(keys, extras=True))
        assert asked.extras is not None
        found = body_of(composer.compose(replace(asked, hook=hook_of(keys)), NOW))
        assert tuple(found) == KEYS

    def test_webhooks_that_are_told_the_same_get_the_same_and_others_what_is_theirs(
        self, keys: Keys, composer: Composer
    ) -> None:
        job = job_of(hook_of(keys, extras=True), parts=(part(0),))
        plain = replace(job, hook=hook_of(keys))
        other = replace(job, message=replace(job.message, text="Another"))
        elsewhere = replace(job, site_id=2)
        want = [
            body_of(Composer(keys, "https://relay.example/base/", DAY).compose(one, NOW)) for one in (job, plain, other)
        ]
        found = [body_of(composer.compose(one, NOW)) for one in (job, job, plain, plain, other, job, elsewhere)]
        assert found[:6] == [want[0], want[0], want[1], want[1], want[2], want[0]]
        assert found[6]["attachments"] != want[0]["attachments"]  # a link is one site's

    async def test_a_body_is_made_once_for_webhooks_that_are_told_the_same_in_a_process_of_their_own(
        self, keys: Keys, composer: Composer
    ) -> None:
        job = job_of(hook_of(keys, extras=True), message_id=4711, site_id=4712, parts=(part(0),))
        reader = asyncio.StreamReader()
        reader.feed_data(pack(Submit([job, replace(job, post_id=2, hook=hook_of(keys, extras=True))], frozenset())))
        came = await read(reader)
        first, second = (composer.compose(one, NOW) for one in came.jobs)
        assert first.body is second.body
        assert body_of(first)["id"] == body_of(composer.compose(job, NOW))["id"]

    def test_with_extras_they_follow_the_references_keys(self, keys: Keys, composer: Composer) -> None:
        job = job_of(hook_of(keys, extras=True), parts=(part(0), part(3, "")))
        found = body_of(composer.compose(job, NOW))
        assert tuple(found) == (*KEYS, *(key for key, *_ in extras_module.FIELDS))
        assert [(file["name"], file["size"], file["inline"]) for file in found["attachments"]] == [
            ("offer.pdf", 3, False),
            (None, 3, False),
        ]
        assert found["received_epoch"] == int(NOW - 100)
        assert found["attribution"] == {"state": "exact", "method": "plus/1", "candidates": []}

    def test_a_failure_is_told_even_without_extras(self, keys: Keys, composer: Composer) -> None:
        failure = {"recipient": CARD, "forward_to": "a@example.com", "code": 550, "answer": "no", "host": "mx"}
        hook = hook_of(keys, events=["message.received", "message.failed"])
        found = body_of(composer.compose(job_of(hook, {"failure": failure}, "message.failed"), NOW))
        assert (found["event"], found["failure"]) == ("message.failed", failure)
        assert tuple(found)[: len(KEYS)] == KEYS

    @pytest.mark.parametrize("event", list(EventType))
    def test_links_live_from_receipt_whatever_happens_later(self, keys: Keys, composer: Composer, event: str) -> None:
        """An event of a week later must not bring back a link to what retention has removed."""
        data: dict[str, Any] = {} if event == "message.received" else {"failure": {}}
        job = job_of(hook_of(keys), data, event, parts=(part(2, "счёт 1.pdf"),))
        if event != "message.received":
            job = replace(job, created_at=NOW + 7 * DAY)
        (file,) = body_of(composer.compose(job, NOW + 8 * DAY))["attachments"]
        start, _, rest = file["url"].partition("/a/")
        token, _, name = rest.partition("/")
        assert (start, name) == ("https://relay.example/base", "%D1%81%D1%87%D1%91%D1%82%201.pdf")
        received_at = NOW - 100
        assert links.read(keys.all("links"), token, received_at + DAY - 1) == (17, 2, 1)
        with pytest.raises(links.LinkExpired):
            links.read(keys.all("links"), token, received_at + DAY + 1)


VARIABLES: dict[str, dict[str, str]] = {
    "bitrix24": {"code": "abcdefgh12345678"},
    "ga4": {"measurement_id": "G-1234567", "api_secret": "s3cr3t s3cr3t"},
}


class TestTemplates:
    @pytest.mark.parametrize("name", presets.names())
    def test_every_preset_makes_a_request(self, keys: Keys, composer: Composer, name: str) -> None:
        hook = hook_of(keys, "https://api.example/x/", template=name, variables=VARIABLES.get(name, {}))
        visit = PayloadVisit(number="1", marker="fb_new", google_client_id="10.20")
        request = composer.compose(job_of(hook, visit=visit, parts=(part(0),)), NOW)
        json.loads(request.body)
        assert request.url.startswith("https://api.example/")
        assert request.headers["Content-Type"] == "application/json"
        assert {"webhook-id", "webhook-timestamp", "webhook-signature"} <= set(names(request))

    def test_a_template_has_the_extras_without_asking(self, keys: Keys, composer: Composer) -> None:
        hook = hook_of(keys, template='body = \'{"at": {{ received_epoch }}, "site": {{ site|tojson }}}\'')
        assert body_of(composer.compose(job_of(hook), NOW)) == {"at": int(NOW - 100), "site": "shop"}

    def test_get_has_no_body(self, keys: Keys, composer: Composer) -> None:
        hook = hook_of(keys, template="method = 'GET'\nurl = '{{ url }}?v={{ visit_id|urlencode }}'")
        request = composer.compose(job_of(hook), NOW)
        assert (request.method, request.url, request.body) == ("GET", f"{URL}?v=123456", b"")
        assert "content-type" not in names(request)

    def test_an_event_that_lacks_what_it_needs_is_not_wanted(self, keys: Keys, composer: Composer) -> None:
        hook = hook_of(keys, template="ga4", variables=VARIABLES["ga4"])
        with pytest.raises(NotWanted, match=r"^no google_client_id$"):
            composer.compose(job_of(hook), NOW)

    def test_one_that_does_not_come_out_says_which_field(self, keys: Keys, composer: Composer) -> None:
        hook = hook_of(keys, template="body = '{{ subject }}'")
        with pytest.raises(TemplateError, match="body"):
            composer.compose(job_of(hook), NOW)


class TestShown:
    def shown(self, composer: Composer, hook: Hook, **changes: Any) -> Request:
        return composer.shown(composer.compose(job_of(hook, **changes), NOW), hook)

    def text(self, request: Request) -> str:
        return f"{request.url} {dict(request.headers)} {request.body.decode()}"

    def test_logins_signatures_and_the_values_of_own_fields_are_hidden(self, keys: Keys, composer: Composer) -> None:
        hook = hook_of(keys, bearer="t0k", headers={"X-Api-Key": "k", "USER-AGENT": "mine"})
        request = self.shown(composer, hook)
        assert dict(request.headers) == {
            "USER-AGENT": "***",
            "Content-Type": "application/json",
            "X-Api-Key": "***",
            "Authorization": "***",
            "webhook-id": "evt_1",
            "webhook-timestamp": str(int(NOW)),
            "webhook-signature": "***",
        }

    def test_without_secrets_it_is_what_is_sent_but_for_the_signature(self, keys: Keys, composer: Composer) -> None:
        hook = hook_of(keys)
        sent, shown = composer.compose(job_of(hook), NOW), self.shown(composer, hook)
        assert (shown.method, shown.url, shown.body) == (sent.method, sent.url, sent.body)
        assert shown.headers == {**sent.headers, "webhook-signature": "***"}

    @pytest.mark.parametrize(
        "secret",
        ["s3cr3tValue", 'with "quotes" and \\', "with / & = + %", "ключ-ключ", "<tag attr='x'>", "  padded  "],
    )
    @pytest.mark.parametrize(
        "written",
        [
            "{{ variables.key|tojson }}",
            '{{ ("key=" ~ variables.key)|tojson }}',
            '"{{ variables.key|urlencode }}"',
            "{{ variables.key|trim|tojson }}",
            "{{ variables.key|upper|tojson }}",
            "{{ variables.key|e|tojson }}",
        ],
    )
    def test_a_variable_is_hidden_however_a_filter_wrote_it(
        self, keys: Keys, composer: Composer, secret: str, written: str
    ) -> None:
        shape = f"""
            url = '{{{{ url }}}}?k={{{{ variables.key|urlencode }}}}'
            body = '''{written}'''
            headers = {{ X-Key = '{{{{ variables.key|urlencode }}}}' }}
        """
        hook = hook_of(keys, template=shape, variables={"key": secret})
        request = self.shown(composer, hook)
        assert request.url == f"{URL}?k=***"
        assert request.headers["X-Key"] == "***"
        assert json.loads(request.body).strip() in ("***", "key=***")

    def test_bitrix24s_code_is_sent_in_the_url_and_hidden_there(self, keys: Keys, composer: Composer) -> None:
        hook = hook_of(keys, "https://a.bitrix24.com/rest/1/", template="bitrix24", variables=VARIABLES["bitrix24"])
        sent, shown = composer.compose(job_of(hook), NOW), self.shown(composer, hook)
        assert sent.url == "https://a.bitrix24.com/rest/1/abcdefgh12345678/crm.item.add"
        assert shown.url == "https://a.bitrix24.com/rest/1/***/crm.item.add"

    def test_of_two_variables_one_within_the_other_nothing_is_left(self, keys: Keys, composer: Composer) -> None:
        shape = "body = '{{ [variables.a, variables.b]|tojson }}'"
        request = self.shown(composer, hook_of(keys, template=shape, variables={"a": "secret", "b": "secret-and-more"}))
        assert request.body == b'["***", "***"]'

    @pytest.mark.parametrize("short", ["1", "id", "EUR", "Hello", "      "])
    def test_a_short_variable_leaves_the_text_as_it_is(self, keys: Keys, composer: Composer, short: str) -> None:
        shape = 'body = \'{"v": {{ variables.v|tojson }}, "text": {{ text|tojson }}}\''
        hook = hook_of(keys, template=shape, variables={"v": short})
        message = PayloadMessage("1", "1", None, f"Hello 1 id {short} EUR", None, CARD)
        found = body_of(self.shown(composer, hook, message=message))
        assert found["text"] == f"Hello 1 id {short} EUR"


def test_settings_survive_being_stored() -> None:
    settings = HookSettings(events=("message.failed",), extras=True, concurrency=3, deal_id="/a", template="ga4")
    assert HookSettings.from_json(settings.to_json()) == settings
