"""Flows: calls that wait for one another. Values; nothing happens until one is enqueued.

A part of a flow is a call or another flow. What follows a part waits for its last jobs; if one of
those is cancelled or discarded, what follows is cancelled too. A dead letter does not end: what
follows waits until somebody retries or discards it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeAlias

from strandline.errors import InvalidInput
from strandline.jobs.job import Call

LONGEST_NAME = 100  # bytes, of a node of a dag


class Flow:
    """Calls that wait for one another: ``chain``, ``batch``, ``dag``."""

    __slots__ = ()

    @property
    def parts(self) -> Iterable[Part]:
        """What it is made of, callbacks included."""
        raise NotImplementedError

    def calls(self) -> Iterator[Call[Any]]:
        """All calls in it."""
        for one in self.parts:
            if isinstance(one, Flow):
                yield from one.calls()
            else:
                yield one

    async def enqueue(self) -> Any:
        """Enqueue all of it on the app that declared its jobs; see ``App.enqueue``."""
        for one in self.calls():
            return await one.job.enqueuer(self)
        raise InvalidInput("a flow without a call cannot be enqueued")


Part: TypeAlias = "Call[Any] | Flow"


@dataclass(frozen=True, slots=True)
class Chain(Flow):
    """One part after the other."""

    links: tuple[Part, ...]

    @property
    def parts(self) -> Iterable[Part]:
        """See ``Flow``."""
        return self.links


@dataclass(frozen=True, slots=True)
class Batch(Flow):
    """Parts side by side, and what runs when all of their jobs have completed, or have ended."""

    members: tuple[Part, ...]
    then: Part | None = None
    always: Part | None = None

    @property
    def parts(self) -> Iterable[Part]:
        """See ``Flow``."""
        return (*self.members, *(one for one in (self.then, self.always) if one is not None))


@dataclass(frozen=True, slots=True)
class Node:
    """A named part of a dag, and the names of those it waits for."""

    name: str
    part: Part
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dag(Flow):
    """Named parts, each after those it names; parents come first in *nodes*."""

    nodes: tuple[Node, ...]

    @property
    def parts(self) -> Iterable[Part]:
        """See ``Flow``."""
        return (one.part for one in self.nodes)


def chain(*parts: Part) -> Chain:
    """Each part after the one before it has completed.

    Args:
        parts: Calls or flows. After a batch: once all of it has completed.
    """
    if not parts:
        raise InvalidInput("a chain needs at least one call")
    return Chain(tuple(_part(one, "chain") for one in parts))


def batch(
    members: Iterable[Part], *, then: Part | None = None, always: Part | None = None
) -> Batch:
    """Any number of parts side by side.

    Args:
        members: Calls or flows; of a flow each job is a member.
        then: Runs when all have completed; is cancelled as soon as one is cancelled or discarded.
        always: Runs when all have ended, however.
    """
    if isinstance(members, Call | Flow):
        raise InvalidInput("a batch takes a list of calls")
    callbacks = [None if one is None else _part(one, "batch") for one in (then, always)]
    return Batch(tuple(_part(one, "batch") for one in members), *callbacks)


def dag(nodes: Mapping[str, Part | tuple[Part, Sequence[str]]]) -> Dag:
    """Named parts: ``{"load": load.call(), "clean": (clean.call(), ["load"])}``.

    The jobs after one find its result under its name, see ``JobContext.results``.

    Raises:
        InvalidInput: A name is unknown, or they wait for one another in a circle.
    """
    if not nodes:
        raise InvalidInput("a dag needs at least one call")
    made = {name: _node(name, one) for name, one in nodes.items()}
    for node in made.values():
        unknown = [name for name in node.after if name not in made]
        if unknown:
            raise InvalidInput(f"{node.name!r} waits for {unknown[0]!r}, which is not in the dag")
    try:
        order = TopologicalSorter({name: one.after for name, one in made.items()}).static_order()
        return Dag(tuple(made[name] for name in order))
    except CycleError as error:
        circle = " -> ".join(repr(name) for name in reversed(error.args[1]))
        raise InvalidInput(f"these wait for one another in a circle: {circle}") from None


def _node(name: str, given: Any) -> Node:
    if not isinstance(name, str) or not 1 <= len(name.encode(errors="replace")) <= LONGEST_NAME:
        raise InvalidInput(f"a name in a dag is a text of 1 to {LONGEST_NAME} bytes: {name!r}")
    if not isinstance(given, tuple):
        return Node(name, _part(given, "dag"))
    if len(given) != 2 or isinstance(given[1], str) or not isinstance(given[1], Iterable):
        raise InvalidInput(f'{name!r} is a call, or (call, ["names", "before it"]): {given!r}')
    return Node(name, _part(given[0], "dag"), tuple(dict.fromkeys(given[1])))


def _part(given: Any, where: str) -> Part:
    if isinstance(given, Call | Flow):
        return given
    raise InvalidInput(
        f"a {where} is made of calls, e.g. send.call(to), and of other flows: {given!r}"
    )
