"""What others will see of our certificates: that they load, name this server, last for a while and are trusted."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from relay.check_findings import FAIL, OK, WARN, Finding, Subject
from relay.config.fields import is_ip
from relay.tls import TlsFiles

#: Days before its end from which a certificate should have been renewed.
RENEW_BEFORE = 14


async def certificates(subject: Subject) -> list[Finding]:
    """Whether they load, name this server, and are good for a while; or a web server that has one is named.

    And whether our public address is one that browsers can use.
    """
    config, found = subject.config, []
    for section, files, name in (
        ("smtp", (config.smtp.tls_cert, config.smtp.tls_key), config.hostname),
        ("http", (config.http.tls_cert, config.http.tls_key), urlsplit(config.http.public_url).hostname or ""),
    ):
        cert, key = files
        if cert and key:
            found.append(await asyncio.to_thread(_certificate, subject, section, cert, key, name))
        elif section == "smtp" and subject.beyond_loopback:
            found.append(Finding(WARN, "smtp.tls_cert", "none: mail comes in clear", "set smtp.tls_cert and tls_key"))
        elif section == "http" and urlsplit(config.http.public_url).scheme == "https":
            found += _in_front(subject)
    return found + _public_url(subject)


def _public_url(subject: Subject) -> list[Finding]:
    url = urlsplit(subject.config.http.public_url)
    what, host = "http.public_url", url.hostname or ""
    hint = "name the web server in front as browsers reach it, such as https://track.example.com (docs/operations.md)"
    if host == "localhost" or (is_ip(host) and ip_address(host).is_loopback):
        if not subject.beyond_loopback:
            return []  # a trial
        return [Finding(FAIL, what, f"{host} is this machine alone: no visitor and no CRM reaches us there", hint)]
    secure = [origin for origin in subject.origins if origin.startswith("https:")]
    if url.scheme == "http" and secure:
        text = f"http, and browsers load no script by it into pages of {min(secure)}"
        return [Finding(WARN, what, text, hint)]
    return []


def _in_front(subject: Subject) -> list[Finding]:
    """Whether the web server that speaks HTTPS for us is believed about who its clients are."""
    if subject.config.http.trusted_proxies:
        return []
    text = (
        "none, and who speaks HTTPS in front is every visitor: limits stop all of them, or none where it is on loopback"
    )
    hint = 'name the address from which the web server connects, such as ["127.0.0.1/32"] (docs/operations.md)'
    return [Finding(WARN, "http.trusted_proxies", text, hint)]


def _certificate(subject: Subject, section: str, cert: Path, key: Path, name: str) -> Finding:
    what = f"{section}.tls_cert"
    try:
        TlsFiles(cert, key)
        certificate = x509.load_pem_x509_certificates(cert.read_bytes())[0]
    except ssl.SSLError as error:
        reason = error.reason or "not usable"
        return Finding(
            FAIL, what, f"{cert} with {key}: {reason}", "give the chain in PEM and the key that belongs to it"
        )
    except (OSError, ValueError) as error:
        return Finding(FAIL, what, f"{cert} with {key}: {error}", "make both readable for the daemon's user")
    ends = certificate.not_valid_after_utc
    left = (ends - datetime.fromtimestamp(subject.now, UTC)).days
    if left < 0:
        return Finding(FAIL, what, f"{cert} expired on {ends:%Y-%m-%d}", "renew it")
    if left < RENEW_BEFORE:
        return Finding(WARN, what, f"{cert} expires on {ends:%Y-%m-%d}", "see why it was not renewed")
    if not _names(certificate, name):
        return Finding(WARN, what, f"{cert} does not name {name}", f"get one for {name}")
    text = f"{cert}, good until {ends:%Y-%m-%d}"
    doubt = distrust(cert, key, name)
    if doubt is None:
        return Finding(OK, what, text)
    if section == "smtp":  # nearly all servers that bring mail take any certificate
        return Finding(OK, what, f"{text}; who verifies it says: {doubt}")
    hint = "give the whole chain (the certificate, then its issuers) of an authority that browsers know"
    return Finding(WARN, what, f"{text}; browsers refuse it: {doubt}", hint)


def _names(certificate: x509.Certificate, name: str) -> bool:
    """Whether a client that looks for ``name`` would be content (RFC 9525 §6.3)."""
    try:
        extension = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return False
    assert isinstance(extension, x509.SubjectAlternativeName)
    named = {text.lower() for text in extension.get_values_for_type(x509.DNSName)}
    named |= {str(address) for address in extension.get_values_for_type(x509.IPAddress)}
    return name in named or f"*.{name.partition('.')[2]}" in named


def distrust(cert: Path, key: Path, name: str, trusted: ssl.SSLContext | None = None) -> str | None:
    """Why a client that trusts the system's authorities refuses this chain for ``name``; None when it takes it.

    The chain is shown to such a client in memory, as a server would. ``trusted`` is another client's context.
    Raises OSError for files that do not load.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(up, down, server_side=True)
    client = (trusted or ssl.create_default_context()).wrap_bio(down, up, server_hostname=name)
    try:
        for side in (client, server, client):  # hello; the chain; the client has seen it
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass  # it is the other's turn
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (ssl.SSLError, ValueError) as error:
        return str(error)
    return None
