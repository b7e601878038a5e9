"""When the leader holds back: the brake, homes by name, rounds of moves. No clock but ours."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from strandline.cluster.restraint import Brake, Homes, Rounds
from strandline.cluster.sight import SeenNode, SeenWork, Sight


def node(number: int, **facts: Any) -> SeenNode:
    known: dict[str, Any] = {
        "name": f"n{number}",
        "state": "active",
        "labels": frozenset(),
        "capacity": 1.0,
        "beats": 1,
        "is_fresh": True,
        "is_late": False,
        "is_due": False,
        "due_in": 9.0,
        "gone": None,
    }
    return SeenNode(id=UUID(int=number), **{**known, **facts})


def due(number: int) -> SeenNode:
    return node(number, is_fresh=False, is_late=True, is_due=True, due_in=-1.0)


def work(name: str, target: int | None, owner: int | None = None, **facts: Any) -> SeenWork:
    known: dict[str, Any] = {
        "needs": frozenset(),
        "together": "",
        "apart": "",
        "weight": 1.0,
        "pinned_to": None,
        "is_paused": False,
        "owner_name": "",
        "avoid": frozenset(),
    }
    return SeenWork(
        name=name,
        target=None if target is None else UUID(int=target),
        owner=None if owner is None else UUID(int=owner),
        **{**known, **facts},
    )


def sight(*nodes: SeenNode, work: list[SeenWork] | None = None) -> Sight:
    return Sight({one.id: one for one in nodes}, work or [])


def numbers(nodes: list[SeenNode]) -> list[int]:
    return [one.id.int for one in nodes]


# ---- the brake


def test_few_silent_nodes_are_declared_dead_at_once() -> None:
    brake = Brake(10.0)

    dying, held = brake.judge(0.0, sight(due(1), due(2), node(3)))  # most, but only two

    assert (numbers(dying), held) == ([1, 2], [])
    assert numbers(brake.judge(0.0, sight(due(1), due(2), due(3), *map(node, (4, 5, 6))))[0]) == [
        1,
        2,
        3,
    ]  # three, but only half


def test_most_nodes_at_once_are_left_alone_once_more_for_so_long() -> None:
    brake = Brake(10.0)
    silent = [due(1), due(2), due(3)]
    seen = sight(*silent, node(4), node(5))

    dying, held = brake.judge(100.0, seen)
    assert (dying, numbers(held)) == ([], [1, 2, 3])
    assert brake.held_until(UUID(int=1)) == 110.0
    assert brake.judge(109.9, seen) == ([], [])
    assert numbers(brake.judge(110.0, seen)[0]) == [1, 2, 3]


def test_nodes_that_are_about_to_be_due_count_as_silent() -> None:
    """They did not all beat at the same moment, so they are not due at the same moment."""
    brake = Brake(10.0)

    dying, held = brake.judge(
        0.0, sight(due(1), node(2, is_late=True), node(3, is_late=True), node(4))
    )

    assert (dying, numbers(held)) == ([], [1])


def test_a_node_that_beats_again_is_forgotten_by_the_brake() -> None:
    brake = Brake(10.0)
    brake.judge(0.0, sight(due(1), due(2), due(3), node(4)))

    brake.judge(5.0, sight(node(1), due(2), due(3), node(4)))

    assert brake.held_until(UUID(int=1)) is None
    assert brake.held_until(UUID(int=2)) == 10.0
    dying, held = brake.judge(20.0, sight(due(1), due(2), due(3), node(4)))
    assert (numbers(dying), numbers(held)) == ([2, 3], [1])


# ---- homes


def test_work_of_a_node_that_leaves_returns_to_its_name() -> None:
    homes = Homes(30.0)

    found = homes.look(0.0, sight(node(1, state="draining"), node(2), work=[work("w", 1, 1)]))

    assert found == {"w": "n1"}
    seen = sight(node(1, state="left", gone=1.0), node(2), work=[work("w", 2, 2)])
    assert homes.look(1.0, seen) == {"w": "n1"}
    back = node(7, name="n1")
    assert homes.look(20.0, sight(back, node(2), work=[work("w", 2, 2)])) == {"w": "n1"}
    assert homes.look(21.0, sight(back, node(2), work=[work("w", 7, 2)])) == {}
    assert homes.look(22.0, sight(back, node(2), work=[work("w", 2, 2)])) == {}


def test_after_the_grace_work_stays_where_it_is() -> None:
    homes = Homes(30.0)
    gone = node(1, state="dead", gone=10.0)
    homes.look(0.0, sight(gone, node(2), work=[work("w", 1, 1)]))
    there = [work("w", 2, 2)]

    assert homes.look(19.9, sight(node(2), work=there)) == {"w": "n1"}
    assert homes.look(20.0, sight(node(2), work=there)) == {}
    assert homes.look(21.0, sight(node(2), node(7, name="n1"), work=there)) == {}


def test_the_grace_does_not_end_while_a_node_drains_or_joins() -> None:
    homes = Homes(30.0)
    there = [work("w", 2, 2)]
    homes.look(0.0, sight(node(1, state="draining"), node(2), work=[work("w", 1, 1)]))
    homes.look(40.0, sight(node(1, state="draining"), node(2), work=there))
    homes.look(65.0, sight(node(7, name="n1", state="joining"), node(2), work=there))

    assert homes.look(90.0, sight(node(7, name="n1"), node(2), work=there)) == {"w": "n1"}


def test_a_node_that_is_back_and_could_not_take_it_all_is_not_waited_for_for_ever() -> None:
    homes = Homes(30.0)
    there = [work("w", 2, 2)]
    homes.look(0.0, sight(node(1, state="left", gone=0.0), node(2), work=[work("w", 1)]))
    back = sight(node(7, name="n1"), node(2), work=there)

    assert homes.look(10.0, back) == {"w": "n1"}
    assert homes.look(39.0, back) == {"w": "n1"}
    assert homes.look(40.1, back) == {}


def test_a_second_move_does_not_change_where_work_belongs() -> None:
    homes = Homes(30.0)
    homes.look(0.0, sight(node(1, state="draining"), node(2), work=[work("w", 1, 1)]))

    seen = sight(node(1, state="left", gone=0.0), node(2, state="draining"), work=[work("w", 2, 2)])

    assert homes.look(1.0, seen) == {"w": "n1"}


# ---- rounds


def rounds(**options: Any) -> Rounds:
    return Rounds(0.0, **{"after": 5.0, "interval": 10.0, "share": 0.1, **options})


def settled(count: int = 40) -> list[SeenWork]:
    return [work(f"w{n}", 1, 1) for n in range(count)]


def test_nothing_moves_for_balance_before_the_nodes_have_been_the_same_for_a_while() -> None:
    there = rounds()
    seen = sight(node(1), node(2), work=settled())

    assert there.look(1.0, seen) == 0
    assert there.next_at(1.0) == 6.0
    assert there.look(5.9, seen) == 0
    assert there.look(6.0, seen) == 4
    assert there.look(7.0, sight(node(1), node(2), node(3), work=settled())) == 0
    assert there.next_at(7.0) == 12.0


def test_a_share_of_all_work_moves_at_once_and_one_at_least() -> None:
    seen = [node(1), node(2)]
    for count, share, wanted in ((40, 0.1, 4), (3, 0.1, 1), (0, 0.1, 1), (10, 0.0, 0)):
        there = rounds(share=share, after=0.0)
        assert there.look(1.0, sight(*seen, work=settled(count))) == wanted
    paused = [work(f"p{n}", None, is_paused=True) for n in range(100)]
    assert rounds(after=0.0).look(1.0, sight(*seen, work=[*settled(20), *paused])) == 2


def test_the_next_round_begins_when_the_last_one_has_settled() -> None:
    there = rounds(after=0.0)
    nodes = [node(1), node(2)]
    there.look(0.0, sight(*nodes, work=settled()))
    there.made(0.0, 4)
    moving = [*settled(39), work("m", 2, 1)]

    assert there.look(0.5, sight(*nodes, work=moving)) == 0
    assert there.look(2.0, sight(*nodes, work=moving)) == 0
    assert there.look(2.1, sight(*nodes, work=settled())) == 4
    there.made(2.1, 4)
    assert there.look(3.0, sight(*nodes, work=settled())) == 0  # not one round after the other
    assert there.look(3.1, sight(*nodes, work=settled())) == 4


def test_a_round_that_does_not_settle_holds_the_next_one_up_only_for_an_interval() -> None:
    there = rounds(after=0.0)
    seen = sight(node(1), node(2), work=[*settled(39), work("m", 2, 1)])
    there.look(0.0, seen)
    there.made(0.0, 4)

    assert there.look(9.9, seen) == 0
    assert there.look(10.0, seen) == 4


def test_while_a_node_is_doubtful_nothing_moves_for_balance() -> None:
    there = rounds(after=0.0)

    assert there.look(1.0, sight(node(1), due(2), work=settled())) == 0
