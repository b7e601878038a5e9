"""One node's decisions: what it trusts, when it tries, what it gives up (no wire, no clock)."""

from __future__ import annotations

from uuid import UUID, uuid4

from strandline.cluster.election import (
    JITTER,
    PATIENCE,
    STEP,
    Acquire,
    Adopt,
    Election,
    Resign,
    Role,
    Rules,
    Seen,
    TakeOver,
)

TTL, MARGIN, INTERVAL = 12.0, 2.0, 3.0
ME, OTHER = uuid4(), uuid4()
FREE = Seen(None, 4, 40, 0.0, 0.0)
NOW = 100.0


def election(chance: float = 0.0) -> Election:
    made = Election(ME, Rules(TTL, MARGIN, INTERVAL), lambda: chance)
    made.stand(True, NOW)
    return made


def held(by: UUID, *, epoch: int = 5, renewals: int = 50, left: float = 10.0) -> Seen:
    return Seen(by, epoch, renewals, left, TTL)


def leader(epoch: int = 5, at: float = NOW) -> Election:
    made = election()
    made.saw(FREE, sent=at, received=at)
    made.won(Acquire(), epoch, sent=at, now=at)
    assert made.leadership(at)
    return made


def test_a_free_lease_is_tried_at_once() -> None:
    one = election()

    one.saw(FREE, sent=NOW, received=NOW)

    assert one.role(NOW) == Role.CANDIDATE
    assert one.due(NOW) == Acquire()


def test_an_expired_lease_is_tried_at_once() -> None:
    one = election()

    one.saw(held(OTHER, left=0.0), sent=NOW, received=NOW)

    assert one.due(NOW) == Acquire()


def test_a_lease_that_somebody_holds_is_left_alone() -> None:
    one = election()

    one.saw(held(OTHER), sent=NOW, received=NOW)

    assert one.role(NOW) == Role.FOLLOWER
    assert one.due(NOW + 5) is None


def test_the_lease_is_looked_at_again_in_the_moment_in_which_it_ends() -> None:
    one = election()

    one.saw(held(OTHER, left=1.5), sent=NOW, received=NOW + 0.1)

    assert one.next_look(NOW + 0.1) == NOW + 1.5


def test_contenders_spread_and_give_way_to_a_higher_priority() -> None:
    early, late, lower = election(0.0), election(1.0), election(0.0)
    for one, rivals in ((early, 0), (late, 0), (lower, 1)):
        one.saw(FREE, sent=NOW, received=NOW, rivals=rivals)

    assert early.due_at == NOW
    assert late.due_at == NOW + JITTER
    assert lower.due_at == NOW + STEP > NOW + JITTER


def test_another_look_does_not_put_an_attempt_off() -> None:
    one = election(1.0)
    one.saw(FREE, sent=NOW, received=NOW)

    one.saw(FREE, sent=NOW + 0.03, received=NOW + 0.03)

    assert one.due_at == NOW + JITTER


def test_trust_counts_from_the_start_of_the_attempt() -> None:
    one = election()
    one.saw(FREE, sent=NOW, received=NOW)

    one.won(Acquire(), 5, sent=NOW, now=NOW + 2.4)

    ends = NOW + TTL - MARGIN
    assert one.leadership(ends - 0.001)
    assert one.leadership(ends) is None


def test_a_renewal_extends_trust_from_its_own_start() -> None:
    one = leader()

    one.saw(held(ME), sent=NOW + 3, received=NOW + 5, renewed=True)

    assert one.leadership(NOW + 3 + TTL - MARGIN - 0.001)
    assert one.leadership(NOW + 3 + TTL - MARGIN) is None


def test_trust_ends_by_itself_when_no_answer_comes() -> None:
    one = leader()

    assert one.leadership(NOW + TTL - MARGIN) is None
    assert one.role(NOW + TTL - MARGIN) == Role.FOLLOWER


def test_a_term_whose_trust_has_ended_comes_back_if_the_row_can_still_be_renewed() -> None:
    one = leader()
    late = NOW + TTL - 1
    assert one.leadership(late) is None
    assert one.renewing == 5

    one.saw(held(ME), sent=late, received=late, renewed=True)

    assert one.leadership(late)


def test_a_leader_that_reads_another_holder_stops_leading_at_once() -> None:
    one = leader()

    one.saw(held(OTHER, epoch=6), sent=NOW + 1, received=NOW + 1)

    assert one.leadership(NOW + 1) is None
    assert one.renewing is None
    assert "6" in one.lost_because


def test_a_term_that_ran_out_is_not_revived_but_acquired_anew() -> None:
    one = leader()

    one.saw(held(ME, left=-0.5), sent=NOW + 13, received=NOW + 13)

    assert one.renewing is None
    assert one.due(NOW + 14) == Acquire()


def test_an_attempt_without_an_answer_is_conceded_and_put_off_no_longer_than_an_interval() -> None:
    one = election(1.0)
    for number in range(20):
        one.saw(FREE, sent=NOW, received=NOW)
        one.failed(Acquire(), NOW + number)

        assert one.leadership(NOW + number) is None
        assert one.due(NOW + number) is None
        one.saw(FREE, sent=NOW + number, received=NOW + number)
        assert one.due_at is not None
        assert NOW + number < one.due_at <= NOW + number + INTERVAL


def test_an_attempt_that_was_won_unknowingly_is_adopted() -> None:
    one = election()
    one.saw(FREE, sent=NOW, received=NOW)
    one.failed(Acquire(), NOW)

    one.saw(held(ME), sent=NOW + 1, received=NOW + 1)
    assert one.leadership(NOW + 1) is None  # nothing is known yet of when it began
    assert one.due(NOW + 1) == Adopt(5)
    one.won(Adopt(5), 5, sent=NOW + 1, now=NOW + 1)

    assert one.leadership(NOW + 1)


