"""Compiled templates that are kept: used when they fit, and never in the way."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from jinja2 import Environment, FileSystemLoader

from webapi.ui.bytecode import TemplateBytecode
from webapi.ui.render import FOLDER, environment


class Pages:
    """A folder with one template, and the module in which its environment's options stand."""

    def __init__(self, folder: Path) -> None:
        self.module = folder / "options.py"
        self.module.write_text("trim_blocks = True")
        self.template = folder / "page.html"
        self.template.write_text("Hello {{ name }}")
        self.kept = folder / "__pycache__"
        self.kept.mkdir()

    def render(self) -> str:
        """As a program that has just started."""
        made = Environment(
            loader=FileSystemLoader(self.template.parent), bytecode_cache=TemplateBytecode(self.module), autoescape=True
        )
        return made.get_template("page.html").render(name="<you>")

    def file(self) -> Path:
        (found,) = self.kept.iterdir()
        return found


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pages:
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    return Pages(tmp_path)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Jinja compiles from now on."""
    names: list[str] = []
    really = Environment.compile

    def compile_(self: Environment, source: str, name: str, *rest: object) -> object:
        names.append(name)
        return really(self, source, name, *rest)  # type: ignore[call-overload]

    monkeypatch.setattr(Environment, "compile", compile_)
    return names


def test_the_second_program_compiles_nothing(pages: Pages, compiled: list[str]) -> None:
    assert pages.render() == pages.render() == "Hello &lt;you&gt;"
    assert compiled == ["page.html"]


def test_another_template_is_compiled_anew(pages: Pages, compiled: list[str]) -> None:
    pages.render()
    pages.template.write_text("Goodbye {{ name }}")
    assert pages.render() == pages.render() == "Goodbye &lt;you&gt;"
    assert len(compiled) == 2


def test_other_options_compile_it_anew(pages: Pages, compiled: list[str]) -> None:
    pages.render()
    pages.module.write_text("trim_blocks = False")
    pages.render()
    assert len(compiled) == 2


def test_another_jinja_compiles_it_anew(pages: Pages, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pages.render()
    monkeypatch.setattr("webapi.ui.bytecode.version", lambda name: "99.0")
    pages.render()
    assert len(compiled) == 2


@pytest.mark.parametrize("octets", [0, 5, 40, 70, -1])
@pytest.mark.parametrize("rest", [b"", bytes(1000)], ids=["no more", "zeros"])
def test_a_file_that_a_power_cut_left_unfinished_is_no_harm(pages: Pages, octets: int, rest: bytes) -> None:
    pages.render()
    whole = pages.file().read_bytes()
    pages.file().write_bytes((whole[:octets] + rest)[: len(whole)])
    assert pages.render() == "Hello &lt;you&gt;"
    assert pages.file().read_bytes() == whole


def test_where_nothing_can_be_kept_it_is_compiled_each_time(pages: Pages, compiled: list[str]) -> None:
    pages.kept.rmdir()
    pages.kept.write_text("no folder")
    assert pages.render() == pages.render() == "Hello &lt;you&gt;"
    assert len(compiled) == 2


def test_who_wants_no_bytecode_gets_none(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    pages.render()
    assert not list(pages.kept.iterdir())


def test_the_pages_keep_theirs_outside_of_the_templates() -> None:
    kept = environment().bytecode_cache
    assert isinstance(kept, TemplateBytecode)
    assert not Path(kept.directory).is_relative_to(FOLDER)
