"""The certificate that we show, read again when its files change. Used by SMTP (STARTTLS) and by HTTP."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import structlog

_log = structlog.get_logger()

#: Seconds between two looks at the files.
CHECK_EVERY = 1.0

_Stamp = tuple[tuple[int, int, int, int], ...]


class TlsFiles:
    """A PEM certificate chain and its key, as a server-side context: TLS 1.2 or newer, no client certificate.

    Raises OSError (ssl.SSLError is one) when the pair can't be loaded at the start. Later a pair that can't be
    loaded leaves the old one in use and is logged once: a renewal that is halfway through, or that went wrong, must
    not take TLS away.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._stamp = self._look()
        self._context = self._load()
        self._checked = time.monotonic()

    def context(self) -> ssl.SSLContext:
        """The context to use for a new handshake. Looks at the files at most once in CHECK_EVERY seconds."""
        now = time.monotonic()
        if now - self._checked >= CHECK_EVERY:
            self._checked = now
            self._refresh()
        return self._context

    def use(self, cert: Path, key: Path) -> None:
        """Show this pair from now on; raises OSError when it can't be loaded, and then the old one stays in use."""
        other = TlsFiles(cert, key)
        self._cert, self._key, self._stamp, self._context = other._cert, other._key, other._stamp, other._context

    def lasting(self) -> ssl.SSLContext:
        """A context for a server that takes one for its whole life: every handshake is given the current one."""
        context = self._load()
        context.sni_callback = self._hand_over  # called for clients that name no server, too
        return context

    def _hand_over(self, handshake: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        handshake.context = self.context()

    def _refresh(self) -> None:
        try:
            stamp = self._look()
        except OSError:
            stamp = ()  # gone: logged below, once, for no pair has this stamp
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._context = self._load()
        except OSError as error:
            _log.error("TLS certificate not reloaded, the old one stays in use", cert=str(self._cert), error=str(error))
        else:
            _log.info("TLS certificate reloaded", cert=str(self._cert))

    def _look(self) -> _Stamp:
        """What changes when a file is rewritten or replaced, or when a link (certbot's live/) is turned."""
        found = (path.stat() for path in (self._cert, self._key))
        return tuple((stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in found)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        # An encrypted key would stop the daemon with a question on the terminal; an empty password is an error.
        context.load_cert_chain(self._cert, self._key, password=_no_password)
        return context


def _no_password() -> str:
    return ""
