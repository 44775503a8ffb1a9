"""API keys as text: ``x2l_ID_SECRET``. The id finds the record, which knows only a digest of the whole text.

A plain SHA-256 is enough: the secret is 256 random bits, so there is no guessing that a slow hash would slow down.
"""

from __future__ import annotations

import hmac
import re
import secrets
from hashlib import sha256

_FORM = re.compile(r"x2l_([0-9a-f]{12})_[0-9a-f]{64}", re.ASCII)


def new_secret() -> tuple[str, str]:
    """The id of a new key, and its text."""
    id = secrets.token_hex(6)
    return id, f"x2l_{id}_{secrets.token_hex(32)}"


def id_of(secret: str) -> str | None:
    """The id in a key's text; None if that is no key."""
    match = _FORM.fullmatch(secret)
    return match[1] if match else None


def digest_of(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def fits(secret: str, digest: str | None) -> bool:
    """Whether that is the secret with this digest. Takes as long when there is none."""
    return hmac.compare_digest(digest_of(secret), digest or "0" * 64) and digest is not None
