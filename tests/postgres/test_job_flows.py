"""Flows: what is freed, cancelled, counted and kept when jobs end, in any order and at once."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from job_bench import Desk, call, desk, desks, drained

from strandline.app import App
from strandline.errors import DuplicateJob
from strandline.jobs import flows, queues
from strandline.jobs.flow import batch, chain, dag
from strandline.jobs.row import Claimed


async def complete(one: Desk, jobs: list[Claimed]) -> None:
    assert await one.end(*jobs) == len(jobs)


async def left_over(one: Desk) -> tuple[int, int]:
    """Live jobs and edges."""
    return (
        await one.value("SELECT count(*) FROM jobs"),
        await one.value("SELECT count(*) FROM job_edges"),
    )


async def test_a_chain_runs_link_by_link_and_hands_results_on(database_url: str) -> None:
    async with desk(database_url) as one:
        plan = await one.enqueue(chain(call("a"), call("b"), call("c")))

        for number, job in enumerate(plan.jobs):
            (claimed,) = await one.claim(10)
            assert claimed.id == job.id
            expected = {"work": str(number - 1)} if number else {}
            assert await one.run(flows.results(claimed.id)) == expected
            await one.end(claimed, result=str(number))

        assert await left_over(one) == (0, 0)


async def test_a_diamond_waits_for_both_sides(database_url: str) -> None:
    async with desk(database_url) as one:
        plan = await one.enqueue(
            dag(
                {
                    "top": call(),
                    "left": (call(), ["top"]),
                    "right": (call(), ["top"]),
                    "end": (call(), ["left", "right"]),
                }
            )
        )
        await one.end(*await one.claim(10), result="0")
        left, right = await one.claim(10)
        await one.end(left, result='"l"')
        assert (await one.states())[plan.names["end"]] == 3

        await one.end(right, result='"r"')

        (last,) = await one.claim(10)
        assert last.id == plan.names["end"]
        assert await one.run(flows.results(last.id)) == {"left": '"l"', "right": '"r"'}


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_thousand_nodes_run_after_their_parents_whoever_completes_them(
    database_url: str, seed: int
) -> None:
    chance = random.Random(seed)
    nodes: dict[str, Any] = {}
    for number in range(1000):
        known = list(nodes)[-50:]
        after = chance.sample(known, min(len(known), chance.randrange(4)))
        nodes[f"n{number}"] = (call(), after)
    done: set[int] = set()

    async with desks(database_url, 8) as found:
        plan = await found[0].enqueue(dag(nodes))
        parents: dict[int, set[int]] = {}
        for edge in plan.edges:
            parents.setdefault(edge.child, set()).add(edge.parent)

        async def handle(one: Desk, jobs: list[Claimed]) -> None:
            for job in jobs:
                assert parents.get(job.id, set()) <= done, "before its parents"
            done.update(job.id for job in jobs)
            chance.shuffle(jobs)
            await complete(one, jobs)

        await drained(found, handle, limit=20)

        assert len(done) == 1000
        assert await left_over(found[0]) == (0, 0)


async def test_the_callbacks_of_ten_thousand_run_once_when_all_are_done(database_url: str) -> None:
    async with desks(database_url, 8) as found:
        plan = await found[0].enqueue(
            batch([call() for _ in range(10_000)], then=call("then"), always=call("always"))
        )
        callbacks = {plan.batches[0].then_job, plan.batches[0].always_job}
        ran: list[int] = []

        async def handle(one: Desk, jobs: list[Claimed]) -> None:
            if callbacks & {job.id for job in jobs}:
                assert len(ran) >= 10_000
            await complete(one, jobs)
            ran.extend(job.id for job in jobs)

        await drained(found, handle, limit=500)

        assert len(ran) == len(set(ran)) == 10_002
        row = await found[0].connection.fetchrow("SELECT * FROM job_batches")
        assert (row["completed"], row["failed"]) == (10_000, 0)
        assert row["ended_at"] is not None


async def test_a_cancelled_parent_cancels_all_that_comes_after_it(database_url: str) -> None:
    async with desk(database_url) as one:
        plan = await one.enqueue(
            dag(
                {
                    "bad": call(),
                    "good": call(),
                    "both": (call(), ["bad", "good"]),
                    "after": (call(), ["both"]),
                    "untouched": (call(), ["good"]),
                }
            )
        )
        bad, good = await one.claim(10)
        await one.end(bad, ending="cancelled", reason="no")

        gone = {plan.names["both"], plan.names["after"]}
        assert gone.isdisjoint(await one.states())
        history = await one.connection.fetch("SELECT id, outcome, reason FROM job_history")
        assert {row["id"] for row in history} == gone | {bad.id}
        assert {row["outcome"] for row in history} == {"cancelled"}

        await one.end(good)
        (last,) = await one.claim(10)
        assert last.id == plan.names["untouched"]
        await one.end(last)
        assert await left_over(one) == (0, 0)


async def test_a_failed_member_cancels_then_at_once_and_always_waits_for_the_rest(
    database_url: str,
) -> None:
    async with desk(database_url) as one:
        plan = await one.enqueue(
            chain(
                batch([call() for _ in range(3)], then=call("then"), always=call("always")),
                call("next"),
            )
        )
        row = plan.batches[0]
        first, *others = await one.claim(10)
        await one.end(first, ending="cancelled")

        states = await one.states()
        assert row.then_job not in states
        assert plan.last not in states
        assert states[row.always_job or 0] == 3

        await one.end(*others)
        assert [job.id for job in await one.claim(10)] == [row.always_job]


async def test_a_dead_member_holds_the_batch_until_it_is_retried(database_url: str) -> None:
    async with desk(database_url) as one:
        plan = await one.enqueue(
            batch([call(), chain(call("a"), call("b"))], then=call("then"), always=call("x"))
        )
        row = plan.batches[0]
        first, second = await one.claim(10)
        await one.end(first, second, ending="dead", error={"class": "E"})
        assert await one.claim(10) == []
        assert set((await one.states()).values()) == {3}

        await _revive(one)
        found = await one.claim(10)
        assert {job.id for job in found} == {first.id, second.id}
        await one.end(*found)
        await one.end(*await one.claim(10))

        assert {job.id for job in await one.claim(10)} == {row.then_job, row.always_job}


async def test_a_discarded_dead_parent_cancels_its_children(database_url: str) -> None:
    async with desk(database_url) as one:
        plan = await one.enqueue(batch([chain(call(), call())], always=call("always")))
        await one.end(*await one.claim(10), ending="dead", error={"class": "E"})

        async with one.connection.transaction():
            dead = await one.connection.fetchrow("SELECT id, batch FROM dead_jobs")
            await one.run(flows.hold([(dead["id"], False)]))
            await one.connection.execute("DELETE FROM dead_jobs")
            item = flows.Followed(dead["id"], "discarded", None, dead["batch"])
            freed = await one.run(flows.follow([item]))

        assert freed.queues == {"default"}
        assert await one.states() == {plan.batches[0].always_job: 0}
        counts = await one.connection.fetchrow("SELECT completed, failed FROM job_batches")
        assert tuple(counts) == (0, 2)


async def test_batches_in_batches_end_from_the_inside_out(database_url: str) -> None:
    async with desk(database_url) as one:
        plan = await one.enqueue(
            batch([batch([batch([call()]), call()], then=call("inner"))], then=call("outer"))
        )
        await one.end(*await one.claim(10))
        (inner,) = await one.claim(10)
        assert len(await one.states()) == 2
        await one.end(inner)

        (outer,) = await one.claim(10)
        assert outer.id == plan.last
        await one.end(outer)
        assert await one.value("SELECT count(*) FROM job_batches WHERE ended_at IS NULL") == 0
        assert await left_over(one) == (0, 0)


async def test_a_cancelled_member_of_an_inner_batch_lets_only_always_run(database_url: str) -> None:
    async with desk(database_url) as one:
        plan = await one.enqueue(
            batch(
                [batch([call(), call()], then=call("inner"), always=call("mend"))],
                then=call("outer"),
                always=call("last"),
            )
        )
        inner, outer = plan.batches
        await one.end(*await one.claim(10), ending="cancelled")

        (mend,) = await one.claim(10)
        assert mend.id == inner.always_job
        await one.end(mend)
        assert [job.id for job in await one.claim(10)] == [outer.always_job]
        assert outer.then_job not in await one.states()


async def test_a_child_with_a_time_of_its_own_is_scheduled(database_url: str) -> None:
    async with desk(database_url) as one:
        plan = await one.enqueue(chain(call(), call(delay=3600.0)))

        await one.end(*await one.claim())

        assert await one.states() == {plan.last: 1}


async def test_an_ordered_child_waits_for_its_parents_and_then_for_its_turn(
    database_url: str,
) -> None:
    async with desk(database_url) as one:
        parent, child = (await one.enqueue(chain(call(), call(key="k", ordered=True)))).jobs
        await one.insert(later := one.ordered("k"), last := one.ordered("k"))
        first, second = await one.claim(10)
        assert (first.id, second.id) == (parent.id, later.id)  # it does not hold its key meanwhile

        await one.end(first)
        assert await one.claim(10) == []
        await one.end(second)
        (third,) = await one.claim(10)
        assert third.id == child.id  # enqueued before the last
        await one.end(third)
        assert [job.id for job in await one.claim(10)] == [last.id]


async def test_a_cancelled_ordered_child_lets_its_key_go_on(database_url: str) -> None:
    async with desk(database_url) as one:
        await one.enqueue(chain(call(), call(key="k", ordered=True)))
        (parent,) = await one.claim(10)
        await one.insert(one.ordered("k"), other := one.ordered("k"))
        (head,) = await one.claim(10)

        await one.end(parent, ending="cancelled")
        await one.end(head)

        assert [job.id for job in await one.claim(10)] == [other.id]


async def test_completers_and_operators_shuffled_at_once_do_not_deadlock(database_url: str) -> None:
    chance = random.Random(5)
    async with desks(database_url, 8) as found:
        *workers, operator = found
        for _ in range(6):
            await operator.enqueue(
                dag(
                    {
                        "a": batch([call() for _ in range(30)], then=call(), always=call()),
                        **{f"b{n}": (call(), ["a"] if n % 3 else []) for n in range(20)},
                        **{
                            f"c{n}": (call(), [f"b{m}" for m in chance.sample(range(20), 3)])
                            for n in range(20)
                        },
                        "d": (batch([call() for _ in range(5)]), [f"c{n}" for n in range(20)]),
                    }
                )
            )

        async def handle(one: Desk, jobs: list[Claimed]) -> None:
            chance.shuffle(jobs)
            ending: Any = "cancelled" if chance.random() < 0.05 else "completed"
            await one.end(*jobs, ending=ending)

        async def cancel() -> None:
            while states := await operator.states():
                waiting = [id_ for id_, state in states.items() if state == 3]
                if not waiting:
                    return
                await operator.cancel_waiting(*chance.sample(waiting, min(4, len(waiting))))
                await asyncio.sleep(0.01)

        await asyncio.gather(drained(workers, handle, limit=15), cancel())
        await drained(workers, handle)

        assert await left_over(operator) == (0, 0)
        assert await operator.value("SELECT count(*) FROM job_batches WHERE ended_at IS NULL") == 0


async def test_completers_of_many_parents_of_the_same_children_do_not_deadlock(
    database_url: str,
) -> None:
    chance = random.Random(7)
    layers = [[f"n{layer}-{number}" for number in range(24)] for layer in range(6)]
    nodes: dict[str, Any] = {}
    for before, names in zip([[], *layers], layers, strict=False):
        nodes |= {name: (call(), before) for name in names}

    async def handle(one: Desk, jobs: list[Claimed]) -> None:
        chance.shuffle(jobs)
        await complete(one, jobs)

    async with desks(database_url, 8) as found:
        await found[0].enqueue(dag(nodes))
        await drained(found, handle, limit=3)

        assert await left_over(found[0]) == (0, 0)


async def test_a_flow_whose_job_is_there_already_is_not_enqueued(database_url: str) -> None:
    async with desk(database_url) as one:
        await one.enqueue(chain(call("a", unique="u"), call("b")))

        with pytest.raises(DuplicateJob):
            await one.enqueue(chain(call("c"), call("d", unique="u")))

        assert len(await one.states()) == 2
        assert await one.value("SELECT count(*) FROM job_edges") == 1


async def _revive(one: Desk) -> None:
    await one.connection.execute(
        "WITH dead AS (DELETE FROM dead_jobs RETURNING *)"
        " INSERT INTO jobs (id, batch, created_at, priority, attempt, max_attempts, flags, queue,"
        " kind, key, args) SELECT id, batch, created_at, priority, attempt, max_attempts + 1,"
        " flags, queue, kind, key, args FROM dead"
    )


async def test_a_node_runs_a_flow_with_limits_and_order_to_its_end(database_url: str) -> None:
    app = App("flows", database_url, pulse="loop", pulse_interval=0.1, job_poll_interval=0.05)
    ran: list[str] = []
    at_once = most = 0

    @app.job
    async def step(name: str) -> str:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.002)
        at_once -= 1
        ran.append(name)
        return name

    async with app:
        limits = queues.declared("default", at_most=3, per_key=2)
        await app.pools.work.run(queues.declare(limits, schema="strandline"))
        await app.start()
        inner = batch(
            [step.call(f"m{number}").with_(key=f"k{number % 3}") for number in range(30)],
            then=step.call("then"),
        )
        ordered = [step.call(f"o{number}").with_(key="o", ordered=True) for number in range(10)]
        ref = await app.enqueue(
            dag({"a": step.call("a"), "b": (inner, ["a"]), "c": (chain(*ordered), ["b"])})
        )

        async with asyncio.timeout(60):
            assert await ref.last.result(timeout=60) == "o9"

    assert ran[0] == "a"
    assert {f"m{number}" for number in range(30)} == set(ran[1:31])
    assert ran[31:] == ["then", *(f"o{number}" for number in range(10))]
    assert most <= 3
