"""Arguments that the database cannot read: Fernet tokens under the keys of the setting ``job_keys``."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from strandline.errors import InvalidSetting, MissingExtra

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet


@lru_cache(maxsize=8)
def _fernet(keys: str) -> MultiFernet:
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ImportError as error:
        raise MissingExtra("a job with encrypted=True", "encryption") from error
    names = [one.strip() for one in keys.split(",") if one.strip()]
    if not names:
        raise InvalidSetting("job_keys", "", "jobs with encrypted=True need a key")
    try:
        return MultiFernet([Fernet(one) for one in names])
    except ValueError as error:
        raise InvalidSetting("job_keys", "...", f"not Fernet keys: {error}") from error


def newest(keys: str) -> str:
    """The key that arguments are encrypted under now; empty if there is none."""
    return next((name for one in keys.split(",") if (name := one.strip())), "")


def encrypt(data: bytes, keys: str) -> str:
    """*data* under the first of *keys*.

    Raises:
        MissingExtra: ``cryptography`` is not installed.
        InvalidSetting: There is no key, or it is not one.
    """
    token: bytes = _fernet(keys).encrypt(data)
    return token.decode()


def decrypt(token: str, keys: str) -> bytes:
    """What was encrypted under any of *keys*.

    Raises:
        InvalidSetting: It was encrypted under none of them.
    """
    from cryptography.fernet import InvalidToken

    fernet: Any = _fernet(keys)
    try:
        found: bytes = fernet.decrypt(token.encode())
    except InvalidToken as error:
        raise InvalidSetting(
            "job_keys", "...", "these arguments were encrypted under none of the keys"
        ) from error
    return found