def test_losing_waits_for_the_winner_to_be_seen() -> None:
    one = election(0.5)
    one.saw(FREE, sent=NOW, received=NOW)

    one.refused(Acquire(), NOW)

    assert one.due(NOW + INTERVAL) is None
    assert one.role(NOW) == Role.FOLLOWER


def test_a_lease_that_does_not_move_is_taken_over_without_comparing_clocks() -> None:
    """The server's clock was set back: the lease seems good for another hour."""
    one = election()
    stuck = held(OTHER, left=3600.0)
    one.saw(stuck, sent=NOW, received=NOW + 0.1)
    patience = PATIENCE * TTL
    assert one.next_look(NOW + 1) == NOW + 0.1 + patience

    one.saw(stuck, sent=NOW + patience, received=NOW + patience + 0.2)
    assert one.due(NOW + patience + 1) is None, "from the end of one look to the start of another"
    one.saw(stuck, sent=NOW + patience + 0.1, received=NOW + patience + 0.2)

    assert one.due(NOW + patience + 0.2) == TakeOver(5, 50)


def test_a_lease_that_moves_is_never_taken_over() -> None:
    one = election()
    for number in range(100):
        at = NOW + number * INTERVAL
        one.saw(held(OTHER, renewals=number, left=3600.0), sent=at, received=at)

        assert one.due(at) is None


def test_a_holder_with_a_longer_ttl_is_given_its_own_time() -> None:
    one = election()
    slow = Seen(OTHER, 5, 50, 90.0, 100.0)
    one.saw(slow, sent=NOW, received=NOW)

    one.saw(slow, sent=NOW + 140, received=NOW + 140)

    assert one.due(NOW + 140) is None


def test_who_withdraws_gives_up_first_and_then_the_lease() -> None:
    one = leader()

    one.withdraw(NOW + 1, seconds=TTL, reason="asked to")

    assert one.leadership(NOW + 1) is None
    assert one.renewing is None
    assert one.due(NOW + 1) == Resign(5, "asked to")
    one.resigned()
    assert one.is_clear
    one.saw(FREE, sent=NOW + 2, received=NOW + 2)
    assert one.due(NOW + 2) is None, "it does not stand again at once"
    one.saw(FREE, sent=NOW + 1 + TTL, received=NOW + 1 + TTL)
    assert one.due(NOW + 1 + TTL) == Acquire()


def test_a_term_that_was_given_up_is_not_taken_up_again_by_a_late_renewal() -> None:
    one = leader()
    one.withdraw(NOW, seconds=0.0, reason="asked to")
    one.failed(Resign(5, "asked to"), NOW)

    one.saw(held(ME), sent=NOW, received=NOW + 1, renewed=True)

    assert one.leadership(NOW + 1) is None
    assert one.due(NOW + 4) == Resign(5, "asked to")


def test_a_resignation_without_an_answer_is_tried_again() -> None:
    one = leader()
    one.withdraw(NOW, seconds=TTL, reason="asked to")

    one.failed(Resign(5, "asked to"), NOW)

    assert one.due_at is not None
    assert NOW < one.due_at <= NOW + INTERVAL
    assert not one.is_clear


def test_a_term_won_while_withdrawing_is_given_up() -> None:
    one = election()
    one.saw(FREE, sent=NOW, received=NOW)
    one.withdraw(NOW, seconds=TTL, reason="asked to")

    one.won(Acquire(), 5, sent=NOW, now=NOW + 0.1)

    assert one.leadership(NOW + 0.1) is None
    assert one.due(NOW + 0.1) == Resign(5, "asked to")


def test_who_may_not_stand_gives_up_what_it_has_and_tries_nothing() -> None:
    one = leader()

    one.stand(False, NOW + 1, "its node is draining")

    assert one.leadership(NOW + 1) is None
    assert one.due(NOW + 1) == Resign(5, "its node is draining")
    one.resigned()
    one.saw(FREE, sent=NOW + 2, received=NOW + 2)
    assert one.due(NOW + 20) is None


def test_a_lease_that_names_a_node_which_may_not_stand_is_given_up() -> None:
    one = Election(ME, Rules(TTL, MARGIN, INTERVAL), lambda: 0.0)
    one.stand(False, NOW, "its priority is below 0")

    one.saw(held(ME), sent=NOW, received=NOW)

    assert one.due(NOW) == Resign(5, "its priority is below 0")


def test_numbers_set_back_by_a_fail_over_do_not_confuse_what_was_given_up() -> None:
    one = leader(epoch=9)
    one.withdraw(NOW, seconds=0.0, reason="asked to")
    one.resigned()

    one.saw(Seen(None, 8, 1, 0.0, 0.0), sent=NOW + 1, received=NOW + 1)
    one.won(Acquire(), 9, sent=NOW + 1, now=NOW + 1)
    one.saw(held(ME, epoch=9), sent=NOW + 2, received=NOW + 2, renewed=True)

    assert one.leadership(NOW + 2)


def test_a_lost_race_does_not_hold_back_the_next_one() -> None:
    one = election(1.0)
    one.saw(FREE, sent=NOW, received=NOW)
    one.refused(Acquire(), NOW)

    one.saw(held(OTHER), sent=NOW + 0.1, received=NOW + 0.1)
    one.saw(Seen(None, 5, 51, 0.0, 0.0), sent=NOW + 0.2, received=NOW + 0.2)

    assert one.due_at == NOW + 0.2 + JITTER
