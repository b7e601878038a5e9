"""Flows in the tables: who waits for whom, and what follows when a job has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from strandline.errors import InvalidInput
from strandline.jobs.flow import Batch, Chain, Dag, Flow, Part
from strandline.jobs.job import Call
from strandline.jobs.row import Flag, NewJob
from strandline.postgres.operations import Op, many, none
from strandline.postgres.statements import SqlFile

MOST_JOBS = 100_000  # of one flow: it is one transaction

EndedAs = Literal["completed", "cancelled", "discarded"]


class Kinds(Protocol):
    """What makes a row of a call."""

    def prepare(self, call: Call[Any], number: int, /) -> NewJob:
        """The job that *call* becomes, with that id."""
        ...


class Followed(NamedTuple):
    """A linked job that has ended in this transaction.

    Attributes:
        result: JSON text.
        batch: The batch it stands in, as its row said.
    """

    id: int
    ended: EndedAs
    result: str | None = None
    batch: int | None = None


@dataclass(slots=True)
class Freed:
    """What became possible: known once the transaction is committed.

    Attributes:
        queues: With jobs that are available now.
        keys: (queue, key) of ordered jobs: whose turn it is must be looked up after the commit, by
            ``order.promote``.
    """

    queues: set[str] = field(default_factory=set)
    keys: set[tuple[str, str]] = field(default_factory=set)


class Edge(NamedTuple):
    """*child* waits for *parent*, a job or a batch.

    Attributes:
        name: Under which the child finds the result.
        lenient: However the parent ends.
    """

    child: int
    parent: int
    name: str = ""
    lenient: bool = False


@dataclass(slots=True)
class NewBatch:
    """A batch on its way into the table. Its id is drawn like those of jobs: a parent may be either.

    Attributes:
        batch: The batch that this one is a member of.
    """

    id: int
    members: int = 0
    then_job: int | None = None
    always_job: int | None = None
    batch: int | None = None


@dataclass(slots=True)
class Plan:
    """A flow as rows.

    Attributes:
        jobs: Parents before their children.
        last: The job that ends it; None if it ends with a batch without callbacks.
        names: The job of each node of a dag; of inner dags as ``outer.inner``.
    """

    jobs: list[NewJob] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    batches: list[NewBatch] = field(default_factory=list)
    last: int | None = None
    names: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FreedRow:
    """See ``follow`` in the .sql."""

    queue: str
    key: str | None


@dataclass(frozen=True, slots=True)
class ResultRow:
    """What one parent answered."""

    name: str
    result: str


_sql = SqlFile(__name__)
INSERT_BATCHES = _sql.none("insert_batches")
INSERT_EDGES = _sql.none("insert_edges")
HOLD = _sql.none("hold")
FOLLOW = _sql.many("follow", FreedRow)
RESULTS = _sql.many("results", ResultRow)


def needed(flow: Flow) -> int:
    """How many ids ``prepare`` takes for *flow*."""
    return sum(needed(one) if isinstance(one, Flow) else 1 for one in flow.parts) + isinstance(
        flow, Batch
    )


def prepare(flow: Flow, kinds: Kinds, ids: Sequence[int]) -> Plan:
    """The rows of *flow*.

    Args:
        flow: What to enqueue.
        kinds: Makes rows of calls.
        ids: At least ``needed(flow)``.

    Raises:
        InvalidInput: It has no jobs, too many, or arguments that do not fit.
    """
    if needed(flow) > MOST_JOBS:
        raise InvalidInput(f"a flow of more than {MOST_JOBS} jobs: enqueue it in several")
    drawing = _Drawing(kinds, iter(ids))
    ends = drawing.part(flow, _Place())
    plan = drawing.plan
    if not plan.jobs:
        raise InvalidInput("a flow without a call cannot be enqueued")
    plan.last = next((one.id for one in reversed(ends) if one.id in drawing.jobs), None)
    return plan


def insert(plan: Plan, insert_jobs: Callable[[Sequence[NewJob]], Op[Any]]) -> Op[Any]:
    """Write *plan*, in the transaction of the session; ordered jobs are promoted after it.

    Args:
        plan: See ``prepare``.
        insert_jobs: ``enqueue.insert``, whose answer comes back.
    """
    if plan.batches:
        yield from none(
            INSERT_BATCHES,
            [one.id for one in plan.batches],
            [one.members for one in plan.batches],
            [one.then_job for one in plan.batches],
            [one.always_job for one in plan.batches],
            [one.batch for one in plan.batches],
        )
    if plan.edges:
        yield from none(INSERT_EDGES, *(list(one) for one in zip(*plan.edges, strict=True)))
    return (yield from insert_jobs(plan.jobs))


def hold(items: Sequence[tuple[int, bool]]) -> Op[None]:
    """Lock these linked jobs and all that their end concerns, in the order everybody keeps.

    The first statement of a transaction that ends several linked jobs: then two of them cannot
    wait for one another in a circle.

    Args:
        items: Id, and whether it is going to complete.
    """
    if items:
        yield from none(HOLD, [one for one, _ in items], [not done for _, done in items])


def follow(items: Sequence[Followed]) -> Op[Freed]:
    """Free or cancel what waits for *items*, in the transaction that has removed their rows."""
    freed = Freed()
    if items:
        for row in (
            yield from many(
                FOLLOW,
                [one.id for one in items],
                [one.batch for one in items],
                [one.ended for one in items],
                [one.result for one in items],
            )
        ):
            if row.key is None:
                freed.queues.add(row.queue)
            else:
                freed.keys.add((row.queue, row.key))
    return freed


def results(child: int) -> Op[dict[str, str]]:
    """What the parents of *child* answered, as JSON text by name; those that answered nothing are not there."""
    return {one.name: one.result for one in (yield from many(RESULTS, child))}


class _End(NamedTuple):
    """What the next part waits for: a job, or a batch as a whole."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a part stands.

    Attributes:
        after: What it waits for.
        lenient: However that ends.
        path: Before the names of nodes in it.
    """

    after: tuple[_End, ...] = ()
    batch: NewBatch | None = None
    lenient: bool = False
    path: str = ""


class _Drawing:
    """Turns a flow into rows, part by part."""

    def __init__(self, kinds: Kinds, ids: Iterator[int]) -> None:
        self.plan = Plan()
        self.jobs: dict[int, NewJob] = {}
        self._kinds = kinds
        self._ids = ids

    def part(self, part: Part, place: _Place) -> tuple[_End, ...]:
        """Add *part*; what follows waits for the answer."""
        if isinstance(part, Chain):
            return self._chain(part, place)
        if isinstance(part, Batch):
            return self._batch(part, place)
        if isinstance(part, Dag):
            return self._dag(part, place)
        if isinstance(part, Call):
            return (self._call(part, place),)
        raise InvalidInput(f"not a call or a flow: {part!r}")

    def _call(self, call: Call[Any], place: _Place) -> _End:
        job = self._kinds.prepare(call, next(self._ids))
        if job.unique_key is not None:
            job.on_duplicate = "raise"  # a flow cannot wait for a job of somebody else's
        if place.batch is not None:
            job.batch = place.batch.id
            _mark(job, Flag.IN_BATCH)
            place.batch.members += 1
        if place.after:
            job.blocked = True
            _mark(job, Flag.HAS_PARENTS | Flag.WAITS)
            self._wait(job.id, place)
        self.plan.jobs.append(job)
        self.jobs[job.id] = job
        return _End(job.id, job.kind)

    def _wait(self, child: int, place: _Place) -> None:
        taken: set[str] = set()
        parents: dict[int, _End] = {}
        for one in place.after:
            parents.setdefault(one.id, one)  # a part may come after one by two ways
        for parent in parents.values():
            name, number = parent.name, 1
            while name in taken:
                number += 1
                name = f"{parent.name}#{number}"
            taken.add(name)
            self.plan.edges.append(Edge(child, parent.id, name, place.lenient))
            if parent.id in self.jobs:
                _mark(self.jobs[parent.id], Flag.HAS_CHILDREN)

    def _chain(self, chain: Chain, place: _Place) -> tuple[_End, ...]:
        after, lenient = place.after, place.lenient
        for one in chain.links:
            before = len(self.plan.jobs)
            after = self.part(one, _Place(after, place.batch, lenient, place.path))
            lenient = lenient and len(self.plan.jobs) == before
        return after

    def _batch(self, batch: Batch, place: _Place) -> tuple[_End, ...]:
        row = NewBatch(next(self._ids), batch=place.batch.id if place.batch else None)
        for number, one in enumerate(batch.members):
            inside = f"{place.path}{number}." if len(batch.members) > 1 else place.path
            self.part(one, _Place(place.after, row, place.lenient, inside))
        done, ended = place, place
        ends: tuple[_End, ...] = place.after
        if row.members:
            self.plan.batches.append(row)
            if place.batch is not None:
                place.batch.members += 1
            ends = (_End(row.id, ""),)
            done = _Place(ends, place.batch, False, place.path)
            ended = _Place(ends, place.batch, True, place.path)
        if batch.then is not None:
            row.then_job, ends = self._callback(batch.then, done)
        if batch.always is not None:
            row.always_job, last = self._callback(batch.always, ended)
            ends = (*ends, *last) if row.members or batch.then else last
        return ends

    def _callback(self, part: Part, place: _Place) -> tuple[int | None, tuple[_End, ...]]:
        before = len(self.plan.jobs)
        ends = self.part(part, place)
        return (self.plan.jobs[before].id if len(self.plan.jobs) > before else None), ends

    def _dag(self, dag: Dag, place: _Place) -> tuple[_End, ...]:
        ends: dict[str, tuple[_End, ...]] = {}
        last = {one.name for one in dag.nodes}
        for node in dag.nodes:
            last.difference_update(node.after)
            after = tuple(end for name in node.after for end in ends[name])
            stands = _Place(
                after or place.after,
                place.batch,
                place.lenient and not after,
                f"{place.path}{node.name}.",
            )
            before = len(self.plan.jobs)
            found = self.part(node.part, stands)
            if (
                len(self.plan.jobs) == before
            ):  # nothing in it: what follows comes after those before
                ends[node.name] = after
                continue
            ends[node.name] = tuple(_End(one.id, node.name) for one in found)
            named = [one.id for one in found if one.id in self.jobs]
            if named:
                self.plan.names[f"{place.path}{node.name}"] = named[-1]
        return tuple(end for name in ends if name in last for end in ends[name]) or place.after


def _mark(job: NewJob, flags: Flag) -> None:
    job.flags = int(job.flags | flags)  # asyncpg takes a flag for a list of its bits
