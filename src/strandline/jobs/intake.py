"""Calls and flows on their way into the tables, as operations: the same for async and blocking callers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, TypeVar, overload

from strandline.jobs import flows
from strandline.jobs.bulk import Many, insert_many
from strandline.jobs.enqueue import Enqueued, insert
from strandline.jobs.flow import Flow
from strandline.jobs.flow_ref import FlowRef
from strandline.jobs.ids import Ids
from strandline.jobs.job import Call, kept_of
from strandline.jobs.kinds import Kinds, as_call
from strandline.jobs.row import Kept, NewJob
from strandline.jobs.waking import Written
from strandline.postgres.operations import Op
from strandline.postgres.savepoint import all_or_nothing

Ref = TypeVar("Ref")
MakeRef = Callable[[int, str, bool, Kept], Ref]
"""Makes the reference of a job: its id, its kind, whether it is new, what is kept of it."""


@dataclass(frozen=True, slots=True)
class Intake(Generic[Ref]):
    """Enqueues for one app.

    Attributes:
        ids: Of the database that the app is open on.
        ref: See ``MakeRef``.
    """

    kinds: Kinds
    ids: Ids
    ref: MakeRef[Ref]

    def enqueue(
        self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: Written
    ) -> Op[Any]:
        """Enqueue a call, a job with its arguments, or a flow, inside the caller's transaction.

        Returns:
            The reference of the job, or a ``FlowRef``.
        """
        given = as_call(call, args, kwargs)
        if isinstance(given, Flow):
            return (yield from all_or_nothing(self.flow(given, written)))
        job = yield from self.prepared(given)
        with self.ids.watched():
            (done,) = yield from insert([job])
        if done.is_new or done.replaced:
            written.add([job])
        return self.told(job, done)

    def flow(self, flow: Flow, written: Written) -> Op[FlowRef]:
        """Enqueue *flow*; if it fails, a part of it may be written."""
        for call in flow.calls():
            self.kinds.check(call)
        numbers = yield from self.ids.draw(flows.needed(flow))
        plan = flows.prepare(flow, self.kinds, sorted(numbers))
        with self.ids.watched():
            yield from flows.insert(plan, insert)
        written.add(plan.jobs)
        refs = {one.id: self.told(one, Enqueued(one.id)) for one in plan.jobs}
        return FlowRef(
            refs[plan.last] if plan.last is not None else None,
            {name: refs[number] for name, number in plan.names.items()},
            tuple(refs),
        )

    def many(self, calls: Iterable[Call[Any]], written: Written) -> Op[Refs[Ref]]:
        """Enqueue *calls*, all or none, by INSERT."""
        with self.ids.watched():
            many = yield from all_or_nothing(insert_many(calls, kinds=self.kinds, ids=self.ids))
        written.update(many.written)
        return self.refs(many)

    def refs(self, many: Many) -> Refs[Ref]:
        """The references of what was enqueued together."""
        return Refs(many, self.kinds, self.ref)

    def prepared(self, call: Any) -> Op[NewJob]:
        """*call* as a row, with an id."""
        checked = self.kinds.check(call)
        (number,) = yield from self.ids.draw(1)
        return self.kinds.prepare(checked, number)

    def told(self, job: NewJob, done: Enqueued) -> Ref:
        """What the caller gets."""
        return self.ref(done.id, job.kind, done.is_new, kept_of(job.flags))


class Refs(Sequence[Ref]):
    """References of jobs that were enqueued together, in the order of their calls.

    Each is made when it is asked for, so a million of them take eight bytes each.
    """

    def __init__(self, many: Many, kinds: Kinds, ref: MakeRef[Ref]) -> None:
        self._many = many
        self._kinds = kinds
        self._ref = ref
        self._ends = list(accumulate(count for _, count in many.kinds))

    def __len__(self) -> int:
        return len(self._many.ids)

    @overload
    def __getitem__(self, place: int) -> Ref: ...
    @overload
    def __getitem__(self, place: slice) -> list[Ref]: ...

    def __getitem__(self, place: int | slice) -> Ref | list[Ref]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        kind = self._many.kinds[bisect_right(self._ends, place)][0]
        kept = self._kinds.get(kind).keep
        return self._ref(self._many.ids[place], kind, place not in self._many.old, kept)

    def __iter__(self) -> Iterator[Ref]:
        return (self[place] for place in range(len(self)))

    @property
    def ids(self) -> list[int]:
        """The ids of the jobs."""
        return list(self._many.ids)

    def __repr__(self) -> str:
        return f"<{len(self)} jobs>"
