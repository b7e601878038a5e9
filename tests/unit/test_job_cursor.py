"""When claims begin behind the last one, and when they look at everything."""

from __future__ import annotations

from strandline.jobs.cursor import START, Cursor


def slow(cursor: Cursor, at: float, *, count: int = 100, last: tuple[int, int] = (5, 100)) -> None:
    assert cursor.looked(START, at, 0.2, count < 100, count, last) is None


def test_a_quick_claim_looks_at_everything_every_time() -> None:
    cursor = Cursor()
    cursor.looked(START, 1.0, 0.005, False, 100, (5, 100))
    assert not cursor.is_engaged
    assert cursor.start(1.01) == START


def test_many_rows_make_no_claim_slow() -> None:
    cursor = Cursor()
    cursor.looked(START, 1.0, 0.05, False, 2000, (5, 2000))
    assert not cursor.is_engaged


def test_after_a_slow_claim_the_next_begins_behind_it() -> None:
    cursor = Cursor()
    slow(cursor, 10.0)
    assert cursor.start(10.3) == (5, 100)
    cursor.looked((5, 100), 10.3, 0.001, False, 100, (5, 200))
    assert cursor.start(10.4) == (5, 200)


def test_a_full_look_comes_after_a_rest_of_ten_times_its_cost() -> None:
    cursor = Cursor()
    slow(cursor, 10.0)  # until 10.2, and 2 s of rest
    assert cursor.start(12.1) == (5, 100)
    assert cursor.start(12.3) == START


def test_a_cheap_full_look_comes_every_second_and_sooner_after_a_wake_up() -> None:
    cursor = Cursor(slow=-1.0)
    cursor.looked(START, 10.0, 0.01, False, 100, (5, 100))
    assert cursor.start(10.5) == (5, 100)
    assert cursor.start(11.1) == START
    cursor.wake()
    assert cursor.start(10.05) == (5, 100)
    assert cursor.start(10.2) == START


def test_a_short_claim_asks_for_a_full_look_once_that_has_rested() -> None:
    cursor = Cursor()
    slow(cursor, 10.0)
    wait = cursor.looked((5, 100), 11.0, 0.0, True, 3, (5, 103))
    assert wait is not None
    assert abs(wait - 1.2) < 1e-6
    assert cursor.start(12.3) == START


def test_a_full_look_that_is_quick_again_ends_it() -> None:
    cursor = Cursor()
    slow(cursor, 10.0)
    cursor.looked(START, 20.0, 0.001, False, 100, (5, 300))
    assert not cursor.is_engaged


def test_a_full_look_that_found_only_earlier_jobs_goes_back_to_them() -> None:
    cursor = Cursor()
    slow(cursor, 10.0, last=(5, 900))
    slow(cursor, 20.0, last=(1, 50))  # there may be more between
    assert cursor.start(20.3) == (1, 50)
    slow(cursor, 30.0, count=2, last=(1, 52))  # it saw all there was
    assert cursor.start(30.3) == (1, 52)
    slow(cursor, 40.0, last=(5, 1000))
    slow(cursor, 50.0, count=2, last=(1, 60))
    assert cursor.start(50.3) == (5, 1000)


def test_a_full_look_that_has_no_answer_is_taken_in_pieces_each_of_which_brings_it_forward() -> (
    None
):
    cursor = Cursor()
    cursor.missed(START, 10.0, 10.0)
    assert cursor.in_pieces
    assert cursor.start(20.0) == START
    assert cursor.pieced(START, 20.0, 0.1, (1, 2000), False) is None
    assert cursor.start(20.1) == (1, 2000)
    assert cursor.pieced((1, 2000), 20.1, 0.1, (5, 30), True) == 2.0  # ten times what it cost
    assert cursor.start(21.0) == (5, 30)  # what has come since
    assert cursor.in_pieces
    assert cursor.start(22.3) == START


def test_a_full_look_that_is_cheap_in_pieces_is_one_again() -> None:
    cursor = Cursor()
    cursor.looked(START, 10.0, 3.0, True, 0, START)  # nothing for us, and that took long
    assert cursor.in_pieces
    cursor.pieced(START, 13.0, 0.01, (5, 30), True)
    assert not cursor.in_pieces
    assert not cursor.is_engaged


def test_a_piece_that_has_no_answer_is_left_alone_for_a_while() -> None:
    cursor = Cursor()
    cursor.looked(START, 1.0, 0.5, False, 10, (5, 100))
    cursor.missed(START, 10.0, 10.0)
    cursor.missed(START, 20.0, 10.0)
    assert cursor.start(31.0) == (5, 100)
