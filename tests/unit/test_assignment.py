"""The plan, by examples; tests/model/test_assignment_model.py has the rules for any input."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from strandline.cluster.assignment import Item, Place, Plan, plan
from strandline.cluster.work import Work


def place(name: str, *labels: str, capacity: float = 1.0, takes_new: bool = True) -> Place:
    number = int.from_bytes(name.encode(), "big")
    return Place(UUID(int=number), name, frozenset(labels), capacity, takes_new)


def places(count: int, **options: Any) -> list[Place]:
    return [place(f"n{number:03d}", **options) for number in range(count)]


def item(name: str, at: Place | None = None, **options: Any) -> Item:
    """Work that *at* runs."""
    about = {"needs", "together", "apart", "weight"} & set(options)
    work = {key: options.pop(key) for key in about}
    if "needs" in work:
        work["needs"] = frozenset(work["needs"])
    node = at.id if at is not None else None
    rest = {"last_name": "", "pinned_to": None, "is_paused": False}
    return Item(Work(name, **work), owner=node, target=node, **{**rest, **options})


def items(count: int, **options: Any) -> list[Item]:
    return [item(f"w{number:04d}", **options) for number in range(count)]


def after(made: Plan, before: Sequence[Item]) -> list[Item]:
    """What is there once every node has done what the plan says."""
    targets = made.targets
    return [
        replace(one, target=targets[one.work.name], owner=targets[one.work.name]) for one in before
    ]


def settled(there: Sequence[Place], work: Sequence[Item]) -> list[Item]:
    return after(plan(there, work, moves=None), work)


def changed(made: Plan, before: Sequence[Item]) -> list[str]:
    return [one.work.name for one in before if made.targets[one.work.name] != one.target]


def loads(made: Plan, there: Sequence[Place]) -> list[int]:
    count = Counter(made.targets.values())
    return [count[one.id] for one in there]


def named(made: Plan, there: Sequence[Place]) -> dict[str, str | None]:
    names: dict[UUID | None, str | None] = {one.id: one.name for one in there}
    names[None] = None
    return {work: names[node] for work, node in made.targets.items()}


# ---- balance


def test_work_is_shared_evenly() -> None:
    there = places(3)

    made = plan(there, items(8), moves=0)

    assert sorted(loads(made, there)) == [2, 3, 3]
    assert made.unplaced == {}
    assert made.moves == 0


def test_a_settled_cluster_is_left_alone() -> None:
    there = places(3)
    work = settled(there, items(20))

    again = plan(there, work, moves=None)

    assert changed(again, work) == []
    assert again.moves == 0


def test_of_a_lost_node_exactly_its_work_moves() -> None:
    there = places(4)
    work = settled(there, items(40))
    lost = there[1]

    made = plan([one for one in there if one is not lost], work, moves=None)

    assert changed(made, work) == [one.work.name for one in work if one.target == lost.id]
    assert made.moves == 0
    assert sorted(loads(made, there)) == [0, 13, 13, 14]


def test_a_node_that_joins_gets_its_fair_share_and_nothing_else_moves() -> None:
    there = places(10)
    work = settled(there, items(100))
    new = place("new")

    made = plan([*there, new], work, moves=None)

    moved = changed(made, work)
    assert {made.targets[name] for name in moved} == {new.id}
    assert 7 <= len(moved) <= 100 // 11
    assert made.moves == len(moved)


def test_moves_for_balance_stay_within_what_is_allowed() -> None:
    there = places(4)
    work = items(40, at=there[0])

    rounds = 0
    while True:
        made = plan(there, work, moves=4)
        if not made.moves:
            break
        assert made.moves == len(changed(made, work)) <= 4
        work = after(made, work)
        rounds += 1

    assert rounds >= 7
    assert max(loads(made, there)) <= 11


def test_without_moves_only_orphans_are_placed() -> None:
    there = places(2)
    work = [*items(10, at=there[0]), item("orphan"), item("lost", at=place("gone"))]

    made = plan(there, work, moves=0)

    assert changed(made, work) == ["orphan", "lost"]
    assert loads(made, there) == [10, 2]


def test_load_follows_capacity() -> None:
    there = [place("big", capacity=3.0), place("small"), place("tiny", capacity=0.5)]

    made = plan(there, items(45), moves=0)

    assert loads(made, there) == [30, 10, 5]


def test_weights_count_and_not_the_number_of_works() -> None:
    there = places(2)
    work = [item("heavy", weight=6.0), *items(6)]

    made = plan(there, work, moves=0)

    assert sorted(loads(made, there)) == [1, 6]


def test_a_difference_within_the_slack_moves_nothing() -> None:
    there = places(2)
    work = [*items(110, at=there[0]), *[item(f"x{n}", at=there[1]) for n in range(92)]]

    assert plan(there, work, moves=None, slack=0.1).moves == 0
    assert plan(there, work, moves=None, slack=0.05).moves > 0


def test_work_without_weight_is_placed_and_never_moved_for_balance() -> None:
    there = places(2)
    work = items(10, at=there[0], weight=0.0)

    assert plan(there, work, moves=None).moves == 0
    assert plan(there, items(3, weight=0.0), moves=0).unplaced == {}


def test_nodes_of_other_labels_do_not_make_the_rest_trade() -> None:
    """Half the nodes can run nothing; an average over all nodes would never be reached."""
    able = [place(f"a{n}", "v2") for n in range(3)]
    work = settled(able, items(29, needs=["v2"]))

    made = plan([*able, *places(3)], work, moves=None)

    assert made.moves == 0


# ---- conditions


def test_work_runs_only_where_all_it_needs_is() -> None:
    there = [place("old", "orders:v1"), place("new", "orders:v1", "orders:v2")]

    made = plan(there, items(6, needs=["orders:v1", "orders:v2"]), moves=0)

    assert loads(made, there) == [0, 6]


def test_work_leaves_a_node_that_lacks_what_it_needs() -> None:
    there = [place("old"), place("new", "v2")]

    made = plan(there, [item("w", at=there[0], needs=["v2"])], moves=0)

    assert named(made, there) == {"w": "new"}
    assert made.moves == 0


def test_what_nobody_can_run_is_told_with_the_reason() -> None:
    there = [place("a", "x"), place("b", "y")]
    work = [
        item("nobody", needs=["z"]),
        item("together", needs=["x", "y"]),
        item("dangling", pinned_to="c"),
        item("lacking", pinned_to="a", needs=["y"]),
    ]

    made = plan(there, work, moves=0)

    assert made.unplaced == {
        "nobody": "no node has z",
        "together": "no node has all of x, y",
        "dangling": "pinned to 'c', and no node of that name takes work",
        "lacking": "pinned to 'a', which lacks y",
    }
    assert set(made.targets.values()) == {None}
    assert plan([], [item("w")], moves=0).unplaced == {"w": "no node takes work"}


def test_pinned_work_goes_to_nodes_of_that_name_and_stays() -> None:
    twins = [place("a"), Place(UUID(int=7), "a", frozenset(), 1.0)]
    there = [*twins, place("b")]
    work = [item(f"w{n}", at=there[2], pinned_to="a") for n in range(4)]

    made = plan(there, work, moves=0)

    assert loads(made, there) == [2, 2, 0]
    assert plan(there, after(made, work), moves=None).moves == 0


def test_paused_work_has_no_node_and_counts_as_no_load() -> None:
    there = places(2)
    work = [*items(4, at=there[0], is_paused=True), item("x", at=there[0]), item("y")]

    made = plan(there, work, moves=None)

    assert sorted(loads(made, there)) == [1, 1]
    assert made.unplaced == {}


def test_work_avoids_a_node_while_another_can_run_it() -> None:
    there = [place("a", "v2"), place("b", "v2"), place("c")]
    work = [item("w", at=there[0], needs=["v2"], avoid=frozenset({"a"}))]

    assert named(plan(there, work, moves=0), there) == {"w": "b"}
    alone = [there[0], there[2]]
    assert named(plan(alone, work, moves=0), alone) == {"w": "a"}


def test_a_node_with_late_beats_keeps_its_work_and_gets_none() -> None:
    late = place("late", takes_new=False)
    there = [late, place("b")]
    work = [item("kept", at=late), *items(4)]

    made = plan(there, work, moves=0)

    assert loads(made, there) == [1, 4]
    reason = "the nodes that could run it take nothing new at the moment"
    assert plan([late], [item("w")], moves=0).unplaced == {"w": reason}


# ---- together and apart


def test_what_belongs_together_runs_on_one_node() -> None:
    there = places(3)
    work = [item(f"db{n % 6}/{n}", together=f"db{n % 6}") for n in range(48)]

    made = plan(there, work, moves=0)

    nodes = {work.partition("/")[0]: set() for work in made.targets}
    for name, node in made.targets.items():
        nodes[name.partition("/")[0]].add(node)
    assert [len(one) for one in nodes.values()] == [1] * 6
    assert loads(made, there) == [16, 16, 16]


def test_what_was_torn_apart_is_brought_together_where_most_of_it_is() -> None:
    there = places(2)
    work = [
        item("a", at=there[0], together="db"),
        item("b", at=there[1], together="db"),
        item("c", at=there[1], together="db"),
    ]

    made = plan(there, work, moves=0)

    assert loads(made, there) == [0, 3]


def test_what_was_torn_apart_is_not_brought_to_a_node_with_late_beats() -> None:
    late = place("late", takes_new=False)
    there = [late, place("b")]
    mostly_late = [item(f"w{n}", at=late, together="db") for n in range(3)]

    torn = plan(there, [*mostly_late, item("x", at=there[1], together="db")], moves=0)
    grown = plan(there, [*mostly_late, item("x", together="db")], moves=0)

    assert loads(torn, there) == [0, 4]
    assert loads(grown, there) == [4, 0]  # not torn apart for what is new; it waits there


def test_what_no_node_can_run_together_is_cut_only_where_it_must_be() -> None:
    there = [place("old", "v1"), place("new", "v2")]
    work = [
        item("a", needs=["v1"], together="db"),
        item("b", needs=["v2"], together="db"),
        item("c", together="db"),
        item("d", needs=["v3"], together="db"),
        item("e", pinned_to="nobody", together="db"),
    ]

    made = plan(there, work, moves=0)

    found = named(made, there)
    assert (found["a"], found["b"]) == ("old", "new")
    assert found["c"] in ("old", "new")
    assert set(made.unplaced) == {"d", "e"}


def test_a_group_larger_than_what_may_move_is_moved_as_one() -> None:
    there = places(2)
    work = [item(f"w{n}", at=there[0], together=f"g{n // 4}") for n in range(16)]

    made = plan(there, work, moves=1)

    assert made.moves == 4
    assert loads(made, there) == [12, 4]


def test_what_belongs_apart_is_spread_over_all_nodes() -> None:
    there = places(4)
    work = [*items(30), *[item(f"a{n}", apart="orders") for n in range(6)]]

    made = plan(there, work, moves=0)

    spread = Counter(made.targets[f"a{n}"] for n in range(6))
    assert sorted(spread.values()) == [1, 1, 2, 2]
    assert sorted(loads(made, there)) == [9, 9, 9, 9]


def test_what_belongs_apart_goes_to_different_nodes_also_where_there_is_more_load() -> None:
    there = places(2)
    work = [*items(8, at=there[0]), item("a1", apart="orders"), item("a2", apart="orders")]

    made = plan(there, work, moves=0)

    assert loads(made, there) == [9, 1]


def test_what_shares_a_node_is_spread_when_there_are_more_nodes() -> None:
    there = places(2)
    work = settled(there, [item(f"a{n}", apart="orders") for n in range(4)])

    made = plan([*there, *places(4)[2:]], work, moves=None)

    assert sorted(Counter(made.targets.values()).values()) == [1, 1, 1, 1]
    assert made.moves == 2


def test_apart_uses_every_node_and_then_follows_capacity() -> None:
    there = [place("big", capacity=10.0), place("b"), place("c")]

    made = plan(there, [item(f"a{n:02d}", apart="x") for n in range(12)], moves=0)

    assert loads(made, there) == [10, 1, 1]


def test_load_is_not_evened_at_the_cost_of_the_spread() -> None:
    there = places(2)
    work = [
        item("a1", at=there[0], apart="x", weight=5.0),
        item("a2", at=there[1], apart="x", weight=1.0),
    ]

    assert plan(there, work, moves=None).moves == 0


# ---- names


def test_work_waits_for_its_name_and_gets_back_to_it() -> None:
    there = places(3)
    back = place("back")
    work = settled(there, items(12))
    waiting = [
        replace(one, last_name="back", waits_for_name=True) if number % 4 == 0 else one
        for number, one in enumerate(work)
    ]

    made = plan([*there, back], waiting, moves=None)

    assert changed(made, work) == ["w0000", "w0004", "w0008"]
    assert {made.targets[name] for name in changed(made, work)} == {back.id}
    assert plan([*there, back], waiting, moves=0).moves == 0


def test_an_orphan_goes_to_the_name_it_waits_for() -> None:
    there = places(3)
    work = [
        *items(3, at=there[2]),
        item("w", at=place("gone"), last_name="n002", waits_for_name=True),
    ]

    assert plan(there, work, moves=0).targets["w"] == there[2].id


def test_work_does_not_return_where_that_makes_the_load_less_even() -> None:
    there = places(2)
    work = [
        *items(6, at=there[0]),
        item("w", at=there[1], last_name=there[0].name, waits_for_name=True),
    ]

    assert plan(there, work, moves=1).targets["w"] == there[1].id


def test_of_two_nodes_of_a_name_none_is_more_of_a_home() -> None:
    first, second = twins = [Place(UUID(int=7), "a", frozenset(), 1.0), place("a")]
    work = [
        *[item(f"x{n}", at=first, last_name="a", waits_for_name=True) for n in range(10)],
        *[item(f"y{n}", at=second, last_name="a", waits_for_name=True) for n in range(12)],
    ]

    assert changed(plan(twins, work, moves=None), work) == []
    assert changed(plan(twins[::-1], work, moves=None), work) == []


# ---- order and speed


def test_the_order_of_the_input_does_not_matter() -> None:
    there = places(5)
    work = [
        item(f"w{n}", apart=f"k{n % 3}", weight=1 + n % 4, together=f"g{n}" if n % 5 else "g")
        for n in range(40)
    ]
    made = plan(there, work, moves=None)

    for seed in range(5):
        random.Random(seed).shuffle(there)
        random.Random(seed).shuffle(work)
        assert plan(there, work, moves=None) == made


def timed(there: Sequence[Place], work: Sequence[Item], moves: int | None) -> tuple[Plan, float]:
    begun = time.thread_time()  # the machine may be busy with something else
    made = plan(there, work, moves=moves)
    return made, time.thread_time() - begun


@pytest.mark.parametrize("shape", ["plain", "apart", "labels", "weights"])
def test_200_nodes_and_5000_works_are_planned_in_well_under_a_second(shape: str) -> None:
    random_ = random.Random(7)
    labels = [f"l{n}" for n in range(50)]
    capacities = [1.0, 2.0, 4.0] if shape == "weights" else [1.0]
    there = [
        place(
            f"n{n:03d}",
            *(one for one in labels if shape != "labels" or random_.random() < 0.8),
            capacity=random_.choice(capacities),
        )
        for n in range(200)
    ]
    work = [
        item(
            f"p{n // 8}:{n % 8}",
            needs=[labels[n % 50]] if shape == "labels" else [],
            apart=f"p{n // 8}" if shape in ("apart", "labels") else "",
            weight=random_.choice([0.5, 1.0, 3.0]) if shape == "weights" else 1.0,
        )
        for n in range(5000)
    ]

    cold, cold_seconds = timed(there, work, 0)
    work = settled(there, work)
    steady, steady_seconds = timed(there, work, None)
    lost, lost_seconds = timed(there[:-1], work, None)
    joined, joined_seconds = timed([*there, place("x", *labels)], work, 500)

    assert cold.unplaced == {}
    assert changed(steady, work) == []
    orphans = {one.work.name for one in work if one.target == there[-1].id}
    assert orphans <= set(changed(lost, work))
    assert lost.moves == 0
    fair = 5000 / 201 if shape != "weights" else 5000
    assert 0 < joined.moves <= fair
    assert max(cold_seconds, steady_seconds, lost_seconds, joined_seconds) < 0.7
