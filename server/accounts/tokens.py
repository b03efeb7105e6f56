"""Secrets that are shown once: how they look, and the only form in which they are stored."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import zlib
from enum import StrEnum
from pathlib import Path

from server.settings import Settings

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#: 62^32 is more than 2^190: nobody guesses one.
_RANDOM_CHARS = 32
#: 62^6 > 2^32, so that a CRC-32 fits.
_CHECK_CHARS = 6


class SecretKind(StrEnum):
    """What a secret is for; its prefix tells a reader, and a secret scanner, at a glance."""

    USER = "kerf_u_"
    AGENT = "kerf_a_"
    ENROLMENT = "kerf_e_"


def make_secret(kind: SecretKind) -> str:
    """A new secret: prefix, random characters, checksum."""
    body = kind.value + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARS))
    return body + _checksum(body)


def is_well_formed(secret: str) -> bool:
    """Whether prefix, length and checksum are right: catches typing errors without asking the database."""
    kind = next((k for k in SecretKind if secret.startswith(k.value)), None)
    if kind is None or len(secret) != len(kind.value) + _RANDOM_CHARS + _CHECK_CHARS or not secret.isascii():
        return False
    return hmac.compare_digest(_checksum(secret[:-_CHECK_CHARS]), secret[-_CHECK_CHARS:])


def _checksum(body: str) -> str:
    value, digits = zlib.crc32(body.encode()), ""
    for _ in range(_CHECK_CHARS):
        value, index = divmod(value, 62)
        digits = _ALPHABET[index] + digits
    return digits


class SecretHasher:
    """Hashes secrets under the server's key: a stolen database alone gives no token away.

    HMAC-SHA256 and not a password hash: the secrets are random, so slowness would protect nothing.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def from_settings(cls, settings: Settings) -> SecretHasher:
        """With the key that the settings give, else with that of the file."""
        return cls(bytes.fromhex(settings.token_key)) if settings.token_key else cls.from_file(settings.key_file)

    @classmethod
    def from_file(cls, path: Path) -> SecretHasher:
        """Read the key, making it on first use. Processes that start together agree on one key."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_private(path, secrets.token_hex(32), replace=False)
        return cls(bytes.fromhex(path.read_text(encoding="ascii").strip()))

    def hash(self, secret: str) -> str:
        return hmac.new(self._key, secret.encode(), hashlib.sha256).hexdigest()


def write_private(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a file that only this user can read, at once and whole. Without `replace`, an existing file stays."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        if replace:
            partial.replace(path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
