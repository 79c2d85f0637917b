"""The SMTP client: one attempt at one recipient → ``Outcome``.

sender.py      destinations: who may connect, kept connections, hosts and addresses in turn
slots.py       how many connections at a time, whose turn is next, and fewer where one was too many
handshake.py   connect, greeting, EHLO, STARTTLS, AUTH → a Session
session.py     one transaction: MAIL, RCPT, DATA, content, dot
connection.py  the asyncio protocol: bytes out with back-pressure, replies in with time limits
replies.py     bytes → replies, bounded
"""

from relay.smtp_out.sender import Sender
from relay.smtp_out.session import Content, Timeouts

__all__ = ["Content", "Sender", "Timeouts"]
