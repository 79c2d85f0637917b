"""Log entries of tests, for who reads why one failed: without the values of all variables in their tracebacks.

structlog's own choice, where rich is installed, takes a second to draw one.
"""

from __future__ import annotations

import structlog


def plain_logs() -> None:
    """Have this process log so, from now on."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.dev.set_exc_info,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ]
    )
