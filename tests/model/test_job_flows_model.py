"""Any flow, ended in any order by two workers: what runs is what a reading of the flow says."""

from __future__ import annotations

import asyncio
import json
import os
import random
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_bench import Desk, call, desks

from strandline.errors import InvalidInput
from strandline.jobs.flow import Batch, Chain, Dag, Flow, batch, chain, dag
from strandline.jobs.job import Call

LIMITS = settings(
    max_examples=400 if os.environ.get("STRANDLINE_CHAOS") == "long" else 8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def dags(draw: st.DrawFn, parts: st.SearchStrategy[Any]) -> Dag:
    nodes: dict[str, Any] = {}
    for number in range(draw(st.integers(1, 5))):
        after = [name for name in nodes if draw(st.booleans())]
        nodes[f"n{number}"] = (draw(parts), after)
    names = draw(st.permutations(list(nodes)))
    return dag({name: nodes[name] for name in names})


def flows_of(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    callbacks = st.none() | parts
    return st.one_of(
        st.lists(parts, min_size=1, max_size=4).map(lambda some: chain(*some)),
        st.builds(
            lambda members, then, always: batch(members, then=then, always=always),
            st.lists(parts, max_size=4),
            callbacks,
            callbacks,
        ),
        dags(parts),
    )


CALLS = st.builds(lambda: call(""))
FLOWS = flows_of(st.recursive(CALLS, flows_of, max_leaves=12))


@dataclass
class Reading:
    """What is to run, by the words of the flow alone.

    Attributes:
        bad: Numbers of calls whose jobs are cancelled when they run.
        ran: Numbers of calls that run, with all that has to be over before.
    """

    bad: set[int]
    ran: dict[int, frozenset[int]] = field(default_factory=dict)

    def read(self, part: Any, ends: list[bool], before: frozenset[int]) -> Read:
        """*ends*: whether what it waits for completed; *before*: which calls that is."""
        if isinstance(part, Chain):
            return self.chain(part, ends, before)
        if isinstance(part, Batch):
            return self.batch(part, ends, before)
        if isinstance(part, Dag):
            return self.dag(part, ends, before)
        number = int(part.args[0])
        runs = all(ends)
        if runs:
            self.ran[number] = before
        done = runs and number not in self.bad
        return Read([done], done, frozenset({number}), frozenset({number}))

    def chain(self, part: Chain, ends: list[bool], before: frozenset[int]) -> Read:
        whole, everyone = True, frozenset[int]()
        for one in part.links:
            found = self.read(one, ends, before)
            ends, before = found.ends, found.last
            whole, everyone = whole and found.whole, everyone | found.everyone
        return Read(ends, whole, everyone, before)

    def batch(self, part: Batch, ends: list[bool], before: frozenset[int]) -> Read:
        members = [self.read(one, ends, before) for one in part.members]
        everyone = frozenset[int]().union(*(one.everyone for one in members))
        whole = all(one.whole for one in members)
        strict = lenient = ends
        after: Read | None = Read(ends, True, frozenset(), before)
        if everyone:
            strict, lenient, before = [whole], [True], everyone
            after = Read([whole], whole, frozenset(), everyone)
        elif part.then is None and part.always is not None:
            after = None
        called = []
        if part.then is not None:
            after = self.read(part.then, strict, before)
            called.append(after)
        last = [after] if after else []
        if part.always is not None:
            called.append(self.read(part.always, lenient, before))
            last.append(called[-1])
        return Read(
            [end for one in last for end in one.ends],
            whole and all(one.whole for one in called),
            everyone.union(*(one.everyone for one in called)),
            frozenset[int]().union(*(one.last for one in last)),
        )

    def dag(self, part: Dag, ends: list[bool], before: frozenset[int]) -> Read:
        found: dict[str, Read] = {}
        waited = {name for node in part.nodes for name in node.after}
        for node in part.nodes:
            parents = [found[name] for name in node.after]
            found[node.name] = self.read(
                node.part,
                [end for one in parents for end in one.ends] if parents else ends,
                frozenset[int]().union(*(one.last for one in parents)) if parents else before,
            )
        sinks = [one for name, one in found.items() if name not in waited]
        return Read(
            [end for one in sinks for end in one.ends],
            all(one.whole for one in found.values()),
            frozenset[int]().union(*(one.everyone for one in found.values())),
            frozenset[int]().union(*(one.last for one in sinks)),
        )


@dataclass
class Read:
    """What came of a part.

    Attributes:
        ends: Of what follows waits for: whether it completed.
        whole: All in it completed.
        everyone: All calls in it.
        last: Those that are over before what follows runs.
    """

    ends: list[bool]
    whole: bool
    everyone: frozenset[int]
    last: frozenset[int]


def numbered(part: Any, numbers: Any) -> Any:
    """*part* with each call's number as its argument."""
    if isinstance(part, Call):
        return call(str(next(numbers)))
    if isinstance(part, Chain):
        return Chain(tuple(numbered(one, numbers) for one in part.links))
    if isinstance(part, Dag):
        nodes = [(one.name, numbered(one.part, numbers), one.after) for one in part.nodes]
        return dag({name: (made, after) for name, made, after in nodes})
    members = tuple(numbered(one, numbers) for one in part.members)
    then = None if part.then is None else numbered(part.then, numbers)
    always = None if part.always is None else numbered(part.always, numbers)
    return Batch(members, then, always)


@LIMITS
@given(flow=FLOWS, bad=st.sets(st.integers(0, 15), max_size=3), seed=st.integers(0, 2**16))
def test_what_runs_is_what_the_flow_says(
    database_url: str, flow: Flow, bad: set[int], seed: int
) -> None:
    made = numbered(flow, count())
    reading = Reading(bad)
    reading.read(made, [], frozenset())

    asyncio.run(_run(database_url, made, bad, reading.ran, random.Random(seed)))


async def _run(
    url: str, flow: Flow, bad: set[int], wanted: dict[int, frozenset[int]], chance: random.Random
) -> None:
    ran: list[int] = []
    async with desks(url, 2) as found:
        await found[0].connection.execute(
            "TRUNCATE jobs, job_edges, job_batches, job_history, dead_jobs"
        )
        try:
            plan = await found[0].enqueue(flow)
        except InvalidInput:
            assert not wanted
            return
        over: set[int] = set()
        while jobs := await found[0].claim(100):
            chance.shuffle(jobs)
            while jobs:
                some = [jobs.pop() for _ in range(chance.randint(1, len(jobs)))]
                await _end(chance.choice(found), some, bad, ran)
            over = await _over(found[0], len(plan.jobs), ran)
            for number in ran:
                assert number in wanted, "it ran"
        assert sorted(ran) == sorted(wanted), "what ran is not what should have"
        assert over == set(range(len(plan.jobs)))
        places = {number: place for place, number in enumerate(ran)}
        for number, before in wanted.items():
            for other in before & places.keys():
                assert places[other] < places[number], f"{number} ran before {other}"
        assert await found[0].value("SELECT count(*) FROM job_edges") == 0
        open_ = "SELECT count(*) FROM job_batches WHERE ended_at IS NULL OR completed + failed <> members"
        assert await found[0].value(open_) == 0


async def _end(one: Desk, jobs: list[Any], bad: set[int], ran: list[int]) -> None:
    numbers = {job.id: int(json.loads(job.args)["name"]) for job in jobs}
    ran.extend(numbers.values())
    for ending in ("completed", "cancelled"):
        some = [job for job in jobs if (numbers[job.id] in bad) == (ending == "cancelled")]
        if some:
            assert await one.end(*some, ending=ending) == len(some)


async def _over(one: Desk, size: int, ran: list[int]) -> set[int]:
    live = await one.column("SELECT (args::json->>'name')::int FROM jobs")
    assert not set(live) & set(ran)
    return set(range(size)) - set(live)
