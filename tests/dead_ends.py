"""What the tests of commands and of backups have in common: a declared site, and mail that goes nowhere."""

from __future__ import annotations

from typing import Any

from relay.core.wire import stuff
from tests.daemon import Daemon, example_site
from tests.ports import dead_port
from tests.smtp_client import SmtpClient

CARD = "card@track.test"
SECRET = "whsec_c2NlbmFyaW9zIG5lZWQgYSBzZWNyZXQsIHRvbw=="


def letter(number: int) -> bytes:
    return (
        f"From: Ann <Ann@Customer.test>\r\nSubject: letter {number}\r\nDate: Mon, 23 Nov 2026 08:00:00 +0000\r\n\r\n"
        f"Hello\r\n.leading dot {number}\r\n"
    ).encode()


def declared(**changes: Any) -> dict[str, Any]:
    return example_site(
        static=[{"address": CARD, "target": "sales@example.test", "label": "card"}],
        webhook=[{"url": f"http://127.0.0.1:{dead_port()}/hook", "secret": SECRET}],
        require_visit=False,
        **changes,
    )


#: Nothing can be forwarded, and posts fail.
SETTINGS = {
    "forward": {"next_hop": f"smtp://127.0.0.1:{dead_port()}"},
    "webhooks": {"allow_private_addresses": True},
    "site": [declared()],
}


async def mail(daemon: Daemon, content: bytes) -> None:
    async with await SmtpClient.hello(daemon.smtp_port) as client:
        answer = await client.mail(stuff(content) + b".\r\n", f"<{CARD}>", sender="<ann@customer.test>")
        assert answer.code == 250
