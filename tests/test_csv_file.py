"""CSV that a spreadsheet shows and does not compute."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpora import corpus
from webapi.csv_file import BLANK, DANGEROUS, cell, rows

#: Where spreadsheets of other countries, or a careless paste, begin another cell.
SEPARATORS = re.compile(r"[;\t\r\n]")


def is_formula(value: str) -> bool:
    return value.lstrip(BLANK).startswith(tuple(mark for mark in DANGEROUS if mark not in "\t\r\n"))


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize(
    "value",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "|cmd",
        "%0A=1",
        " =1",
        '"=1',
        "\ufeff=1",
        "\uff1d1",
    ],
)
def test_what_looks_like_a_formula_has_an_apostrophe_before_it(value: str) -> None:
    assert cell(value).startswith("'")
    assert cell(value).replace("'", "") == value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x;=1+1;y", "x;'=1+1;y"),
        ("x\r\n=1", "x\r\n'=1"),
        ("x\r\ny", "x\r\ny"),
        ('x; "@y', "x; \"'@y"),
        ("x\t-1", "x\t'-1"),
        ("a; b", "a; b"),
    ],
)
def test_nor_is_there_one_for_who_separates_by_semicolon(value: str, shown: str) -> None:
    assert cell(value) == shown


def test_numbers_of_ours_and_ordinary_text_are_as_they_are() -> None:
    assert [cell(value) for value in (-5, 1.5, None, "a=1", "Ann <ann@example.org>", "'=x")] == [
        "-5",
        "1.5",
        "",
        "a=1",
        "Ann <ann@example.org>",
        "'=x",
    ]


@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=2), min_size=1))
def test_every_cell_comes_back_and_none_is_a_formula(lines: list[list[str]]) -> None:
    found = read(rows(lines))
    assert found == [[cell(value) for value in line] for line in lines]
    assert not [value for line in found for value in line if any(map(is_formula, SEPARATORS.split(value)))]


def test_no_payload_of_the_corpus_is_a_formula() -> None:
    payloads = [
        line
        for file in corpus("csv-injection").rglob("*")
        if file.is_file()
        for line in file.read_text("utf-8", "replace").splitlines()
    ]
    assert len(payloads) > 10
    for line in read(rows([[payload] for payload in payloads])):
        assert not line or not any(map(is_formula, SEPARATORS.split(line[0]))), line
