"""The templates of webhooks that come with the program, one TOML file each, and the reader of an operator's own.

A file's keys are the fields of ``relay.core.template.Template``; ``headers`` is a table.
"""

from __future__ import annotations

import tomllib
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from relay.core.template import Template, TemplateError

_SUFFIX = ".toml"
_MAX_FILE = 128 * 1024
_TEXTS = ("body", "method", "url", "content_type", "deal_id", "deal_url")
_LISTS = ("requires", "variables")


@cache
def names() -> tuple[str, ...]:
    """The names of all presets, sorted."""
    found = (entry.name for entry in files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX)))


@cache
def load(name: str) -> Template:
    """:raises TemplateError: for a name that is not one of ``names()``."""
    if name not in names():
        raise TemplateError("template", f"must be one of {', '.join(names())}, or a file of your own")
    return read(files(__name__).joinpath(name + _SUFFIX).read_text("utf-8"))


def read(text: str) -> Template:
    """A template in a preset's format. ``check`` (relay.core.template) says whether it is a good one.

    :raises TemplateError: naming the key that is unknown, missing or of the wrong type.
    """
    if len(text) > _MAX_FILE:
        raise TemplateError("template", f"is longer than {_MAX_FILE} characters")
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise TemplateError("template", f"is not TOML: {error}") from None
    fields: dict[str, Any] = {}
    for key, value in found.items():
        if key in _TEXTS:
            fields[key] = _text(value, key)
        elif key in _LISTS:
            fields[key] = _texts(value, key)
        elif key == "headers":
            fields[key] = _headers(value)
        else:
            known = ", ".join((*_TEXTS, "headers", *_LISTS))
            raise TemplateError(key[:64], f"unknown key; the keys are {known}")
    if "body" not in fields and fields.get("method") != "GET":
        raise TemplateError("body", "is missing")
    return Template(**{"body": "", **fields})


@lru_cache(maxsize=256)
def of(template: str) -> Template:
    """The preset of this name, or else what the text says; raises TemplateError."""
    return load(template) if template in names() else read(template)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise TemplateError(key, "must be a string")
    return value


def _texts(value: object, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TemplateError(key, "must be a list of strings")
    return tuple(value)


def _headers(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise TemplateError("headers", "must be a table of names and values")
    return tuple((name, _text(each, f"headers.{name[:64]}")) for name, each in value.items())
