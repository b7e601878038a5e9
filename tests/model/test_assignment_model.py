"""The plan's rules, for any nodes and any work."""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from strandline.cluster.assignment import Item, Place, Plan, plan
from strandline.cluster.work import Work

LABELS = ("v1", "v2", "gpu")
NAMES = ("a", "b", "c", "d", "e")
SLACK = 0.1
RATIO = (1 + SLACK) / (1 - SLACK)
EXAMPLES = int(os.environ.get("PLAN_EXAMPLES", "100"))  # raise it to search longer

_labels = st.frozensets(st.sampled_from(LABELS), max_size=2)
_names = st.sampled_from(NAMES)


@st.composite
def _places(draw: st.DrawFn, least: int = 0) -> list[Place]:
    count = draw(st.integers(least, 6))
    return [
        Place(
            UUID(int=number + 1),
            draw(_names),
            draw(st.frozensets(st.sampled_from(LABELS))),
            draw(st.sampled_from([0.5, 1.0, 1.0, 1.0, 3.0])),
            draw(st.sampled_from([True, True, True, True, False])),
        )
        for number in range(count)
    ]


@st.composite
def _items(draw: st.DrawFn, together: bool = True) -> list[Item]:
    found = []
    for number in range(draw(st.integers(0, 12))):
        nodes = st.none() | st.integers(1, 8).map(lambda one: UUID(int=one))  # 7, 8 are gone
        target = draw(nodes)
        work = Work(
            f"w{number:02d}",
            needs=draw(st.sampled_from([frozenset(), frozenset()]) | _labels),
            together=draw(st.sampled_from(["", "", "g", "h"])) if together else "",
            apart=draw(st.sampled_from(["", "", "x", "y"])),
            weight=draw(st.sampled_from([0.0, 0.25, 1.0, 1.0, 1.0, 2.0, 5.0])),
        )
        item = Item(
            work,
            owner=draw(st.just(target) | nodes),
            target=target,
            last_name=draw(_names),
            pinned_to=draw(st.sampled_from([None, None, None]) | _names),
            is_paused=draw(st.sampled_from([False, False, False, True])),
            avoid=draw(st.just(frozenset()) | st.frozensets(_names, max_size=2)),
            waits_for_name=draw(st.booleans()),
        )
        found.append(item)
    return found


@dataclass
class Judge:
    """Knows the rules, and no way to keep them."""

    places: Sequence[Place]
    items: Sequence[Item]

    def __post_init__(self) -> None:
        self.by_id = {place.id: place for place in self.places}
        self.by_name = {item.work.name: item for item in self.items}

    def able(self, *items: Item) -> list[Place]:
        """Who may run all of *items*, avoided or not."""
        needs = frozenset().union(*(item.work.needs for item in items))
        pins = {item.pinned_to for item in items} - {None}
        return [place for place in self.places if needs <= place.labels and pins <= {place.name}]

    def takers(self, item: Item) -> list[Place]:
        """Who may be given *item*."""
        able = [place for place in self.able(item) if place.takes_new]
        return [place for place in able if place.name not in item.avoid] or able

    def keepers(self, item: Item) -> list[Place]:
        """Who may keep *item*."""
        able = self.able(item)
        is_choosy = any(place.takes_new and place.name not in item.avoid for place in able)
        return [place for place in able if not is_choosy or place.name not in item.avoid]

    def stays(self, item: Item) -> Place | None:
        """Where it is and may stay, if it runs alone."""
        for node in (item.target, item.owner):
            if node in self.by_id:
                place = self.by_id[node]
                return place if place in self.keepers(item) else None
        return None

    def loads(self, made: Plan) -> dict[UUID, float]:
        loads = {place.id: 0.0 for place in self.places}
        for name, node in made.targets.items():
            if node is not None:
                loads[node] += self.by_name[name].work.weight
        return {node: load / self.by_id[node].capacity for node, load in loads.items()}

    def alone(self) -> list[Item]:
        return [item for item in self.items if not item.work.together and not item.is_paused]


def _after(made: Plan, items: Sequence[Item]) -> list[Item]:
    targets = made.targets
    return [
        replace(
            item,
            target=targets[item.work.name],
            owner=targets[item.work.name],
            waits_for_name=False,
        )
        for item in items
    ]


def _changed(made: Plan, items: Sequence[Item]) -> list[str]:
    return [item.work.name for item in items if made.targets[item.work.name] != item.target]


_budgets = st.none() | st.integers(0, 6)


