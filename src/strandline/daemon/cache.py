"""Documents an agent keeps between batches, so that most need not be loaded again.

Two generations: when the young one is half the limit, it becomes the old one and the old one is
dropped. That costs nothing per look-up, and a document used in the last batch is never dropped by
the next one; the agent relies on that while a commit is under way.
"""

from __future__ import annotations

from typing import Any

from strandline.projections.documents import Document, Key


class DocumentCache:
    """Documents by key. May hold states whose commit is under way: ``clear`` it when that fails."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._young: dict[Key, Document[Any]] = {}
        self._old: dict[Key, Document[Any]] = {}

    def take(self, keys: list[Key]) -> tuple[dict[Key, Document[Any]], list[Key]]:
        """The documents that are here, and the keys of those that are not."""
        young, old = self._young, self._old
        found: dict[Key, Document[Any]] = {}
        missing: list[Key] = []
        for key in keys:
            document = young.get(key) or old.get(key)
            if document is None:
                missing.append(key)
            else:
                found[key] = document
        return found, missing

    def put(self, documents: dict[Key, Document[Any]]) -> None:
        """Keep *documents*."""
        self._young.update(documents)
        if len(self._young) > self._half:
            self._old = self._young
            self._young = {}

    def clear(self) -> None:
        """Forget everything."""
        self._young = {}
        self._old = {}

    def __len__(self) -> int:
        """How many documents are kept, about."""
        return len(self._young) + len(self._old)
