"""What no template can do, whoever wrote it and whatever the message is: reach Python, hang, or eat memory.

The limits are counts, and so are these tests: nothing here is timed.
"""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.template import Template, TemplateError, render
from relay.core.template_engine import MAX_OUTPUT, MAX_SOURCE, _compiled, compile_field, render_field
from relay.core.template_filters import MAX_WORK, STEP, Budget, without_surrogates
from relay.core.template_samples import REQUEST, SAMPLES

OWN = "https://crm.example.com/api/hook"
EXAMPLE = SAMPLES[0][1]
#: What a stranger can make of a message: a text of the largest size, and more attachments than any mail program sends.
LARGE: dict[str, Any] = {
    **EXAMPLE,
    "text": "x" * 1_000_000,
    "html": "\x01" * 1_000_000,
    "attachments": [{"name": "n", "url": "u" * 200, "size": 1, "type": "t", "inline": False}] * 1000,
}
MEBIBYTE = 1024 * 1024


def show(source: str, payload: dict[str, Any] = EXAMPLE, budget: Budget | None = None, **variables: str) -> str:
    values = {**payload, "variables": variables, "url": OWN}
    return render_field(source, "body", REQUEST, values, budget)


@pytest.mark.parametrize(
    "source",
    [
        "{{ city.__class__.__mro__ }}",
        "{{ city['__class__'] }}",
        "{{ city.upper }}",
        "{{ attribution.items }}",
        "{{ attribution.get }}",
        "{{ references.append }}",
        "{{ references|first|attr('x') }}",
        "{{ ''.__class__ }}",
        "{{ self }}",
        "{{ self._TemplateReference__context }}",
        "{{ cycler }}",
        "{{ namespace }}",
        "{{ range }}",
        "{{ dict }}",
        "{{ lipsum.__globals__ }}",
        "{{ caller }}",
        "{{ city.format }}",
        "{{ 'x'|map('upper') }}",
        "{{ ' budget' }}{{ budget }}",
        "{% for each in references %}{{ loop.__init__ }}{% endfor %}",
        "{% for each in references %}{{ loop._iterator }}{% endfor %}",
        "{% for each in references %}{{ loop['__class__'] }}{% endfor %}",
    ],
)
def test_nothing_of_python_can_be_reached(source: str) -> None:
    with pytest.raises(TemplateError):
        show(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ city.upper() }}",
        "{{ range(10) }}",
        "{% set x = city %}",
        "{% set x %}a{% endset %}",
        "{% macro m() %}{% endmacro %}",
        "{% call m() %}{% endcall %}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% from 'x' import y %}",
        "{% extends 'x' %}",
        "{% block b %}{% endblock %}",
        "{% with x = 1 %}{% endwith %}",
        "{% autoescape true %}{% endautoescape %}",
        "{{ city * 1000 }}",
        "{{ 2 ** 1000 }}",
        "{{ size + 1 }}",
        "{{ size - 1 }}",
        "{{ size / 1 }}",
        "{{ size // 1 }}",
        "{{ '%1000000000d' % size }}",
        "{{ -size }}",
        "{{ text[:3] }}",
        "{{ city|center(1000000000) }}",
        "{{ city|indent(1000000000) }}",
        "{{ city|wordwrap(1) }}",
        "{{ references|batch(1, 'x') }}",
        "{{ city|xmlattr }}",
    ],
)
def test_what_could_call_loop_or_grow_without_end_does_not_compile(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        show(source)
    words = ("not available", "unknown filter", "unknown name", "unknown tag", "Encountered")
    assert any(word in caught.value.message for word in words), caught.value


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{{ " + "text ~ " * 200 + "text }}", id="concatenation"),
        pytest.param("{{ " + "(" * 20 + "text" + " ~ text)" * 20 + "|upper }}", id="growing concatenation"),
        pytest.param("{% for each in attachments %}{{ text }}{% endfor %}", id="a large text in a loop"),
        pytest.param("{% for each in attachments %}{{ text|upper|length }}{% endfor %}", id="a filter in a loop"),
        pytest.param("{% for each in attachments %}" + "a" * 16000 + "{% endfor %}", id="a large source in a loop"),
        pytest.param("{% for each in attachments %}{{ each|tojson }}{{ attachments|tojson }}{% endfor %}", id="JSON"),
        pytest.param("{% for each in attachments %}" + "{% if city %}{% endif %}" * 650 + "{% endfor %}", id="steps"),
        pytest.param(
            "{% for each in attachments %}" + "{% if text == html %}{% endif %}" * 300 + "{% endfor %}", id="equality"
        ),
        pytest.param(
            "{% for each in attachments %}" + "{% if 'yy' in text %}{% endif %}" * 300 + "{% endfor %}", id="searches"
        ),
        pytest.param("{{ text|replace('x', text) }}", id="a replacement that squares"),
        pytest.param("{{ text|replace('x', 'xxxxxxxxxxxxxxxxxxxx') }}", id="a replacement that multiplies"),
        pytest.param("{{ attachments|join(text, 'url') }}", id="a long separator"),
        pytest.param("{{ attachments|join('', 'size')|length }}" * 300, id="a join of many"),
        pytest.param("{{ [" + "attachments," * 1200 + "]|tojson }}", id="a list of one list"),
        pytest.param("{{ text|urlencode|length }}" * 300, id="percent-encoding"),
        pytest.param("{{ ('ß' ~ text)|upper|length }}" * 300, id="capitals"),
        pytest.param("{{ [" + "text," * 2000 + "]|tojson }}", id="a list of one text"),
        pytest.param("{{ [" + "text," * 2000 + "]|join }}", id="a join of one text"),
        pytest.param("{{ {" + ",".join(f"{n}: text" for n in range(1000)) + "}|tojson }}", id="an object of one text"),
        pytest.param("{{ html|tojson|tojson|tojson }}", id="JSON of JSON"),
        pytest.param("{{ html|urlencode|urlencode|urlencode|urlencode|urlencode }}", id="escapes of escapes"),
    ],
)
def test_no_template_makes_a_rendering_long_or_large(source: str) -> None:
    budget = Budget()
    with contextlib.suppress(TemplateError):
        compile_field(source, "body", REQUEST)  # which takes several times as long while allocations are traced
    tracemalloc.start()
    try:
        with pytest.raises(
            TemplateError, match=r"more work than is allowed|the output is longer|has more than 1500 parts"
        ):
            show(source, LARGE, budget)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert budget.spent <= MAX_WORK
    assert peak < 40 * MEBIBYTE


