"""What a plan is made of: places, items, and units of items that are placed as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from strandline.cluster.work import Work


@dataclass(frozen=True, slots=True)
class Place:
    """A node that runs work.

    Attributes:
        takes_new: False: it keeps what it has and is given nothing, e.g. since its beats are late.
    """

    id: UUID
    name: str
    labels: frozenset[str]
    capacity: float
    takes_new: bool = True


@dataclass(frozen=True, slots=True)
class Item:
    """Work, and where it is now.

    Attributes:
        owner: The node that runs it.
        target: The node that should run it by the last plan.
        last_name: The name of the node it belongs to.
        pinned_to: The only name of nodes that it may run on.
        avoid: Names of nodes on which it failed lately.
        waits_for_name: Return it to a node named *last_name*, if there is one.
    """

    work: Work
    owner: UUID | None
    target: UUID | None
    last_name: str
    pinned_to: str | None
    is_paused: bool
    avoid: frozenset[str] = frozenset()
    waits_for_name: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Where:
    """Where work may run, as indexes of places. Equal ones are one object.

    Attributes:
        takers: Those that it may be given to.
        keepers: Those that may keep it.
    """

    number: int
    takers: tuple[int, ...]
    keepers: frozenset[int]


@dataclass(slots=True, eq=False)
class Unit:
    """Items that run on one node.

    Attributes:
        number: Its place in the order of names.
        aparts: The apart keys of its items; for each of them it is one piece, which cannot be divided.
        origin: Where its items are and may stay, or None.
        place: Where it is, as far as planned.
        home: The place of the name it waits for, if it is elsewhere.
    """

    number: int
    items: tuple[Item, ...]
    weight: float
    aparts: tuple[str, ...]
    where: Where
    origin: int | None = None
    place: int | None = None
    home: int | None = None


Wants = tuple[frozenset[str], frozenset[str], frozenset[str]]  # needs, pins, names to avoid


class Map:
    """Knows where work may run."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = places
        self.index = {place.id: number for number, place in enumerate(places)}
        self.named: dict[str, list[int]] = {}
        for number, place in enumerate(places):
            self.named.setdefault(place.name, []).append(number)
        self._known: dict[Wants, Where | None] = {}
        self._equal: dict[tuple[tuple[int, ...], frozenset[int]], Where] = {}

    def where(self, wants: Wants) -> Where | None:
        """Where work that wants this may run; None: nowhere."""
        if wants not in self._known:
            self._known[wants] = self._looked_up(wants)
        return self._known[wants]

    def why_nowhere(self, needs: frozenset[str], pin: str | None) -> str:
        """In words, why no place will do."""
        if pin is not None and pin not in self.named:
            return f"pinned to {pin!r}, and no node of that name takes work"
        able = self.places if pin is None else [self.places[one] for one in self.named[pin]]
        if not able:
            return "no node takes work"
        who = "no node" if pin is None else f"pinned to {pin!r}, which"
        has = "has" if pin is None else "lacks"
        missing = sorted(one for one in needs if not any(one in place.labels for place in able))
        return f"{who} {has} {', '.join(missing) or 'all of ' + ', '.join(sorted(needs))}"

    def _looked_up(self, wants: Wants) -> Where | None:
        needs, pins, avoid = wants
        if len(pins) > 1:
            return None
        among: Iterable[int] = range(len(self.places))
        for pin in pins:
            among = self.named.get(pin, ())
        able = [one for one in among if needs <= self.places[one].labels]
        if not able:
            return None
        takers = [one for one in able if self.places[one].takes_new]
        if avoid:
            better = [one for one in takers if self.places[one].name not in avoid]
            if better:
                takers = better
                able = [one for one in able if self.places[one].name not in avoid]
        key = (tuple(takers), frozenset(able))
        found = self._equal.get(key)
        if found is None:
            found = self._equal[key] = Where(len(self._equal), *key)
        return found


