"""What was fetched and not begun."""

from __future__ import annotations

from datetime import UTC, datetime

from strandline.jobs.buffer import Buffer
from strandline.jobs.row import Claimed


def jobs(claim: int, *ids: int) -> list[Claimed]:
    now = datetime.now(UTC)
    return [
        Claimed(one, claim, "k", "{}", 1, 5, 0, "q", None, None, None, None, one, 5, now)
        for one in ids
    ]


def ids(taken: list[Claimed]) -> list[int]:
    return [one.id for one in taken]


def test_stale_jobs_are_those_of_old_claims() -> None:
    buffer = Buffer()
    buffer.add(jobs(1, 10, 11), 1.0)
    buffer.add(jobs(2, 20), 2.0)
    buffer.jobs.popleft()
    assert ids(buffer.take_stale(1.0)) == []
    assert ids(buffer.take_stale(1.5)) == [11]
    assert ids(buffer.take_stale(1.5)) == []
    assert ids(buffer.take_stale(9.0)) == [20]
    buffer.add(jobs(3, 30), 10.0)
    assert ids(buffer.take_stale(9.0)) == []
    assert len(buffer) == 1


def test_jobs_are_taken_out_by_id_and_the_others_keep_their_order() -> None:
    buffer = Buffer()
    known = buffer.jobs
    buffer.add(jobs(1, 1, 2, 3, 4), 1.0)
    assert ids(buffer.take({2, 4, 9})) == [2, 4]
    assert ids(buffer.take_all()) == [1, 3]
    assert buffer.jobs is known
    assert ids(buffer.take_stale(99.0)) == []
