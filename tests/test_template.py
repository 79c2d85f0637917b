"""A webhook's template: what it may say, what it sees, what comes out, and what it cannot be made to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.payload import KEYS
from relay.core.template import (
    MAX_HEADER,
    MAX_HEADERS,
    MAX_POINTER,
    MAX_URL,
    MAX_VARIABLE,
    Template,
    TemplateError,
    check,
    deal_url,
    missing,
    render,
    resolve,
)
from relay.core.template_engine import MAX_SOURCE, render_field
from relay.core.template_filters import FILTERS, TESTS
from relay.core.template_samples import EXTRAS, HOSTILE, PAYLOAD, REQUEST, SAMPLES

OWN = "https://crm.example.com:8443/api/hook"
EXAMPLE, NULLS, HOSTILES = (payload for _, payload in SAMPLES)


def show(source: str, payload: dict[str, Any] = EXAMPLE, **variables: str) -> str:
    return render_field(source, "body", REQUEST, {**payload, "variables": variables, "url": OWN})


def problem(template: Template, url: str = OWN, **variables: str) -> TemplateError:
    with pytest.raises(TemplateError) as caught:
        check(template, url, variables)
    return caught.value


def text(body: str, **more: Any) -> Template:
    return Template(body, **{"content_type": "text/plain", **more})


# What a template sees.


def test_every_key_of_the_payload_and_every_extra_can_be_named() -> None:
    assert (*KEYS, *EXTRAS) == PAYLOAD
    body = "{" + ",".join(f'"{name}": {{{{ {name}|tojson }}}}' for name in PAYLOAD) + "}"
    check(Template(body), OWN, {})
    found = json.loads(render(Template(body), OWN, EXAMPLE, {}).body)
    assert found == EXAMPLE


def test_the_samples_hold_every_name_and_nothing_else() -> None:
    for _, payload in SAMPLES:
        assert set(payload) == set(PAYLOAD)


def test_what_the_payload_leaves_out_is_null() -> None:
    assert render(Template("{{ [city, html]|tojson }}"), OWN, {"city": "Riga"}, {}).body == b'["Riga", null]'


def test_null_is_empty_in_text_and_null_in_json() -> None:
    assert show("<{{ city }}> {{ city|tojson }}", NULLS) == "<> null"


def test_true_false_and_numbers_come_out_as_in_json() -> None:
    assert show("{{ bounce }} {{ size }} {{ received_epoch }}000000") == "true 4096 1767323045000000"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ marker|upper }} {{ marker|lower }}", "FB_NEW fb_new"),
        ("[{{ '  a b '|trim }}]", "[a b]"),
        ("{{ 'abcdef'|truncate(4) }} {{ 'abcd'|truncate(4) }} {{ 'abcdef'|truncate(4, '') }}", "abc… abcd abcd"),
        ("{{ 'abcdef'|truncate(0) }}|{{ 'abcdef'|truncate(2, '[cut]') }}", "|[c"),
        ("{{ references|first }} {{ references|last }} {{ references|length }}", "first@mail.com earlier@mail.com 2"),
        ("{{ 'abc'|first }}{{ 'abc'|last }}{{ 'abc'|length }}", "ac3"),
        ("{{ references|join(', ') }}", "first@mail.com, earlier@mail.com"),
        ("{{ attachments|join(' ', 'name') }}", "offer.pdf"),
        ("{{ marker|replace('_', '-') }}", "fb-new"),
        ("{{ '42'|int + '' if false else '42'|int }}", None),
        ("{{ '42'|int }} {{ 'x'|int }} {{ 'x'|int(7) }} {{ ('9' ~ '9999999999' ~ '9999999999')|int }}", "42 0 7 0"),
        ("{{ size|string ~ '!' }}", "4096!"),
        ("{{ 'a b/c&ё'|urlencode }}", "a%20b%2Fc%26%D1%91"),
        ("{{ '<a href=\"x\">&</a>'|e }}", "&lt;a href=&quot;x&quot;&gt;&amp;&lt;/a&gt;"),
        ("{{ url|origin }}", "https://crm.example.com:8443"),
        ("{{ 'https://user:secret@crm.example.com/x'|origin }}", "https://crm.example.com"),
        ("{{ html|default('none') }} {{ '' | d('x', true) }}", "<p>Test message</p> x"),
        ("{{ variables.stage|default('new') }}", "new"),
        ("{{ 'ok' if variables.stage is undefined and city is defined else 'no' }}", "ok"),
        ("{{ 'ok' if city is string and size is number and bounce is true and not html is none else 'no' }}", "ok"),
        ("{{ 'ok' if country in ['USA', 'UK'] and 'York' in city and size >= 4096 else 'no' }}", "ok"),
        ("{{ attribution['state'] }} {{ attribution.candidates[0].probability }}", "likely 0.75"),
        ("{% for each in references %}{{ loop.index }}/{{ loop.length }} {% endfor %}", "1/2 2/2 "),
        ("{% for each in references if each != 'first@mail.com' %}{{ each }}{% endfor %}", "earlier@mail.com"),
        ("{% for each in in_reply_to and [] %}x{% else %}none{% endfor %}", "none"),
        ("{% raw %}{{ city }}{% endraw %}{# remark #}", "{{ city }}"),
    ],
)
def test_what_a_template_can_say(source: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(TemplateError, match="Add is not available"):
            show(source)
    else:
        assert show(source) == expected


def test_default_takes_null_for_missing() -> None:
    assert show("{{ city|default('?') }}", NULLS) == "?"


def test_the_text_of_a_message_is_never_a_template() -> None:
    payload = {**EXAMPLE, "subject": "{{ 7*7 }}{% for x in y %}{# #}", "city": "{{ id.__class__ }}"}
    assert show("{{ subject }} {{ city ~ subject }}", payload) == (
        "{{ 7*7 }}{% for x in y %}{# #} {{ id.__class__ }}{{ 7*7 }}{% for x in y %}{# #}"
    )


@given(st.text())
def test_any_text_survives_tojson_and_urlencode(value: str) -> None:
    payload = {**EXAMPLE, "subject": value}
    template = Template('{"s": {{ subject|tojson }}}', url="{{ url }}?s={{ subject|urlencode }}")
    made = render(template, OWN, payload, {})
    plain = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert json.loads(made.body) == {"s": plain}
    assert parse_qs(urlsplit(made.url).query, keep_blank_values=True) == {"s": [plain]}


def test_line_separators_are_escaped_in_json() -> None:
    assert show("{{ subject|tojson }}", {**EXAMPLE, "subject": "a\u2028b\u2029c"}) == '"a\\u2028b\\u2029c"'


# What is refused at definition time, with the field and the reason.


def test_a_misspelt_name_is_refused_wherever_it_stands() -> None:
    error = problem(Template("{% if not id %}\n{{ emial_from }}{% endif %}{}"))
    assert (error.field, error.message) == ("body", "line 2: unknown name 'emial_from' (did you mean email_from?)")


@pytest.mark.parametrize("name", ["attribution.stat", "first_touch.utm_sorce", "authentication['spff']", "deal.link"])
def test_a_misspelt_field_of_an_object_is_refused_even_where_no_sample_comes(name: str) -> None:
    assert "unknown field of" in problem(Template("{% if false %}{{ " + name + " }}{% endif %}{}")).message


def test_a_misspelt_field_of_an_attachment_is_refused() -> None:
    error = problem(text("{% for file in attachments %}{{ file.link }}{% endfor %}"))
    assert error.message == "there is no field 'link' here (an ordinary message)"


def test_a_field_of_what_can_be_null_must_be_guarded() -> None:
    error = problem(text("{{ first_touch.marker }}"))
    assert error.message.startswith("null has no field 'marker'")
    assert "of which nothing is known" in error.message
    check(text("{{ first_touch.marker if first_touch else '' }}"), OWN, {})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ city", "unexpected end of template"),
        ("{% if city %}", "end of template"),
        ("{{ city|nosuch }}", "unknown filter 'nosuch'"),
        ("{{ city|tojsn }}", "did you mean tojson?"),
        ("{{ city|format }}", "unknown filter"),
        ("{{ city is divisibleby 3 }}", "unknown test"),
        ("{{ city|truncate('x') }}", "takes a number"),
        ("{{ city|truncate(-1) }}", "Neg is not available"),
        ("{{ city|replace('', 'x') }}", "not empty"),
        ("{{ city|replace(1, 2) }}", "two texts"),
        ("{{ city|upper(1) }}", "cannot be rendered"),
        ("{{ city|join(*references) }}", "without a star"),
        ("{{ city|join(', ') }}", "only a list"),
        ("{{ references }}", "a list has no text of its own"),
        ("{{ attribution }}", "an object has no text of its own"),
        ("{{ city if city }}", "needs an else"),
        ("{{ size < city }}", "cannot be rendered"),
        ("{{ attribution == deal }}", "cannot be compared"),
        ("{{ attachments == attachments }}", "cannot be compared"),
        ("{{ 1e999|tojson }}", "too large"),
        ("{% for city in references %}{% endfor %}", "name of its own"),
        ("{% for loop in references %}{% endfor %}", "name of its own"),
        ("{% for a, b in references %}{% endfor %}", "name of its own"),
        ("{% for each in city|default('x') %}{% endfor %}", "only a list"),
        ("{% for each in references %}{% for other in references %}{% endfor %}{% endfor %}", "stand in a loop"),
        ("{% for each in references recursive %}{% endfor %}", "nor call itself"),
        ("{% for each in references %}{{ loop(references) }}{% endfor %}", "Call is not available"),
        ("{% for each in references %}{{ loop.nextitem }}{% endfor %}", "no field 'nextitem'"),
        ("{{ loop.index }}", "unknown name 'loop'"),
        ("{% filter upper %}{{ city }}{% endfilter %}", "FilterBlock is not available"),
    ],
)
def test_what_is_wrong_is_said(source: str, words: str) -> None:
    error = problem(text(source))
    assert error.field == "body"
    assert words in error.message


def test_every_filter_and_test_is_described() -> None:
    page = (Path(__file__).parent.parent / "docs/crm/templates.md").read_text("utf-8")
    for name in (*FILTERS, *TESTS, *PAYLOAD):
        assert f"`{name}`" in page or f"`{name}(" in page, name


# The request.


def test_a_request_has_method_url_headers_and_body() -> None:
    template = Template(
        '{"s": {{ subject|tojson }}}',
        method="PUT",
        url="{{ url }}/{{ id|urlencode }}?v={{ variables.v|urlencode }}",
        headers=(("X-Visit", "{{ visit_id }}"), ("Authorization", "Key {{ variables.key }}")),
        variables=("v", "key"),
    )
    check(template, OWN, {"v": "a b", "key": "k"})
    made = render(template, OWN, EXAMPLE, {"v": "a b", "key": "k"})
    assert (made.method, made.url, made.body) == ("PUT", OWN + "/111?v=a%20b", b'{"s": "Re: Test"}')
    assert made.headers == (("Content-Type", "application/json"), ("X-Visit", "123456"), ("Authorization", "Key k"))


def test_get_has_no_body_and_no_content_type() -> None:
    template = Template("", method="GET", url="{{ url }}?id={{ id }}")
    check(template, OWN, {})
    made = render(template, OWN, EXAMPLE, {})
    assert (made.url, made.headers, made.body) == (OWN + "?id=111", (), b"")
    assert problem(replace(template, body="x")).field == "body"


def test_an_unknown_method_is_refused() -> None:
    assert problem(Template("{}", method="DELETE")).field == "method"


@pytest.mark.parametrize("value", ["", "json", "application/json\r\nX: y", "a/b c"])
def test_a_content_type_must_be_one(value: str) -> None:
    assert problem(Template("{}", content_type=value)).field == "content_type"


@pytest.mark.parametrize(
    "body",
    [
        '{"a": {{ city }}}',
        '{"a": "{{ subject }}"}',
        '{"a": "{{ subject|replace(\'"\', "") }}"}',
        '{"a": "{{ text|truncate(5) }}"}',
        '{"a": {{ subject|tojson }},}',
        '{"a": NaN}',
        "[" * 16000,
        "",
    ],
)
def test_a_json_body_must_parse_for_every_sample(body: str) -> None:
    error = problem(Template(body, content_type="application/vnd.api+json; charset=utf-8"))
    assert error.field == "body"
    assert "use |tojson" in error.message


def test_a_json_body_that_a_message_breaks_is_not_sent() -> None:
    with pytest.raises(TemplateError, match=r"does not come out as JSON"):
        render(Template('{"a": "{{ subject }}"}'), OWN, {**EXAMPLE, "subject": '"'}, {})


def test_a_form_must_be_encoded() -> None:
    form = "application/x-www-form-urlencoded"
    check(Template("a={{ subject|urlencode }}&b={{ city|urlencode }}", content_type=form), OWN, {})
    for body in ("a={{ subject }}", "a={{ subject|replace(' ', '') }}", "{{ subject|urlencode }}", "a=1&b"):
        error = problem(Template(body, content_type=form))
        assert error.field == "body"
        assert "use |urlencode" in error.message
    with pytest.raises(TemplateError, match="field of its own"):
        render(Template("a={{ city }}", content_type=form), OWN, {**EXAMPLE, "city": "x&brought_in_by_a_value=1"}, {})


def test_other_content_types_are_taken_as_they_are() -> None:
    made = render(text("<a>{{ subject|e }}</a>", content_type="application/xml"), OWN, HOSTILES, {})
    assert made.body.startswith(b"<a>&quot;\\&#x27;&lt;b&gt;")
    assert b"\xef\xbf\xbd {{ 7*7 }}" in made.body  # the lone surrogate


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/{{ id }}",
        "http://crm.example.com:8443/",
        "https://crm.example.com/",
        "https://user@crm.example.com:8443/",
        "//crm.example.com:8443/",
        "/path",
        "{{ subject|urlencode }}",
        "https://crm.example.com:8443@evil.example/",
        "https://crm.example.com:8443.evil.example/",
        "https://crm.example.com:99999/",
        "https://[::1/",
        "{{ url|replace('crm', 'evil') }}",
    ],
)
def test_a_url_keeps_the_webhooks_own_scheme_host_and_port(url: str) -> None:
    error = problem(text("x", url=url))
    assert error.field == "url"
    assert "scheme, host and port" in error.message


def test_a_default_port_may_be_written_out() -> None:
    check(text("x", url="https://crm.example.com:443/x"), "https://CRM.example.com/hook", {})


@pytest.mark.parametrize(
    "url", ["{{ url }}/{{ subject }}", "{{ url }} x", "{{ url }}\\x", "{{ url }}#x", "{{ url }}/ё"]
)
def test_text_in_a_url_must_be_encoded(url: str) -> None:
    error = problem(text("x", url=url))
    assert error.field == "url"
    assert "use |urlencode" in error.message


@pytest.mark.parametrize("step", ["..", ".", "%2e%2E", ".%2e"])
def test_a_message_cannot_step_up_the_path_of_a_url(step: str) -> None:
    template = text("x", url="{{ url }}/{{ city }}/x")
    with pytest.raises(TemplateError, match=r"a \. or \.\. in its path"):
        render(template, OWN, {**EXAMPLE, "city": step}, {})


def test_a_url_may_stand_on_lines_of_its_own_and_has_a_limit() -> None:
    assert render(text("x", url="\n  {{ url }}/a\n"), OWN, EXAMPLE, {}).url == OWN + "/a"
    with pytest.raises(TemplateError, match=f"longer than {MAX_URL}"):
        render(text("x", url="{{ url }}?{{ text }}"), OWN, {**EXAMPLE, "text": "x" * MAX_URL}, {})


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "connection",
        "TE",
        "trailer",
        "Upgrade",
        "expect",
        "Keep-Alive",
        "Content-Encoding",
        "Content-Type",
        "webhook-id",
        "Webhook-Signature",
        "webhook-anything",
    ],
)
def test_headers_of_http_and_of_the_signature_cannot_be_given(name: str) -> None:
    error = problem(text("x", headers=((name, "x"),)))
    assert error.field == f"headers.{name}"
    assert "may not be given" in error.message


@pytest.mark.parametrize("name", ["", "X Y", "X:Y", "X\r\nY", "Ё", "X" * 65])
def test_a_header_needs_a_name_that_is_one(name: str) -> None:
    assert "is not a header name" in problem(text("x", headers=((name, "x"),))).message


def test_a_header_is_given_once() -> None:
    assert "is given twice" in problem(text("x", headers=(("X-A", "1"), ("x-a", "2")))).message


def test_there_is_a_limit_to_headers() -> None:
    many = tuple((f"X-{number}", "x") for number in range(MAX_HEADERS + 1))
    long = tuple((f"X-{number}", "x" * (MAX_SOURCE // 2)) for number in range(3))
    assert problem(text("x", headers=many)).field == problem(text("x", headers=long)).field == "headers"
    with pytest.raises(TemplateError, match=rf"headers\.X-A: is longer than {MAX_HEADER}"):
        render(text("x", headers=(("X-A", "{{ text }}"),)), OWN, {**EXAMPLE, "text": "x" * (MAX_HEADER + 1)}, {})


def test_a_header_is_one_line_whatever_the_message_holds() -> None:
    template = text("x", headers=(("X-Subject", "{{ subject }}"),))
    check(template, OWN, {})
    payload = {**EXAMPLE, "subject": "a\r\nBcc: b\x00\x0b\u2028\u0085c\ud800"}
    assert render(template, OWN, payload, {}).headers[1] == ("X-Subject", "a Bcc: b c\ufffd")


def test_an_error_in_a_header_names_the_header() -> None:
    assert problem(text("x", headers=(("X-A", "{{ nosuch }}"),))).field == "headers.X-A"


# Variables.


def test_a_variable_that_must_be_given_is_asked_for() -> None:
    template = text("{{ variables.key }}", variables=("key",))
    assert problem(template).field == problem(template, key="").field == "variables.key"
    check(template, OWN, {"key": "x"})


def test_a_variable_that_the_template_does_not_have_is_refused() -> None:
    template = text("{{ variables.key|default('') }}", deal_url="https://crm.example.com/{{ variables['portal'] }}")
    error = problem(template, pipline="1", portal="1")
    assert (error.field, error.message) == (
        "variables.pipline",
        "the template has no such variable: it has key, portal",
    )
    assert "it has none" in problem(text("x"), key="1").message


def test_a_template_that_uses_variables_as_a_whole_takes_any() -> None:
    check(Template("{{ variables|tojson }}"), OWN, {"anything": "1"})
    assert show("{{ variables|tojson }}", anything="1") == '{"anything": "1"}'


def test_a_variable_that_is_used_unguarded_and_not_given_is_refused() -> None:
    assert problem(text("{{ variables.key }}")).message.startswith("there is no field 'key' here")


@pytest.mark.parametrize("value", ["a\nb", "x" * (MAX_VARIABLE + 1)])
def test_a_variable_is_one_line_of_a_limited_length(value: str) -> None:
    assert problem(text("{{ variables.key }}", variables=("key",)), key=value).field == "variables.key"


@pytest.mark.parametrize("name", ["Key", "a-b", "1a", "", "x" * 65])
def test_a_variables_name_is_a_plain_one(name: str) -> None:
    assert problem(text("x", variables=(name,))).field.startswith("variables.")


# What is required, and what the answer holds.


def test_a_requirement_is_missing_when_it_is_null_or_empty() -> None:
    template = text("x", requires=("visit_id", "google_client_id", "attachments"))
    check(template, OWN, {})
    assert missing(template, EXAMPLE) is None
    assert missing(template, NULLS) == "visit_id"
    assert missing(template, {**EXAMPLE, "google_client_id": ""}) == "google_client_id"
    assert missing(template, {**EXAMPLE, "attachments": []}) == "attachments"
    assert missing(text("x", requires=("bounce", "size")), {"bounce": False, "size": 0}) is None


def test_only_a_key_of_the_payload_can_be_required() -> None:
    assert problem(text("x", requires=("google_id",))).field == "requires"


@pytest.mark.parametrize("field", ["deal_id", "deal_url"])
@pytest.mark.parametrize("pointer", ["/a~2", "/" + "x" * MAX_POINTER, "/a\x00", "/\u2028"])
def test_a_pointer_must_be_one_and_short(field: str, pointer: str) -> None:
    assert problem(text("x", **{field: pointer})).field == field
    check(text("x", **{field: "/" + "x" * (MAX_POINTER - 1)}), OWN, {})


def test_a_deals_id_is_no_template() -> None:
    assert problem(text("x", deal_id="result")).field == "deal_id"


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("/result/item/id", 17),
        ("/list/0/id", "a"),
        ("/a~1b/c~0d", 1),
        ("", None),
        ("/nosuch", None),
        ("/list/7", None),
        ("/list/-", None),
        ("/list/x", None),
        ("/text/0", None),
        ("/nothing/x", None),
    ],
)
def test_a_pointer_finds_what_is_there(pointer: str, found: object) -> None:
    answer = {"result": {"item": {"id": 17}}, "list": [{"id": "a"}], "a/b": {"c~d": 1}, "text": "x", "nothing": None}
    assert resolve(pointer, answer) == found


@pytest.mark.parametrize("answer", [None, 1, "x", [], True])
def test_a_pointer_finds_nothing_in_another_answer(answer: object) -> None:
    assert resolve("/deal_id", answer) is None


def test_a_link_is_made_of_the_deals_id() -> None:
    template = text("x", deal_url="{{ url|origin }}/{{ variables.kind|default('leads') }}/{{ deal_id|urlencode }}")
    check(template, OWN, {})
    assert deal_url(template, OWN, "17 a", {}) == "https://crm.example.com:8443/leads/17%20a"
    assert deal_url(text("x"), OWN, "17", {}) is None  # a pointer
    assert deal_url(text("x", deal_url=""), OWN, "17", {}) is None


@pytest.mark.parametrize(
    "link", ["{{ url }}/{{ deal_id }}", "javascript:{{ deal_id|urlencode }}", "https://", "leads/17"]
)
def test_a_link_that_is_no_url_is_refused_and_not_made(link: str) -> None:
    template = text("x", deal_url=link)
    assert problem(template).field == "deal_url"
    assert deal_url(template, OWN, HOSTILE, {}) is None


def test_a_link_sees_nothing_of_the_message() -> None:
    error = problem(text("x", deal_url="https://crm.example.com/{{ subject }}"))
    assert (error.field, error.message) == ("deal_url", "line 1: unknown name 'subject'")
