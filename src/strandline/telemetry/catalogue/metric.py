"""One metric, as the catalogue describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from strandline.telemetry.catalogue.attributes import ATTRIBUTES

Kind = Literal["counter", "histogram", "gauge"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Every one carries the attribute ``node`` besides its own.

    Attributes:
        name: As it is exported.
        kind: ``counter`` only grows; ``gauge`` is read when somebody collects.
        unit: In the notation of OpenTelemetry: ``s``, ``1``, or what is counted in braces.
        attributes: What tells its series apart.
        meaning: What is measured, and what to think of it.
        bounds: Of a histogram's buckets.
        values: All that an attribute can have here, where that is not what it has everywhere.
    """

    name: str
    kind: Kind
    unit: str
    attributes: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def values_of(self, attribute: str) -> tuple[str, ...]:
        """All values that *attribute* can have here, if they are few; else none."""
        return self.values.get(attribute) or ATTRIBUTES[attribute].values

    def where(self, **values: tuple[str, ...]) -> Metric:
        """The same, with *values* as all that attributes can have."""
        return replace(self, values=values)


def counter(name: str, of: str, meaning: str, *attributes: str) -> Metric:
    """A counter of *of*."""
    return Metric(f"strandline_{name}_total", "counter", f"{{{of}}}", attributes, meaning)


def gauge(name: str, unit: str, meaning: str, *attributes: str) -> Metric:
    """A gauge in *unit*."""
    return Metric(f"strandline_{name}", "gauge", unit, attributes, meaning)


def histogram(name: str, bounds: tuple[float, ...], meaning: str, *attributes: str) -> Metric:
    """A histogram of seconds."""
    return Metric(f"strandline_{name}_seconds", "histogram", "s", attributes, meaning, bounds)