@settings(max_examples=EXAMPLES, deadline=None)
@given(places=_places(), items=_items(), moves=_budgets)
def test_conditions_are_never_broken(
    places: list[Place], items: list[Item], moves: int | None
) -> None:
    judge = Judge(places, items)

    made = plan(places, items, moves=moves)

    assert set(made.targets) == {item.work.name for item in items}
    assert set(made.unplaced) <= set(made.targets)
    for item in items:
        node = made.targets[item.work.name]
        if item.is_paused:
            assert node is None
            assert item.work.name not in made.unplaced
        elif node is None:
            assert made.unplaced[item.work.name]
            assert not judge.takers(item), "a node could run it"
        else:
            assert item.work.name not in made.unplaced
            assert judge.by_id[node] in judge.able(item)
            if node not in (item.target, item.owner) and not item.work.together:
                assert judge.by_id[node].takes_new


@settings(max_examples=EXAMPLES, deadline=None)
@given(places=_places(), items=_items(together=False), moves=_budgets)
def test_work_is_where_it_failed_only_if_nobody_else_can_run_it(
    places: list[Place], items: list[Item], moves: int | None
) -> None:
    judge = Judge(places, items)

    made = plan(places, items, moves=moves)

    for item in judge.alone():
        node = made.targets[item.work.name]
        if node is not None and judge.by_id[node].name in item.avoid:
            assert all(place.name in item.avoid for place in judge.takers(item))


@settings(max_examples=EXAMPLES, deadline=None)
@given(places=_places(), items=_items(), moves=_budgets)
def test_what_belongs_together_is_together_wherever_one_node_can_run_it(
    places: list[Place], items: list[Item], moves: int | None
) -> None:
    judge = Judge(places, items)

    made = plan(places, items, moves=moves)

    for key in ("g", "h"):
        group = [
            item
            for item in items
            if item.work.together == key and not item.is_paused and judge.able(item)
        ]
        if group and any(place.takes_new for place in judge.able(*group)):
            assert len({made.targets[item.work.name] for item in group}) == 1


@settings(max_examples=EXAMPLES, deadline=None)
@given(places=_places(), items=_items(together=False))
def test_without_moves_work_stays_where_it_may(places: list[Place], items: list[Item]) -> None:
    judge = Judge(places, items)

    made = plan(places, items, moves=0)

    assert made.moves == 0
    for item in judge.alone():
        place = judge.stays(item)
        if place is not None:
            assert made.targets[item.work.name] == place.id


@settings(max_examples=EXAMPLES, deadline=None)
@given(places=_places(), items=_items(), moves=_budgets)
def test_a_plan_made_from_its_own_result_changes_nothing(
    places: list[Place], items: list[Item], moves: int | None
) -> None:
    settled = _after(plan(places, items, moves=None), items)

    again = plan(places, settled, moves=moves)

    assert _changed(again, settled) == []
    assert again.moves == 0


@settings(max_examples=EXAMPLES, deadline=None)
@given(places=_places(), items=_items(together=False), moves=st.integers(0, 6))
def test_no_more_is_moved_than_may_be(places: list[Place], items: list[Item], moves: int) -> None:
    judge = Judge(places, items)

    made = plan(places, items, moves=moves)

    left = [
        item
        for item in judge.alone()
        if (place := judge.stays(item)) and made.targets[item.work.name] != place.id
    ]
    assert made.moves == len(left) <= moves


@settings(max_examples=EXAMPLES, deadline=None)
@given(places=_places(), items=_items(), moves=st.integers(1, 4))
def test_rounds_of_few_moves_end_in_a_settled_cluster(
    places: list[Place], items: list[Item], moves: int
) -> None:
    now = items
    for _ in range(4 * len(items) + 4):
        made = plan(places, now, moves=moves)
        now = _after(made, now)
        if not made.moves:
            break
    else:
        raise AssertionError("it never settles")

    assert _changed(plan(places, now, moves=None), now) == []


@settings(max_examples=EXAMPLES, deadline=None)
@given(places=_places(), items=_items(together=False))
def test_no_single_move_would_make_it_more_even(places: list[Place], items: list[Item]) -> None:
    judge = Judge(places, items)

    made = plan(places, items, moves=None, slack=SLACK)

    scores = judge.loads(made)
    kept: Counter[tuple[str, UUID]] = Counter()
    for item in judge.alone():
        node = made.targets[item.work.name]
        if node is not None and item.work.apart:
            kept[item.work.apart, node] += 1
    for item in judge.alone():
        node = made.targets[item.work.name]
        if node is None:
            continue
        old = judge.by_id[node]
        for new in judge.takers(item):
            if new.id == node:
                continue
            crowd = _crowding(kept, item.work.apart, old, new)
            assert crowd >= -1e-6, "another node has less of what belongs apart"
            weight, high, low = item.work.weight, scores[old.id], scores[new.id]
            evens = low + weight / new.capacity / 2 < high - weight / old.capacity / 2 - 1e-6
            if weight and evens and crowd <= 0:
                assert high <= RATIO * low * (1 + 1e-6), "it would even the load"


