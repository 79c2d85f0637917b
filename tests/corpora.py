"""Where the corpora of tests lie: RELAY_CORPORA, else ../shared/data/corpora beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def corpus(name: str) -> Path:
    """The folder of one corpus.

    Without any corpora the test is skipped and says so; with RELAY_CORPORA set, a missing one is a failure, for
    then somebody meant it to be there.
    """
    given = os.environ.get("RELAY_CORPORA")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data" / "corpora"
    folder = root / name
    if folder.is_dir():
        return folder
    if given:
        pytest.fail(f"corpus {name} is not in RELAY_CORPORA={given}")
    pytest.skip(f"NOT TESTED: corpus {name} not found in {root}; set RELAY_CORPORA to the folder of the corpora")