def divided(places: Sequence[Place], items: Sequence[Item]) -> tuple[list[Unit], dict[str, str]]:
    """The units of all *items* that may run somewhere, and why the others may not, by name.

    Both arguments are sorted; the units are in the order of their first items' names.
    """
    chart = Map(places)
    alone: list[tuple[Item, ...]] = []
    groups: dict[str, list[Item]] = {}
    unplaced: dict[str, str] = {}
    for item in items:
        if item.is_paused:
            continue
        if chart.where(wants(item)) is None:
            unplaced[item.work.name] = chart.why_nowhere(item.work.needs, item.pinned_to)
        elif item.work.together:
            groups.setdefault(item.work.together, []).append(item)
        else:
            alone.append((item,))
    parts = [part for group in groups.values() for part in _parts(chart, group)]
    parts.extend(alone)
    parts.sort(key=lambda part: part[0].work.name)
    return [_unit(chart, number, part) for number, part in enumerate(parts)], unplaced


def wants(item: Item) -> Wants:
    """What an item wants of its place."""
    pin = item.pinned_to
    return item.work.needs, _NONE if pin is None else frozenset((pin,)), item.avoid


_NONE: frozenset[str] = frozenset()


def _joint(items: Iterable[Item]) -> Wants:
    needs, pins, avoid = zip(*(wants(item) for item in items), strict=True)
    return _NONE.union(*needs), _NONE.union(*pins), _NONE.union(*avoid)


def _parts(chart: Map, group: list[Item]) -> list[tuple[Item, ...]]:
    """*group* in as few parts as its labels and pins ask for; mostly one."""
    joint = chart.where(_joint(group))
    if joint is not None and (joint.takers or _present(chart, group, joint) is not None):
        return [tuple(group)]
    kinds: dict[tuple[frozenset[str], str | None], list[Item]] = {}
    for item in group:
        kinds.setdefault((item.work.needs, item.pinned_to), []).append(item)
    parts: list[list[Item]] = []
    for kind in sorted(kinds.values(), key=lambda one: _choice(chart, one)):
        for part in parts:
            joint = chart.where(_joint([*part, *kind]))
            if joint is not None and joint.takers:
                part.extend(kind)
                break
        else:
            parts.append(list(kind))
    return [tuple(sorted(part, key=lambda item: item.work.name)) for part in parts]


def _choice(chart: Map, kind: list[Item]) -> tuple[int, str]:
    found = chart.where(_joint(kind))
    return len(found.takers) if found is not None else 0, kind[0].work.name


def _unit(chart: Map, number: int, items: tuple[Item, ...]) -> Unit:
    where = chart.where(wants(items[0]) if len(items) == 1 else _joint(items))
    assert where is not None
    aparts = tuple(sorted({item.work.apart for item in items if item.work.apart}))
    weight = sum(item.work.weight for item in items)
    unit = Unit(number, items, weight, aparts, where)
    unit.origin = unit.place = _present(chart, items, where)
    home = _awaited(chart, items, where)
    if unit.place is None:
        unit.place = home
    elif home is not None and chart.places[home].name != chart.places[unit.place].name:
        unit.home = home
    return unit


def _present(chart: Map, items: Sequence[Item], where: Where) -> int | None:
    """Where most of *items* are and may stay: at their targets, else with their owners.

    A place that takes nothing new counts only if they are at no other: then those without a
    place follow the rest there, and wait.
    """
    votes: dict[int, float] = {}
    for item in items:
        place = chart.index.get(item.target) if item.target is not None else None
        if place is None and item.owner is not None:
            place = chart.index.get(item.owner)
        if place is not None and place in where.keepers:
            votes[place] = votes.get(place, 0.0) + item.work.weight
    takers = {place: votes[place] for place in votes if chart.places[place].takes_new}
    return _first_choice(takers or votes)


def _awaited(chart: Map, items: Sequence[Item], where: Where) -> int | None:
    """The place of the name that most of *items* wait for."""
    votes: dict[int, float] = {}
    for item in items:
        if not item.waits_for_name:
            continue
        for place in chart.named.get(item.last_name, ()):
            if place in where.takers:
                votes[place] = votes.get(place, 0.0) + item.work.weight
    return _first_choice(votes)


def _first_choice(votes: dict[int, float]) -> int | None:
    return max(votes, key=lambda one: (votes[one], -one)) if votes else None
