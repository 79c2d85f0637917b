"""The certificate that is shown follows its files."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.tls import CHECK_EVERY, TlsFiles
from tests.certificates import Certificate
from tests.smtp_client import SmtpClient
from tests.smtp_harness import serving


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("relay.tls.time.monotonic", lambda: self.now)


def make(directory: Path) -> Certificate:
    directory.mkdir()
    return Certificate.make(directory, "mx.test")


def put(source: Certificate, target: Certificate) -> None:
    for old, new in ((target.cert, source.cert), (target.key, source.key)):
        shutil.copyfile(new, old.with_suffix(".new"))
        old.with_suffix(".new").replace(old)


async def shown(files: TlsFiles, certificate: Certificate, directory: Path) -> bool:
    """Whether a client that trusts only ``certificate`` comes through the handshake."""
    async with serving(directory, tls=files) as served, await SmtpClient.hello(served.port) as client:
        try:
            await client.starttls(certificate.client_context())
        except ssl.SSLCertVerificationError:
            return False
        return (await client.command("EHLO c.test")).code == 250


async def test_a_new_pair_is_shown_to_the_next_handshake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    clock = Clock(monkeypatch)
    files = TlsFiles(first.cert, first.key)
    authority = first.authority.read_bytes()
    assert await shown(files, first, tmp_path)
    put(second, first)
    with capture_logs() as entries:
        clock.now += CHECK_EVERY
        assert await shown(files, second, tmp_path)
        first.authority.write_bytes(authority)
        assert not await shown(files, first, tmp_path)
    assert [entry["event"] for entry in entries if "TLS" in entry["event"]] == ["TLS certificate reloaded"]


def test_the_files_are_looked_at_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    clock = Clock(monkeypatch)
    files = TlsFiles(first.cert, first.key)
    before = files.context()
    put(second, first)
    clock.now += CHECK_EVERY * 0.99
    assert files.context() is before
    clock.now += CHECK_EVERY * 0.01
    assert files.context() is not before


@pytest.mark.parametrize("damage", ["garbage", "other key", "gone", "empty"])
def test_a_pair_that_cannot_be_loaded_keeps_the_old_one_and_is_logged_once(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    clock = Clock(monkeypatch)
    files = TlsFiles(first.cert, first.key)
    before = files.context()
    good = first.cert.read_bytes()
    match damage:
        case "garbage":
            first.cert.write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
        case "other key":
            first.cert.write_bytes(second.cert.read_bytes())
        case "gone":
            first.cert.unlink()
        case "empty":
            first.cert.write_bytes(b"")
    with capture_logs() as entries:
        for _ in range(3):
            clock.now += CHECK_EVERY
            assert files.context() is before
    assert [entry["event"] for entry in entries] == ["TLS certificate not reloaded, the old one stays in use"]
    first.cert.write_bytes(good)
    clock.now += CHECK_EVERY
    assert files.context() is not before


@pytest.mark.parametrize("missing", ["cert", "key"])
def test_a_pair_that_is_not_there_at_the_start_is_an_error(missing: str, tmp_path: Path) -> None:
    pair = make(tmp_path / "pair")
    getattr(pair, missing).unlink()
    with pytest.raises(FileNotFoundError):
        TlsFiles(pair.cert, pair.key)


def test_an_encrypted_key_is_an_error_and_asks_nobody_for_a_password(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    pair = make(tmp_path / "pair")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(ssl.SSLError):
        TlsFiles(pair.cert, pair.key)


def test_nothing_older_than_tls_1_2_is_spoken(tmp_path: Path) -> None:
    pair = make(tmp_path / "pair")
    assert TlsFiles(pair.cert, pair.key).context().minimum_version is ssl.TLSVersion.TLSv1_2
