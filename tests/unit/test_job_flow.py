"""Flows as values, and as rows: who waits for whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from job_bench import KINDS, call

from strandline.errors import InvalidInput
from strandline.jobs import flows
from strandline.jobs.flow import Flow, batch, chain, dag
from strandline.jobs.flows import Plan
from strandline.jobs.row import Flag

A, B, C, D, E = (call(name) for name in "abcde")


def plan(flow: Flow) -> Plan:
    return flows.prepare(flow, KINDS, range(1, 1 + flows.needed(flow)))


def edges(made: Plan) -> set[tuple[int, int]]:
    return {(one.parent, one.child) for one in made.edges}


def blocked(made: Plan) -> list[int]:
    return [job.id for job in made.jobs if job.blocked]


def test_a_chain_is_one_after_the_other() -> None:
    made = plan(chain(A, B, C))

    assert edges(made) == {(1, 2), (2, 3)}
    assert blocked(made) == [2, 3]
    assert made.last == 3
    waits = Flag.HAS_PARENTS | Flag.WAITS
    assert [job.flags for job in made.jobs] == [
        Flag.HAS_CHILDREN,
        Flag.HAS_CHILDREN | waits,
        waits,
    ]


def test_the_callbacks_of_a_batch_wait_for_it_and_not_for_each_member() -> None:
    made = plan(batch([A, B, C], then=D, always=E))

    (row,) = made.batches
    assert (row.members, row.then_job, row.always_job) == (3, 5, 6)
    assert edges(made) == {(row.id, 5), (row.id, 6)}
    assert [one.lenient for one in made.edges] == [False, True]
    assert {job.batch for job in made.jobs} == {row.id, None}
    assert blocked(made) == [5, 6]


def test_a_dag_keeps_names_and_puts_parents_first() -> None:
    made = plan(
        dag({"last": (D, ["left", "right"]), "left": (B, ["a"]), "right": (C, ["a"]), "a": A})
    )

    ids = made.names
    assert set(ids) == {"a", "left", "right", "last"}
    assert edges(made) == {
        (ids["a"], ids["left"]),
        (ids["a"], ids["right"]),
        (ids["left"], ids["last"]),
        (ids["right"], ids["last"]),
    }
    assert {one.name for one in made.edges if one.child == ids["last"]} == {"left", "right"}
    assert made.last == ids["last"]
    order = [job.id for job in made.jobs]
    assert order.index(ids["a"]) == 0
    assert order.index(ids["last"]) == 3


def test_a_batch_in_a_chain_begins_together_and_ends_as_one() -> None:
    made = plan(chain(A, batch([B, C]), batch([D, E])))

    first, second = made.batches
    begin, b, c, d, e = (job.id for job in made.jobs)
    assert edges(made) == {(begin, b), (begin, c), (first.id, d), (first.id, e)}
    assert made.last is None
    assert (first.members, second.members) == (2, 2)


def test_a_batch_in_a_batch_is_one_more_member() -> None:
    made = plan(batch([A, batch([B, C], then=D)], then=E))

    inner, outer = made.batches
    assert inner.batch == outer.id
    assert inner.members == 2
    assert outer.members == 3  # a, the inner one, and its callback


def test_of_a_chain_in_a_batch_each_job_is_a_member() -> None:
    made = plan(batch([chain(A, B), C], then=D))

    assert made.batches[0].members == 3


def test_a_flow_as_part_of_a_dag_has_its_names_below_it() -> None:
    made = plan(
        dag({"load": dag({"x": A, "y": B}), "end": (C, ["load"]), "each": (batch([D]), ["end"])})
    )

    assert set(made.names) == {"load", "load.x", "load.y", "end"}
    assert sorted(one.name for one in made.edges if one.child == made.names["end"]) == [
        "load",
        "load#2",
    ]


def test_what_always_runs_waits_strictly_from_its_second_job_on() -> None:
    made = plan(batch([A], always=chain(B, C)))

    assert [one.lenient for one in made.edges] == [True, False]


def test_an_empty_batch_has_completed_already() -> None:
    made = plan(batch([], then=A, always=B))

    assert (made.batches, made.edges, blocked(made)) == ([], [], [])
    assert edges(plan(chain(A, batch([]), B))) == {(1, 3)}
    assert edges(plan(chain(A, batch([batch([])], then=B), C))) == {(1, 4), (4, 5)}


def test_what_comes_after_one_by_two_ways_waits_for_it_once() -> None:
    nothing = batch([])
    made = plan(dag({"a": A, "none": (nothing, ["a"]), "b": (B, ["none", "a"])}))

    assert [(one.parent, one.child, one.name) for one in made.edges] == [(1, 3, "a")]
    assert made.last == 3
    assert edges(plan(chain(A, dag({"x": nothing, "y": nothing}), B))) == {(1, 4)}


def test_an_empty_part_of_what_always_runs_does_not_make_the_next_wait_strictly() -> None:
    made = plan(batch([A], always=dag({"none": batch([]), "b": (B, ["none"]), "c": (C, ["b"])})))

    assert [one.lenient for one in made.edges] == [True, False]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: chain(), "at least one"),
        (lambda: dag({}), "at least one"),
        (lambda: chain(A, "b"), "'b'"),  # type: ignore[arg-type]
        (lambda: batch(A), "a list"),  # type: ignore[arg-type]
        (lambda: batch([A], then=3), "3"),  # type: ignore[arg-type]
        (lambda: dag({"a": (A, ["b"])}), "'b'"),
        (lambda: dag({"a": (A, "b")}), "before it"),
        (lambda: dag({"": A}), "1 to 100"),
        (lambda: dag({"a": (A, ["a"])}), "'a' -> 'a'"),
        (lambda: dag({"a": (A, ["c"]), "b": (B, ["a"]), "c": (C, ["b"])}), "circle"),
        (lambda: plan(batch([])), "without a call"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()

    assert told in str(caught.value)


def test_a_job_of_a_flow_that_is_there_already_refuses_the_flow() -> None:
    made = plan(chain(call("a", unique="u"), B))

    assert made.jobs[0].on_duplicate == "raise"


def test_too_many_jobs_are_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flows, "MOST_JOBS", 2)

    with pytest.raises(InvalidInput):
        plan(chain(A, B, C))
