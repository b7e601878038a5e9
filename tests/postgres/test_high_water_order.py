"""The order of a look's statements is the proof: writers are let in between any two of them."""

from __future__ import annotations

from typing import Any

import pytest


class Interrupted:
    """The control pool, with something that happens just before its n-th statement."""

    def __init__(self, pool: Any, nth: int, what: Any) -> None:
        self.pool, self.nth, self.what, self.count = pool, nth, what, 0

    async def run(self, op: Any) -> Any:
        """Run *op*, which is one statement in a look."""
        self.count += 1
        if self.count == self.nth:
            await self.what()
        return await self.pool.run(op)


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize("gap", [True, False])
async def test_a_writer_that_begins_between_two_statements_of_a_look_is_not_passed(
    open_lab: Any, database_url: str, nth: int, gap: bool
) -> None:
    """Holders read before the rows would not know it, and skip its number."""
    async with open_lab(database_url) as lab:
        if gap:
            await lab.rolled_back()
            await lab.committed()
        writers = []

        async def overtake() -> None:
            writers.append(await lab.writing())
            await lab.committed()

        detector = lab.detector()
        detector._control = Interrupted(lab.control, nth, overtake)
        await detector.tick()
        if not writers:
            await overtake()
        (slow, number) = writers[0]

        assert await detector.tick() < number
        await slow.execute("COMMIT")
        assert await detector.tick() == number + 1
        assert await lab.gaps() == ([(1, 1, "rolled_back")] if gap else [])


@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_a_commit_between_two_statements_of_a_look_is_no_gap(
    open_lab: Any, database_url: str, nth: int
) -> None:
    """What is missing must be read again after the holders are gone."""
    async with open_lab(database_url) as lab:
        slow, _ = await lab.writing()
        await lab.committed()
        detector = lab.detector()
        detector._control = Interrupted(lab.control, nth, lambda: slow.execute("COMMIT"))

        await detector.tick()
        if nth == 3:  # a look with live holders ends after two statements
            await detector.tick()
        assert await detector.tick() == 2
        assert await lab.gaps() == []
