"""One attribute, as the catalogue describes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute.

    Attributes:
        name: As a label of metrics and a field of log records.
        key: As an attribute of spans: a stable semantic convention where there is one.
        meaning: What it says.
        example: Of a value.
        values: All there are, if they are few.
    """

    name: str
    key: str
    meaning: str
    example: str = ""
    values: tuple[str, ...] = ()


def ours(
    name: str, meaning: str, example: str = "", *values: str, key: str | None = None
) -> Attribute:
    """An attribute whose key is our own, unless *key* says otherwise."""
    return Attribute(name, key or f"strandline.{name}", meaning, example, values)