@pytest.mark.parametrize(
    ("content_type", "begin", "each", "end"),
    [
        ("application/json", "[", "1,", "1]"),
        ("application/json", "[", "[],", "1]"),
        ("application/json", "[", '{"":1},', "1]"),
        ("application/ld+json", "[", r'"\"\\",', "1]"),
        ("application/x-www-form-urlencoded", "", "a=&", "b=1"),
    ],
)
def test_a_body_of_more_values_than_can_be_read_quickly_is_refused(
    content_type: str, begin: str, each: str, end: str
) -> None:
    loop = "{% for each in attachments %}" + each * 900 + "{% endfor %}"
    template = Template(begin + loop + end, content_type=content_type)
    render(template, OWN, EXAMPLE, {})
    with pytest.raises(TemplateError, match="body: the rendering takes more work than is allowed"):
        render(template, OWN, LARGE, {})


def test_a_text_is_not_taken_for_the_values_that_it_spells() -> None:
    template = Template("[{{ text|tojson }}]")
    for text in ("[" * 1_000_000, '","' * 333_333, '\\",' * 250_000, "\x01" * 1_000_000):
        render(template, OWN, {**EXAMPLE, "text": text}, {})


@given(st.text(max_size=50))
def test_percent_encoding_is_that_of_a_url(text: str) -> None:
    assert show("{{ city|urlencode }}", {**EXAMPLE, "city": text}) == quote(without_surrogates(text), safe="")


@pytest.mark.parametrize(
    ("text", "clean"), [("a\ud800b", "a\ufffdb"), ("\ud83d\ude00", "😀"), ("\ude00\ud83d", "\ufffd\ufffd"), ("é", "é")]
)
def test_what_utf8_cannot_carry_is_replaced(text: str, clean: str) -> None:
    assert without_surrogates(text) == clean


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}", id="parentheses"),
        pytest.param("{{ " + "[" * 4000 + "]" * 4000 + " }}", id="lists"),
        pytest.param("{{ " + "not " * 3500 + "1 }}", id="not"),
        pytest.param("{% if 1 %}" * 700 + "{% endif %}" * 700, id="ifs"),
        pytest.param("{{ 1" + "|d" * 4000 + " }}", id="filters"),
        pytest.param("{{ city" + ".a" * 5000 + " }}", id="fields"),
        pytest.param("{{ " + "1 and " * 2500 + "1 }}", id="conditions"),
        pytest.param("{{ " + "1 if 1 else " * 1200 + "1 }}", id="alternatives"),
        pytest.param("{{ " + "9" * 16000 + " }}", id="a number of many digits"),
        pytest.param("x" * (MAX_SOURCE + 1), id="length"),
    ],
)
def test_a_source_that_is_too_deep_or_too_long_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match=r"nested too deeply|cannot be compiled|is longer than"):
        show(source)


@pytest.mark.parametrize("source", ["{{ id" + "|e" * 40 + " }}", "{{ 1 < id < id }}", "{{ id }}"])
def test_a_source_of_many_parts_is_refused_before_it_is_compiled(source: str) -> None:
    many = source * (MAX_SOURCE // len(source))
    with pytest.raises(TemplateError, match="has more than 1500 parts"):
        show(many)


@pytest.mark.parametrize("source", [r'{{ "\ud83d\ude00" }}', r'{{ text|replace("a", "\udc00") }}', "a\ud83d"])
def test_surrogates_are_refused(source: str) -> None:
    """Each would cost a call of Python's where the text is encoded."""
    with pytest.raises(TemplateError, match="not as two surrogates"):
        show(source)


def test_the_largest_text_of_the_worst_characters_still_fits() -> None:
    assert len(show("{{ html|tojson }}", LARGE)) == 6_000_002 <= MAX_OUTPUT


def test_all_fields_of_a_request_share_one_budget() -> None:
    budget = Budget()
    template = Template(
        "{{ marker|upper }}", content_type="text/plain", url="{{ url }}", headers=(("X-A", "{{ marker|upper }}"),)
    )
    render(template, OWN, EXAMPLE, {}, budget)
    assert budget.spent == len(OWN) + 2 * (6 + 6)


def test_a_loop_costs_what_is_in_it_times_what_it_runs_over() -> None:
    budget = Budget()
    show("{% for each in attachments %}{% endfor %}", LARGE, budget)
    assert budget.spent == 1000 * STEP


def test_the_cache_of_compiled_templates_is_bounded() -> None:
    limit = _compiled.cache_info().maxsize
    assert limit is not None
    for number in range(limit + 10):
        show(f"{number}")
    assert _compiled.cache_info().currsize == limit
