"""Passwords that nobody has to remember, and what RabbitMQ keeps of them."""

from __future__ import annotations

import base64
import hashlib
import secrets

HASHING = "rabbit_password_hashing_sha256"
"""RabbitMQ's name of what ``hashed`` does; its default since 3.6."""
_SALT_BYTES = 4


def new_password() -> str:
    """256 random bits, in characters that need no quoting anywhere."""
    return secrets.token_urlsafe(32)


def hashed(password: str, salt: bytes | None = None) -> str:
    """The salted SHA-256 under which RabbitMQ knows a password: from 256 random bits there is no way back.

    https://www.rabbitmq.com/docs/passwords#computing-password-hash
    """
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def is_hash(text: str) -> bool:
    """Whether it has the form of what ``hashed`` gives."""
    try:
        return len(base64.b64decode(text, validate=True)) == _SALT_BYTES + hashlib.sha256().digest_size
    except ValueError:
        return False


def fingerprint(text: str) -> str:
    """Four groups of four hex digits, to be compared by eye or telephone."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return "-".join(digest[start : start + 4] for start in range(0, 16, 4))
