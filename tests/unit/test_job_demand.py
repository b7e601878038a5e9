"""How many jobs are fetched ahead."""

from __future__ import annotations

import pytest
from attempts import claimed

from strandline.jobs.demand import Demand

JOB = claimed(1, "note")


def test_nothing_is_fetched_ahead_before_a_job_has_ended() -> None:
    assert Demand(1000).ahead(100) == 0


@pytest.mark.parametrize(("mean", "ahead"), [(1e-6, 1000), (0.01, 100), (0.05, 20), (0.11, 0)])
def test_short_jobs_are_fetched_ahead_for_two_round_trips(mean: float, ahead: int) -> None:
    demand = Demand(1000)
    demand.learn(10, 10 * mean)  # a round trip of 5 ms, until one was seen
    assert demand.ahead(100) == ahead


def test_it_follows_what_it_sees() -> None:
    demand = Demand(1000)
    demand.learn(10, 0.001)
    assert demand.ahead(1) == 100
    for n in range(1, 11):
        demand.learn(10 + n, 0.001 + n * 5.0)
    assert demand.ahead(1) == 0
    demand.learn(1_000_000, 0.001 + 50.0)
    for n in range(1, 11):
        demand.learn(1_000_000 + n, 50.001)
    assert demand.ahead(1) > 1


def test_a_slow_claim_asks_for_more_and_one_job_at_least_is_fetched_ahead() -> None:
    demand = Demand(1000)
    demand.learn(10, 0.5)
    assert demand.ahead(1) == 1
    for _ in range(30):
        demand.claimed(0.5)
    assert demand.ahead(1) == 20


def test_jobs_that_waited_in_vain_end_it_until_one_has_ended() -> None:
    demand = Demand(1000)
    demand.learn(10, 0.001)
    demand.forget()
    assert demand.ahead(100) == 0
    demand.learn(11, 0.0011)
    assert demand.ahead(100) > 0


def test_large_jobs_are_fetched_ahead_by_few_and_small_ones_by_many_again() -> None:
    demand = Demand(1000)
    demand.learn(10, 0.001)
    assert demand.ahead(100) == 1000
    demand.weighed([JOB._replace(args="x" * 1_000_000)] * 3)
    assert demand.ahead(100) == 8
    for _ in range(20):
        demand.weighed([JOB] * 100)
    assert demand.ahead(100) == 1000
