"""relay.toml: read, checked as a whole, and turned into frozen models (docs/configuration.md).

``load`` reports every error at once, each with its key's path; nothing is coerced and nothing unknown passes.
"""

from __future__ import annotations

import base64
import os
import tomllib
from pathlib import Path

from pydantic import ValidationError

from relay.config.fields import SYSTEMD, Endpoint
from relay.config.initial import INITIAL
from relay.config.models import (
    Attribution,
    Config,
    Dns,
    Extract,
    Forward,
    Geoip,
    Http,
    Limits,
    Log,
    Retention,
    Site,
    Smtp,
    Static,
    Storage,
    Target,
    Webhook,
    Webhooks,
)
from relay.config.problems import Problem, problems_of
from relay.config.rules import broken_rules

__all__ = [
    "SYSTEMD",
    "Attribution",
    "Config",
    "ConfigError",
    "Dns",
    "Endpoint",
    "Extract",
    "Forward",
    "Geoip",
    "Http",
    "Limits",
    "Log",
    "Problem",
    "Retention",
    "Site",
    "Smtp",
    "Static",
    "Storage",
    "Target",
    "Webhook",
    "Webhooks",
    "load",
    "parse",
    "render_initial",
]

MAX_FILE = 16 * 1024 * 1024


class ConfigError(Exception):
    """The configuration is refused. ``str()`` has one line an error; ``problems`` has them apart."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def load(path: Path) -> Config:
    """Read and check a file. Relative paths in it start at its directory. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError([Problem(str(path), error.strerror or "cannot be read")]) from error
    if len(content) > MAX_FILE:
        raise ConfigError([Problem(str(path), f"longer than {MAX_FILE} octets")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem("", f"not UTF-8 (at line {line})")]) from error
    return parse(text, path.absolute().parent)


def parse(text: str, base: Path) -> Config:
    """Check a file's text; relative paths in it start at ``base``. Raises ConfigError."""
    try:
        raw = tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError([Problem("", "not TOML: nested too deeply")]) from error
    except ValueError as error:
        raise ConfigError([Problem("", f"not TOML: {error}")]) from error
    problems: list[Problem] = []
    try:
        config = Config.model_validate(raw, context={"base": base})
    except ValidationError as error:
        problems += problems_of(error, Config)
    problems += broken_rules(raw)
    if problems:
        raise ConfigError(problems)
    return config


def render_initial(hostname: str, operator: str) -> str:
    """The file that ``relay init`` writes; ``operator`` may be empty. Raises ConfigError when either is no good.

    The webhook in its comments has a secret of its own, so that nobody takes one from an example.
    """
    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    text = INITIAL.format(hostname=_quoted(hostname), operator=_quoted(operator), secret=_quoted(secret))
    parse(text, Path())
    return text


def _quoted(value: str) -> str:
    """A TOML basic string (toml.io, "String")."""
    plain = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in plain) + '"'
