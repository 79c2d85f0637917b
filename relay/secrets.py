"""What the daemon must keep to itself: its keys on disk, sealed values for the database, API tokens.

A key is 32 random octets. Each named key has a file of its own in ``data_dir/keys``, one generation a line in
hexadecimal, the newest first: new things are made with the newest, old ones are checked against all of them.

Sealed values are AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce: text ``s1.`` + base64url(nonce + ciphertext
+ tag). API tokens carry 256 random bits, so a plain SHA-256 of them is enough to store: there is nothing to guess.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from relay.durable import sync_directory

#: What each key is for: the loop token in X-Visit-Relay, SRS hashes, signed links, values sealed in the database.
NAMES = ("loop", "srs", "links", "seal")

KEY_SIZE = 32
NONCE_SIZE = 12
MAX_KEY_FILE = 64 * 1024
SEAL_PREFIX = "s1."


class KeysError(Exception):
    """A key file cannot be used; the message names the file and says what to do."""


class SealError(Exception):
    """A sealed value does not open with any of our keys: it was made by another instance or altered."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """``generations`` are those that the running program honours; ``written_at`` is when the file was."""

    name: str
    path: Path
    generations: int
    written_at: float


class Keys:
    """The instance's keys, read once at start. Call ``load`` only while holding the lock on data_dir."""

    def __init__(self, directory: Path, generations: dict[str, tuple[bytes, ...]]) -> None:
        self._directory = directory
        self._generations = generations

    @classmethod
    def load(cls, directory: Path) -> Keys:
        """Read ``data_dir/keys``, creating the directory (0700) and every missing key (0600) first.

        Raises KeysError when something there is unreadable, malformed or open to other users.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(directory.parent)  # a power cut must not take the whole directory away again
            for path in _paths(directory).values():
                if not path.exists():
                    _write(path, os.urandom(KEY_SIZE))
        except OSError as error:
            raise KeysError(f"{error.filename or directory}: {error.strerror}") from error
        return cls.read(directory)

    @classmethod
    def read(cls, directory: Path) -> Keys:
        """Read ``data_dir/keys`` as it is, for whoever does not hold the lock.

        Raises KeysError when something there is missing, unreadable, malformed or open to other users.
        """
        try:
            _refuse_open_to_others(directory, directory.stat().st_mode, "700")
            return cls(directory, {name: _read(path) for name, path in _paths(directory).items()})
        except FileNotFoundError as error:
            hint = "restore it; where there never was one, relay serve makes it"
            raise KeysError(f"{error.filename} is missing: {hint}") from error
        except OSError as error:
            raise KeysError(f"{error.filename or directory}: {error.strerror}") from error

    def current(self, name: str) -> bytes:
        """The key to make new things with."""
        return self._generations[name][0]

    def all(self, name: str) -> tuple[bytes, ...]:
        """Every generation that is still honoured, newest first."""
        return self._generations[name]

    def files(self) -> list[KeyFile]:
        """What there is, without the keys themselves; raises OSError."""
        return [
            KeyFile(name, path, len(self._generations[name]), path.stat().st_mtime)
            for name, path in _paths(self._directory).items()
        ]

    def seal(self, plaintext: str) -> str:
        """Seal with the newest ``seal`` key."""
        return seal(self.current("seal"), plaintext)

    def unseal(self, sealed: str) -> str:
        """Open with any ``seal`` key. Raises SealError."""
        return unseal(self.all("seal"), sealed)


def _paths(directory: Path) -> dict[str, Path]:
    return {name: directory / f"{name}.key" for name in NAMES}


def _read(path: Path) -> tuple[bytes, ...]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        _refuse_open_to_others(path, os.fstat(descriptor).st_mode, "600")
        return _parse(path, file.read(MAX_KEY_FILE))


def _refuse_open_to_others(path: Path, mode: int, wanted: str) -> None:
    if stat.S_IMODE(mode) & 0o077:
        raise KeysError(f"{path} is open to other users (mode {stat.S_IMODE(mode):o}): chmod {wanted} {path}")


def _parse(path: Path, content: bytes) -> tuple[bytes, ...]:
    try:
        generations = tuple(bytes.fromhex(line) for line in content.decode("ascii").split())
    except ValueError:
        generations = ()
    if not generations or any(len(generation) != KEY_SIZE for generation in generations):
        # The content is never quoted: most of it may well be a key.
        raise KeysError(f"{path} is not a key file (lines of {2 * KEY_SIZE} hexadecimal digits): restore it")
    return generations


def _write(path: Path, key: bytes) -> None:
    """Make the file as one step that survives a power cut: synced under another name, renamed, directory synced."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)  # left by a crash in the middle of this function
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(f"{key.hex()}\n".encode())
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    sync_directory(path.parent)


def seal(key: bytes, plaintext: str) -> str:
    """Encrypt and authenticate a text of any length; ASCII, safe in a database, a URL or a log line."""
    nonce = os.urandom(NONCE_SIZE)
    sealed = AESGCM(key).encrypt(nonce, plaintext.encode(), None)
    return SEAL_PREFIX + base64.urlsafe_b64encode(nonce + sealed).decode()


def unseal(keys: Sequence[bytes], sealed: str) -> str:
    """The text that ``seal`` was given, opened with the first of the keys that fits. Raises SealError."""
    try:
        raw = base64.b64decode(sealed.removeprefix(SEAL_PREFIX), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise SealError("not a sealed value") from error
    if not sealed.startswith(SEAL_PREFIX) or len(raw) <= NONCE_SIZE:
        raise SealError("not a sealed value")
    for key in keys:
        try:
            return AESGCM(key).decrypt(raw[:NONCE_SIZE], raw[NONCE_SIZE:], None).decode()
        except InvalidTag:
            continue
    raise SealError("sealed with a key that is not in data_dir/keys, or altered")


def new_token(random: Callable[[int], bytes] = os.urandom) -> str:
    """A new API token: ``vr_`` and 43 URL-safe characters (256 bits of ``random``). Shown once, stored only as hash."""
    return "vr_" + base64.urlsafe_b64encode(random(32)).decode().rstrip("=")


def new_link() -> str:
    """The secret part of a one-time link, or of a session's cookie: 43 URL-safe characters, 256 bits."""
    return secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """What is stored and looked up for a token: the hexadecimal SHA-256 of its text as it was presented."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
