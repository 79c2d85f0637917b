"""The documents name what there is, and all of it: alerts, metrics, lines of the log, rules of attribution."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from tests.exposition import ROOT, documented, rules
from webapi.messages import State

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text("utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")
API = (ROOT / "docs" / "api.md").read_text("utf-8")
SOURCES = [ast.parse(file.read_text("utf-8")) for part in ("relay", "webapi") for file in (ROOT / part).rglob("*.py")]
#: What stands in the first column of the log's table and is no event: words of the libraries, and of other fields.
NO_EVENTS = {"database is locked", "Too many open files", "was removed or replaced while it was open"}


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of the tables in a text."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("|---"):
            yield line.strip("| ").split(" | ")


def words() -> set[str]:
    """Every text that stands in the program."""
    return {
        node.value
        for source in SOURCES
        for node in ast.walk(source)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def warnings() -> set[str]:
    """The events that are logged at level warning, which are a person's business."""
    calls = (node for source in SOURCES for node in ast.walk(source) if isinstance(node, ast.Call))
    return {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr == "warning"
        and ast.unparse(call.func.value).endswith("log")
        and isinstance(call.args[0], ast.Constant)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_alert_and_metric_that_is_named_exists(document: Path) -> None:
    text = document.read_text("utf-8")
    assert set(re.findall(r"\bVisitRelay\w+", text)) <= {rule["alert"] for rule in rules()}
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\brelay_\w+(?!\w*…)", text)}
    assert named <= documented().keys()


def test_every_line_of_the_log_that_is_named_exists() -> None:
    table = OPERATIONS.partition("### Lines of the log\n")[2]
    named = {event for cells in rows(table) for event in re.findall(r"`([^`]+)`", cells[0])}
    assert len(named) > 50
    begun = {event.removesuffix("…") for event in named - NO_EVENTS}
    known = words()
    assert {event for event in begun if not any(word.startswith(event) for word in known)} == set()


def test_of_every_warning_in_the_log_the_documentation_tells() -> None:
    found = warnings()
    assert len(found) > 10
    assert {event for event in found if f"`{event}`" not in OPERATIONS} == set()


def test_every_state_of_a_message_is_explained() -> None:
    paragraph = API.partition("\n`state` is the worst")[2].partition("\n\n")[0]
    assert {state for state in get_args(State) if f"`{state}`" not in paragraph} == set()


def test_every_rule_of_attribution_is_explained_and_no_other() -> None:
    rule = re.compile(r"[a-z]+/\d").fullmatch
    attributing = [ast.parse((ROOT / f"relay/{part}/attribution.py").read_text("utf-8")) for part in ("core", "store")]
    constants = (node.value for source in attributing for node in ast.walk(source) if isinstance(node, ast.Constant))
    known = {value for value in constants if isinstance(value, str) and rule(value)}
    assert len(known) > 10
    table = (
        (ROOT / "docs" / "api.md").read_text("utf-8").partition("| `method` | the letter |\n")[2].partition("\n\n")[0]
    )
    assert sorted(cells[0].strip("`") for cells in rows(table)) == sorted(known)


def test_the_readme_installs_as_the_runbook_does() -> None:
    """But for the user, the service and its folders."""
    install = README.partition("**Install.**")[2].partition("```\n")[2].partition("```")[0]
    lines = [line.partition("  #")[0].strip() for line in install.splitlines()]
    assert len(lines) > 4
    assert [line for line in lines[:-2] if line not in OPERATIONS] == []