def _crowding(kept: Counter[tuple[str, UUID]], key: str, old: Place, new: Place) -> float:
    """Below 0: moving one of *key* from *old* to *new* would spread it more."""
    if not key:
        return 0.0
    here, there = kept[key, old.id], kept[key, new.id]
    lost = (here == 1) - (there == 0)
    if lost:
        return float(lost)
    cost = (2 * there + 1) / new.capacity if there else 0.0
    return cost - ((2 * here - 1) / old.capacity if here > 1 else 0.0)


@settings(max_examples=EXAMPLES, deadline=None)
@given(places=_places(), items=_items(), seed=st.integers(0, 99), moves=_budgets)
def test_the_order_of_the_input_does_not_matter(
    places: list[Place], items: list[Item], seed: int, moves: int | None
) -> None:
    made = plan(places, items, moves=moves)
    mixed_places, mixed_items = list(places), list(items)
    random.Random(seed).shuffle(mixed_places)
    random.Random(seed).shuffle(mixed_items)

    assert plan(mixed_places, mixed_items, moves=moves) == made


# ---- equal nodes and equal work: what can be said in numbers


@st.composite
def _equal(draw: st.DrawFn) -> tuple[list[Place], list[Item]]:
    """Nodes of one kind, and work that any of them may run, settled or thrown about."""
    places = [
        Place(UUID(int=number + 1), f"n{number}", frozenset(), 1.0)
        for number in range(draw(st.integers(1, 9)))
    ]
    apart = draw(st.sampled_from([(), ("x",), ("x", "y", "z"), ("", "x")]))
    items = []
    for number in range(draw(st.integers(0, 40))):
        key = apart[number % len(apart)] if apart else ""
        node = draw(st.none() | st.sampled_from(places).map(lambda place: place.id))
        items.append(Item(Work(f"w{number:02d}", apart=key), node, node, "", None, False))
    return places, items


@settings(max_examples=EXAMPLES, deadline=None)
@given(there=_equal())
def test_equal_nodes_have_equal_shares(there: tuple[list[Place], list[Item]]) -> None:
    places, items = there

    made = plan(places, items, moves=None, slack=SLACK)

    counts = sorted(Judge(places, items).loads(made).values())
    assert counts[-1] <= max(counts[0] + 1, RATIO * counts[0])
    for key in {item.work.apart for item in items} - {""}:
        spread = Counter(made.targets[item.work.name] for item in items if item.work.apart == key)
        each = [spread[place.id] for place in places]
        assert max(each) - min(each) <= 1


@settings(max_examples=EXAMPLES, deadline=None)
@given(there=_equal())
def test_a_join_moves_no_more_than_the_fair_share(
    there: tuple[list[Place], list[Item]],
) -> None:
    places, items = there
    settled = _after(plan(places, items, moves=None), items)
    new = Place(UUID(int=99), "new", frozenset(), 1.0)

    made = plan([*places, new], settled, moves=None)

    moved = _changed(made, settled)
    given = [name for name in moved if made.targets[name] == new.id]
    assert len(given) <= len(items) / (len(places) + 1)
    if len({item.work.apart for item in items}) < 2:  # else spreading one key may unsettle others
        assert given == moved


@settings(max_examples=EXAMPLES, deadline=None)
@given(there=_equal(), data=st.data())
def test_a_loss_moves_exactly_the_orphans(
    there: tuple[list[Place], list[Item]], data: st.DataObject
) -> None:
    places, items = there
    settled = _after(plan(places, items, moves=None), items)
    lost = data.draw(st.sampled_from(places))
    rest = [place for place in places if place is not lost]

    made = plan(rest, settled, moves=0)

    assert _changed(made, settled) == [item.work.name for item in settled if item.target == lost.id]
    assert bool(made.unplaced) == bool(items and not rest)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.25, 1.0, 2.0, 5.0]), max_size=40),
    capacities=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=1, max_size=8),
)
def test_no_node_has_more_than_its_share_and_the_largest_work(
    weights: list[float], capacities: list[float]
) -> None:
    places = [
        Place(UUID(int=number + 1), f"n{number}", frozenset(), capacity)
        for number, capacity in enumerate(capacities)
    ]
    items = [
        Item(Work(f"w{number:02d}", weight=weight), None, None, "", None, False)
        for number, weight in enumerate(weights)
    ]

    made = plan(places, items, moves=None)

    # Where a piece lies, it lies lower than it would on any other node: sum that up over all nodes.
    room = math.fsum(capacities)
    bound = (math.fsum(weights) + len(places) * max(weights, default=0.0)) / room
    scores = Judge(places, items).loads(made)
    assert max(scores.values()) <= bound * RATIO + 1e-9
