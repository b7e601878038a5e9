"""Counters and histograms hold what was added, by whatever thread, and never more than they may."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from strandline.telemetry.catalogue import CATALOGUE
from strandline.telemetry.tally import DROPPED, Tally

BATCHES, FAILURES = "strandline_batches_total", "strandline_batch_failures_total"
ENDED, TICKS = "strandline_jobs_not_completed_total", "strandline_tick_seconds"


def test_a_counter_adds_up_by_the_values_of_its_labels() -> None:
    tally = Tally()

    tally.add(BATCHES, values=("a",))
    tally.add(BATCHES, 2.5, ("a",))
    tally.add(BATCHES, 0.0, ("b",))

    assert tally.counts(BATCHES) == {("a",): 3.5, ("b",): 0.0}


def test_a_histogram_puts_a_value_on_a_bound_into_the_bucket_below() -> None:
    tally = Tally()
    bounds = CATALOGUE[TICKS].bounds

    for value in (0.0, bounds[0], bounds[1], bounds[-1] + 1):
        tally.add(TICKS, value)

    (found,) = tally.distributions(TICKS).values()
    assert found.counts[:3] == (2, 1, 0)
    assert found.counts[-1] == 1
    assert (found.count, found.total) == (4, pytest.approx(sum(bounds[:2]) + bounds[-1] + 1))


@pytest.mark.parametrize("broken", [math.nan, -1.0, math.inf, -math.inf])
def test_what_is_no_amount_is_left_out(broken: float) -> None:
    tally = Tally()

    tally.add(BATCHES, broken, ("a",))
    tally.add(TICKS, broken)
    tally.add(TICKS, 0.5)

    assert tally.counts(BATCHES) == {}
    assert tally.distributions(TICKS)[()].total == 0.5


def test_values_beyond_the_limit_are_counted_as_other() -> None:
    tally = Tally(limit=10)

    for number in range(1_000):
        tally.add(BATCHES, values=(f"shard-{number}",))
    tally.add(BATCHES, values=("shard-3",))

    counts = tally.counts(BATCHES)
    assert len(counts) == 11
    assert counts[("other",)] == 990
    assert counts[("shard-3",)] == 2
    assert tally.counts(DROPPED) == {(BATCHES,): 990}


def test_a_label_of_few_values_keeps_its_own_beyond_the_limit() -> None:
    """An alert on dead jobs must fire however many kinds there are."""
    tally = Tally(limit=10)

    for number in range(20):
        tally.add(ENDED, values=("mail", f"kind-{number}", "dead"))
        tally.add(ENDED, values=("mail", f"kind-{number}", "retried"))

    counts = tally.counts(ENDED)
    assert counts[("other", "other", "dead")] == 15
    assert counts[("other", "other", "retried")] == 15
    assert len(counts) == 12


def test_a_histogram_is_bounded_too() -> None:
    tally = Tally(limit=10)

    for number in range(30):
        tally.add("strandline_job_claim_seconds", 0.1, (f"queue-{number}",))

    found = tally.distributions("strandline_job_claim_seconds")
    assert len(found) == 11
    assert found[("other",)].count == 20


def test_that_more_metrics_are_full_than_a_metric_may_have_series_is_told_for_each() -> None:
    tally = Tally(limit=1)
    full = [
        one for one in CATALOGUE.values() if one.kind == "counter" and "shard" in one.attributes
    ]

    for one in full:
        for number in range(2):
            tally.add(one.name, values=tuple(f"{name}-{number}" for name in one.attributes))

    assert set(tally.counts(DROPPED)) == {(one.name,) for one in full}
    assert len(full) > 1


def test_series_that_begin_leave_half_of_the_room_to_what_happens() -> None:
    tally = Tally(limit=10)

    for number in range(9):
        tally.begin(BATCHES, (f"shard-{number}",))
    tally.add(BATCHES, 2.0, ("shard-1",))
    tally.begin(BATCHES, ("shard-1",))
    tally.add(BATCHES, values=("shard-8",))

    assert tally.counts(BATCHES) == {
        **{(f"shard-{number}",): 0 for number in range(5)},
        ("shard-1",): 2,
        ("shard-8",): 1,
    }
    assert tally.counts(DROPPED) == {}


def test_too_few_or_too_many_values_are_refused() -> None:
    tally = Tally()

    for values in ((), ("a", "b", "c")):
        with pytest.raises(ValueError, match="for 2 labels"):
            tally.add(FAILURES, values=values)
    with pytest.raises(KeyError):
        tally.add("strandline_leader")
    assert tally.counts(FAILURES) == {}


def test_nothing_is_lost_when_many_threads_add_and_others_read() -> None:
    tally = Tally()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def add(_: int) -> None:
        for number in range(2_000):
            tally.add(BATCHES, values=(f"shard-{number % 7}",))
            tally.add(TICKS, 0.25)

    def read(_: int) -> None:
        for _ in range(300):
            counts = tally.counts(BATCHES)
            assert sum(counts.values()) <= 8_000
            for found in tally.distributions(TICKS).values():
                assert found.total == pytest.approx(0.25 * found.count)

    try:
        with ThreadPoolExecutor(8) as threads:
            for done in [*threads.map(add, range(4)), *threads.map(read, range(4))]:
                assert done is None
    finally:
        sys.setswitchinterval(before)

    assert sum(tally.counts(BATCHES).values()) == 8_000
    assert tally.distributions(TICKS)[()].count == 8_000
