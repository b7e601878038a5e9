"""Text as PostgreSQL takes it."""

from __future__ import annotations


def clean(text: str) -> str:
    """*text* without what PostgreSQL cannot store: NUL, and halves of surrogate pairs."""
    if "\0" in text:
        text = text.replace("\0", "\N{SYMBOL FOR NULL}")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text
