"""What the fault tests print, seeds and accounts, is shown whether they pass or not."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("passed"):
        for line in filter(None, report.capstdout.splitlines()):
            terminalreporter.write_line(line)
