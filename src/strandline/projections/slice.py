"""A slice of a projection: one of several shards that share its streams or keys by hash.

Two hashes decide, and neither may ever change: a stream's slice is worked out by PostgreSQL (feed.sql;
for rows of a table, table_fold.py), that of a key which only Python knows by ``Slice.holds``.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

_MIX = 0x9E3779B1  # CRC is linear: numbered keys spread evenly only after a multiplication


@dataclass(frozen=True, slots=True)
class Slice:
    """Part *part* (from 1) of *parts*. The only part of one is everything."""

    part: int = 1
    parts: int = 1

    @property
    def suffix(self) -> str:
        """How it ends a shard's name: ``all``, or ``3/8``."""
        return "all" if self.parts == 1 else f"{self.part}/{self.parts}"

    def shard(self, label: str) -> str:
        """The name of *label*'s shard for this slice, e.g. ``orders:v2:3/8``."""
        return f"{label}:{self.suffix}"

    def holds(self, tenant: str, key: str) -> bool:
        """Whether the document *key* is in it; exactly one slice of *parts* holds it."""
        if self.parts == 1:
            return True
        code = crc32(f"{tenant}\0{key}".encode(errors="surrogatepass"))
        return ((code * _MIX & 0xFFFFFFFF) >> 8) % self.parts == self.part - 1


WHOLE = Slice()


def slices(parts: int) -> list[Slice]:
    """All slices of a projection cut into *parts*."""
    return [Slice(part, parts) for part in range(1, parts + 1)]


def parsed(shard: str) -> tuple[str, Slice]:
    """Label and slice of a shard's name.

    Raises:
        ValueError: It is no shard's name.
    """
    label, _, suffix = shard.rpartition(":")
    if not label:
        raise ValueError(f"{shard!r} is no shard's name")
    if suffix == "all":
        return label, WHOLE
    part, _, parts = suffix.partition("/")
    found = Slice(int(part), int(parts))
    if not 1 <= found.part <= found.parts or found.parts == 1:
        raise ValueError(f"{shard!r} is no shard's name")
    return label, found
