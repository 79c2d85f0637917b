"""The lists of referrers that come with the program (relay/data/sources), read once."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from relay.core.referrer import Referrers

# The reader in C where PyYAML was built with it: some ten times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def referrers() -> Referrers:
    """All lists as one matcher."""
    additions = _read("Additions")
    return Referrers.of(
        email=_read("Webmail"),
        ai=_joined(_read("AIAssistants"), additions["ai"]),
        social=_joined(_read("Socials"), additions["social"]),
        search=_read("SearchEngines"),
        portals=frozenset(additions["portals"]),
    )


def _read(name: str) -> dict[str, Any]:
    text = files("relay").joinpath("data", "sources", f"{name}.yml").read_text("utf-8")
    read: dict[str, Any] = yaml.load(text, Loader=_LOADER)  # noqa: S506 - both are safe loaders
    return read


def _joined(first: dict[str, list[str]], second: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: [*first.get(name, ()), *second.get(name, ())] for name in (*first, *second)}
