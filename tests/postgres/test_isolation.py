"""Events that cannot be processed are found and put aside; every other one is processed once, in order."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from tally import fill, holds, tally_app
from ward import Scripted, handled, scripted, ward

from strandline.backoff import Backoff
from strandline.daemon.batch import Batch
from strandline.daemon.failures import Ledger
from strandline.daemon.feed import Page
from strandline.daemon.isolation import Isolation
from strandline.errors import ApplyFailed, DatabaseUnavailable, EventFailure, UndecodableEvent
from strandline.projections.failure_policy import Decide, ErrorPolicy
from strandline.projections.fold import POSITION
from strandline.projections.slice import WHOLE, Slice

POISON = ValueError("cannot digest this")
SKIP = ErrorPolicy(apply="skip")


async def logged(app: Any, count: int) -> list[int]:
    await fill(app, count)
    return [event.position async for event in app.read_all(settled=False)]


def expected(positions: list[int], poison: Any, how: str = "park") -> list[tuple[int, str]]:
    return [(one, how if one in poison else "handled") for one in positions]


async def test_one_poison_event_is_put_aside_at_once_where_trying_again_cannot_help(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        positions = await logged(app, 40)
        processor = await scripted(app, most=10)
        processor.poison[positions[12]] = POISON
        async with ward(app, processor) as patient:
            await patient.reaches(positions[-1])

            assert await handled(app) == expected(positions, {positions[12]})
            assert patient.clock.sleeping == (), "it has not waited"
            assert len(patient.told("batch_failed")) == 1
            assert patient.told("shard_paused") == []
            assert (patient.agent.state, patient.agent.statistics().reason) == ("running", "")
            # the first page, what is before, the event, what is after, the other two pages
            assert len(processor.committed) == 6


async def test_where_trying_again_may_help_the_whole_batch_is_tried_by_schedule_before(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        positions = await logged(app, 10)
        processor = await scripted(app, is_pure=False)
        processor.poison[positions[4]] = POISON
        async with ward(app, processor) as patient:
            await patient.tries(0.25, 0.5, 1.0)
            await patient.reaches(positions[-1])

            assert await handled(app) == expected(positions, {positions[4]})
            assert [one for one in processor.prepared if one[1] - one[0] == 10] == []
            assert patient.told("shard_paused") == []


async def test_a_poison_that_goes_away_while_it_is_tried_again_puts_nothing_aside(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        positions = await logged(app, 10)
        processor = await scripted(app, is_pure=False)
        processor.poison[positions[4]] = POISON
        async with ward(app, processor) as patient:
            await patient.tries(0.25, 0.5)
            await patient.asleep(1.0)
            processor.poison.clear()
            patient.clock.advance(1.0)
            await patient.reaches(positions[-1])

            assert await handled(app) == expected(positions, {})


@pytest.mark.parametrize("phase", ["prepare", "commit"])
@pytest.mark.parametrize("blames", [True, False, "first"])
async def test_30_poison_events_in_a_batch_of_5000_take_few_commits(
    database_url: str, phase: str, blames: Any
) -> None:
    """Rounds and commits are counted: seconds depend on the machine."""
    async with tally_app(database_url, page_events=5000, group_appends=1000) as app:
        for stream in range(5):
            await app.append(f"s{stream}", [tally_event(n) for n in range(1000)])
        positions = [event.position async for event in app.read_all(settled=False)]
        poison = set(random.Random(30).sample(positions, 30))
        processor = await scripted(app, most=5000, is_pure=blames != "first")
        processor.poison = dict.fromkeys(poison, POISON)
        processor.blames, processor.blames_first = blames is True, blames == "first"
        processor.fails_in = phase
        feed_knows_sizes = 1  # a first page is small until the size of events is known
        backoff = Backoff(first=0.0, jitter=0.0)
        async with ward(app, processor, backoff=backoff) as patient:
            await patient.reaches(positions[-1])

            assert await handled(app) == expected(positions, poison)
            tries, commits = processor.tries, len(processor.committed)
            if blames is True:
                assert commits <= 2 * 30 + 2 + feed_knows_sizes
                assert tries <= 4 * 30 + 5
            else:
                assert commits <= 30 * 9 + 5, "about log2(5000 / 30) for each, and the event"
                assert tries <= 30 * 18 + 10
            assert processor.events <= 5000 * 40, "no event is tried more than a few dozen times"


def tally_event(number: int) -> Any:
    from tally import Ticked

    return Ticked(number)


@pytest.mark.parametrize("seed", range(6))
async def test_every_event_is_processed_once_whichever_fail(seed: int) -> None:
    """In memory: thousands of shapes of pages, failures that tell their position or do not."""
    chance = random.Random(seed)
    for _ in range(150):
        count = chance.choice([1, 2, 3, 7, 40])
        positions = sorted(chance.sample(range(1, 120), count))
        poison = {one for one in positions if chance.random() < chance.choice([0.0, 0.1, 0.6, 1.0])}
        fake = InMemory(poison, chance.choice(["known", "unknown", "first", "wrong"]), chance)
        rows = [row(one) for one in positions] if chance.random() < 0.7 else []
        if not rows:
            positions = list(range(1, positions[-1] + 1))
            poison = fake.poison = {one for one in positions if one in poison}
        page = Page(0, positions[-1] + chance.choice([0, 5]) * bool(rows), rows)
        isolation = Isolation(
            "s:all", fake, ErrorPolicy(), Ledger("s"), commit=fake.commit_it, is_over=lambda: False
        )

        aside = await isolation.through(page)

        assert fake.done == [(one, one in poison) for one in positions]
        assert aside == len(poison)
        assert fake.at == page.ceiling


def row(position: int) -> tuple[Any, ...]:
    return (position, "default", f"s{position % 3}", 1, "ticked", "{}")


class InMemory:
    """Processes in memory; *how* its failures tell where they are."""

    label = "s"
    reads_pages = True

    def __init__(self, poison: set[int], how: str, chance: random.Random) -> None:
        self.poison, self.how, self.chance = poison, how, chance
        self.done: list[tuple[int, bool]] = []
        self.at = 0
        self.is_pure = how in ("known", "unknown")

    async def prepare(self, page: Page, *, only: Any = None, within: Slice = WHOLE) -> Batch:
        places = self._places(page)
        for one in places:
            if one in self.poison:
                told = {"known": one, "unknown": 0, "first": places[0]}
                position = told.get(self.how, self.chance.choice([*places, 0, 9999]))
                raise ApplyFailed("s", "poison", position=position)
        return Batch(page, [(one, False) for one in places])

    async def aside(self, page: Page, error: EventFailure, decide: Decide) -> Batch:
        (one,) = self._places(page)
        assert one in self.poison
        return Batch(page, [(one, True)])

    async def commit_it(self, batch: Batch) -> None:
        assert batch.page.floor == self.at
        self.at = batch.page.ceiling
        self.done += batch.work

    def forget(self) -> None: ...

    def _places(self, page: Page) -> list[int]:
        if page.rows:
            return [one[POSITION] for one in page.rows]
        return list(range(page.floor + 1, page.ceiling + 1)) if self._is_range(page) else []

    def _is_range(self, page: Page) -> bool:
        return page.ceiling <= 120


async def test_one_of_several_failures_may_say_pause_and_the_shard_pauses_there(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        positions = await logged(app, 20)
        processor = await scripted(app)
        processor.poison = {
            positions[3]: POISON,
            positions[9]: KeyError("later"),
            positions[15]: POISON,
        }
        policy = ErrorPolicy(exceptions={KeyError: "pause"})
        async with ward(app, processor, policy=policy) as patient:
            await patient.tries(0.25, 0.5, 1.0)
            await patient.asleep(30.0)

            assert await handled(app) == expected(positions[:9], {positions[3]})
            assert patient.agent.position == positions[8], "right before it"
            failed = patient.told("shard_paused")[-1]["error"]
            assert (failed.position, type(failed.__cause__)) == (positions[9], KeyError)

            del processor.poison[positions[9]]
            patient.clock.advance(30.0)
            await patient.reaches(positions[-1])
            assert await handled(app) == expected(positions, {positions[3], positions[15]})


async def test_an_event_that_cannot_be_put_aside_is_an_ordinary_failure(database_url: str) -> None:
    async with tally_app(database_url) as app:
        positions = await logged(app, 20)
        processor = await scripted(app)
        processor.poison = {positions[7]: POISON}
        processor.script["aside"] = [ApplyFailed("scripted", "the letter is too long")] * 3
        async with ward(app, processor) as patient:
            await patient.tries(0.25, 0.5, 1.0)
            await patient.reaches(positions[-1])

            assert await handled(app) == expected(positions, {positions[7]}), "by the fourth try"


async def test_an_outage_in_the_middle_is_an_ordinary_failure_and_nothing_is_done_twice(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        positions = await logged(app, 20)
        processor = await scripted(app)
        processor.poison = dict.fromkeys([positions[7], positions[13]], POISON)
        away = DatabaseUnavailable("the server is away")
        processor.script["commit"] = [None, None, away, None, away]
        async with ward(app, processor) as patient:
            await patient.tries(0.25)  # after the second one it had got on: it starts over at once
            await patient.reaches(positions[-1])

            assert await handled(app) == expected(positions, {positions[7], positions[13]})


async def test_the_first_event_the_last_and_all_of_them_can_be_put_aside(database_url: str) -> None:
    async with tally_app(database_url) as app:
        positions = await logged(app, 30)
        processor = await scripted(app, most=10)
        poison = {positions[0], positions[9], positions[29], *positions[10:20]}
        processor.poison = dict.fromkeys(poison, POISON)
        async with ward(app, processor, policy=SKIP) as patient:
            await patient.reaches(positions[-1])

            assert await handled(app) == expected(positions, poison, "skip")


async def test_a_shard_that_is_told_to_stop_ends_in_the_middle_of_an_isolation(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        positions = await logged(app, 30)
        processor = await scripted(app)
        processor.poison = dict.fromkeys(positions[5:], POISON)
        async with ward(app, processor) as patient:
            await holds(lambda: len(processor.committed) >= 4)
            processor.hang = asyncio.Event()
            await asyncio.sleep(0)
            stopping = asyncio.create_task(patient.agent.stop(timeout=5.0))
            await asyncio.sleep(0)
            processor.hang.set()
            assert await stopping

        done = await handled(app)
        assert 4 < len(done) < 30
        processor.hang = None
        async with ward(app, processor) as patient:
            await patient.reaches(positions[-1])
        assert await handled(app) == expected(positions, set(positions[5:]))


async def test_an_owner_that_lost_its_shard_puts_nothing_aside_any_more(database_url: str) -> None:
    async with tally_app(database_url) as app:
        positions = await logged(app, 20)
        first, second = await scripted(app), Scripted(app.pools.work)
        first.poison = second.poison = dict.fromkeys(positions[4:], POISON)
        async with ward(app, first) as patient:
            await holds(lambda: len(first.committed) >= 2)
            first.hang = asyncio.Event()
            async with ward(app, second) as other:
                await other.reaches(positions[-1])
                first.hang.set()
                await holds(lambda: patient.agent.state == "stopped")

            assert await handled(app) == expected(positions, set(positions[4:]))


async def test_undecodable_events_are_put_aside_by_their_own_policy(database_url: str) -> None:
    async with tally_app(database_url) as app:
        positions = await logged(app, 10)
        processor = await scripted(app)
        processor.poison = {
            positions[2]: UndecodableEvent("ticked", "no number", position=positions[2]),
            positions[6]: POISON,
        }
        policy = ErrorPolicy(apply="park", undecodable="skip")
        async with ward(app, processor, policy=policy) as patient:
            await patient.reaches(positions[-1])

            wanted = dict(expected(positions, {positions[6]})) | {positions[2]: "skip"}
            assert await handled(app) == list(wanted.items())
