"""What a machine lacks: a person is told what was therefore not tested; continuous integration fails by it.

So it is for what tests/debian.sh and `make` bring to a fresh machine, and for root. What a container forbids (mounts,
tracing), and data that is not in the repository, is skipped there, too: nothing that is installed would change it.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """End the test: skipped with these words, or failed where CI is set, since there nobody reads them."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
