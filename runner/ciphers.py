"""Encryption of single values with a key of 32 bytes: AES-256-GCM, or Fernet. Nothing here is ever shown.

AES-256-GCM: base64(nonce of 12 bytes ‖ ciphertext ‖ tag of 16 bytes), the nonce from the system's random source (NIST
SP 800-38D, 8.2.2). Fernet: the token of its specification. Both notice any change, so a value tells by itself whether a
key is its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from runner.errors import Permanent
from runner.spec import SpecModel
from runner.store import ConnectionConfig

if TYPE_CHECKING:
    from cryptography.fernet import Fernet
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: Bytes of a key.
KEY_BYTES = 32
NONCE_BYTES = 12
Algorithm = Literal["aes-256-gcm", "fernet"]


class WrongKey(Permanent):
    """A value is not one that this key has encrypted, or it was changed since."""


class KeySpec(SpecModel):
    """A key for encryption, by reference."""

    secret: str = Field(
        pattern=r"^\$\{(env|file):[^}]+\}$",
        description="Where the key is: ${env:NAME} or ${file:PATH}. 32 bytes, as they are, in base64 or in hexadecimal.",
        examples=["${env:CREDENTIALS_KEY}"],
    )
    algorithm: Algorithm = "aes-256-gcm"


class KeyConfig(ConnectionConfig):
    """A key of a plan, as a connection: its reference travels in the plan, and is resolved by whoever opens it."""

    type: Literal["key"]
    name: str
    secret: str = Field(repr=False)
    algorithm: Algorithm = "aes-256-gcm"


class Cipher:
    """Encrypts and decrypts with one key. Safe for use from several threads."""

    def __init__(self, name: str, algorithm: Algorithm, secret: str) -> None:
        """`secret`: the text that stands behind the reference. Permanent when it is not 32 bytes, or a package is missing."""
        self.name, self.algorithm = name, algorithm
        key = key_bytes(name, secret)
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.fernet import Fernet, InvalidToken
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ModuleNotFoundError as exc:
            raise Permanent(
                "A library is missing", f"key {name} needs 'cryptography'", "pip install 'vecrun[sql]'"
            ) from exc
        self._aes: AESGCM | None = AESGCM(key) if algorithm == "aes-256-gcm" else None
        self._fernet: Fernet | None = Fernet(base64.urlsafe_b64encode(key)) if algorithm == "fernet" else None
        self._invalid: type[Exception] = InvalidToken if algorithm == "fernet" else InvalidTag
        # never the key itself for two purposes
        self._naming = hmac.digest(key, b"vecrun naming v1", "sha256")

    def encrypt(self, plain: str) -> str:
        """Another text each time."""
        try:
            data = plain.encode()
        except UnicodeEncodeError:
            raise Permanent("A text cannot be encrypted", "it has half of a character (a lone surrogate)") from None
        if self._aes is not None:
            nonce = os.urandom(NONCE_BYTES)
            return base64.b64encode(nonce + self._aes.encrypt(nonce, data, None)).decode()
        assert self._fernet is not None
        return self._fernet.encrypt(data).decode()

    def decrypt(self, text: str) -> str:
        """What was encrypted. WrongKey."""
        plain = self._opened(text)
        if plain is None:
            raise WrongKey(
                "A value was not encrypted with this key", f"key {self.name} ({self.algorithm})",
                "Take the key that encrypted it, or look who changed it",
            )  # fmt: skip
        return plain

    def is_own(self, text: str) -> bool:
        """Whether this key has encrypted a value."""
        return self._opened(text) is not None

    def _opened(self, text: str) -> str | None:
        """What was encrypted; None when it was not with this key."""
        try:
            if self._aes is not None:
                data = base64.b64decode(text, validate=True)
                return self._aes.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], None).decode()
            assert self._fernet is not None
            return self._fernet.decrypt(text.encode()).decode()
        except (self._invalid, ValueError):  # ValueError: no base64, or shorter than a nonce and a tag
            return None

    @property
    def check(self) -> str:
        """Tells two keys apart and says nothing about either: 16 hexadecimal digits."""
        return hmac.digest(self._naming, b"which key", "sha256").hex()[:16]

    def named(self, parts: Sequence[Any]) -> uuid.UUID:
        """The same id for the same parts, and only with this key: HMAC-SHA256, cut to a UUID of version 8 (RFC 9562)."""
        return _uuid(hmac.digest(self._naming, _text(parts), "sha256"))


def named(parts: Sequence[Any]) -> uuid.UUID:
    """The same id for the same parts: SHA-256, cut to a UUID of version 8. For parts that are no secrets."""
    return _uuid(hashlib.sha256(_text(parts)).digest())


def key_bytes(name: str, secret: str) -> bytes:
    """The 32 bytes of a key: the text itself, base64 (both alphabets) or hexadecimal. Permanent, which never shows it."""
    raw = secret.encode("utf-8", "surrogateescape")  # what an environment variable holds that is no text
    if len(raw) == KEY_BYTES:
        return raw
    if re.fullmatch(r"[0-9a-fA-F]{64}", secret):
        return bytes.fromhex(secret)
    try:
        decoded = base64.b64decode(secret.replace("-", "+").replace("_", "/") + "=" * (-len(secret) % 4), validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if len(decoded) == KEY_BYTES:
        return decoded
    found = f"{len(raw)} bytes of text" + (f", {len(decoded)} in base64" if decoded else "")
    raise Permanent(
        "A key does not have 32 bytes", f"key {name}: {found}",
        "Make one with: openssl rand -base64 32 . Nothing was read or changed",
    )  # fmt: skip


def _text(parts: Sequence[Any]) -> bytes:
    return json.dumps(list(parts), ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str).encode()


def _uuid(digest: bytes) -> uuid.UUID:
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | (8 << 76)
    return uuid.UUID(int=number & ~(0x3 << 62) | (0x2 << 62))
