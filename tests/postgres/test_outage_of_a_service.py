"""What a subscription calls is away for a while: afterwards nothing needs an operator."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from letterbox import fragile_app, letter_rows
from tally import Ticked, holds
from ward import Ward, bring_up, ward

import strandline as sl
from strandline.app import App
from strandline.projections.slice import WHOLE


class Away(Exception):
    """The service does not answer."""


class Service:
    """What the subscription calls; *refuses* says whether it is away, or will not have an event."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.failed = 0
        self.refuses: Callable[[int], bool] = lambda number: False

    def call(self, batch: sl.EventBatch) -> None:
        if any(self.refuses(event.data.number) for event in batch.of(Ticked)):
            self.failed += 1
            raise Away
        self.calls += [(event.stream, event.data.number) for event in batch.of(Ticked)]


def calling(app: App, service: Service) -> Any:
    """A subscription to *service*."""

    @app.subscription("calling")
    async def call(batch: sl.EventBatch, tx: sl.Transaction) -> None:
        service.call(batch)


async def logged(app: App, count: int, streams: int) -> None:
    for number in range(count):
        await app.append(f"s{number % streams}", Ticked(number))


def processor_of(app: App) -> Any:
    made = next(one for one in app.opened_runtime.definitions(app._begin) if one.label == "calling")
    return made.make(WHOLE)


async def open_letters(app: App) -> list[int]:
    return [one.position for one in await app.letters.list(limit=1_000)]


def failed_since(patient: Ward, position: int) -> int:
    """How many letters have failed again since the checkpoint came to *position*."""
    told = [(one.name, one.facts.get("ceiling", 0)) for one in patient.notices]
    at = next((i for i, one in enumerate(told) if one[1] >= position), len(told))
    return [name for name, _ in told[at:]].count("letter_failed_again")


def in_order(service: Service) -> bool:
    """Whether each event was handled once, those of a stream in order."""
    streams: dict[str, list[int]] = {}
    for stream, number in service.calls:
        streams.setdefault(stream, []).append(number)
    return all(numbers == sorted(set(numbers)) for numbers in streams.values())


@pytest.mark.parametrize("seconds", [1.8, 20.0, 100.0, 4_000.0])
async def test_after_an_outage_everything_is_handled_once_and_in_order(
    database_url: str, seconds: float
) -> None:
    service = Service()
    app = fragile_app(database_url)
    calling(app, service)
    async with app:
        await logged(app, 300, 60)
        async with ward(app, processor_of(app)) as patient:
            service.refuses = lambda number: patient.clock.monotonic() < seconds

            async def done() -> bool:
                return len(service.calls) >= 300 and not await open_letters(app)

            await patient.goes_on_until(done)

        assert in_order(service)
        assert len(service.calls) == 300
        paused = patient.told("shard_paused")
        assert all("none has succeeded" in str(one["error"]) for one in paused)
        assert paused, "it has stopped putting aside"
        if seconds == 20.0:
            assert len(await letter_rows(database_url)) < 30, "few were put aside"


async def test_an_outage_while_few_events_come_in_leaves_nothing_behind(database_url: str) -> None:
    """There is nothing else to do, so nothing succeeds that would tell that the service is back."""
    service = Service()
    app = fragile_app(database_url)
    calling(app, service)
    async with app:
        await logged(app, 3, 3)
        async with ward(app, processor_of(app)) as patient:
            service.refuses = lambda number: patient.clock.monotonic() < 1_000

            async def done() -> bool:
                return len(service.calls) == 3 and not await open_letters(app)

            await patient.goes_on_until(done)
            assert patient.clock.monotonic() < 1_000 + 2 * 300

        assert in_order(service)


@pytest.mark.parametrize("poison", [3, 4, 40])
async def test_a_page_that_has_only_poison_is_got_over(database_url: str, poison: int) -> None:
    service = Service()
    app = fragile_app(database_url)
    calling(app, service)
    async with app:
        await logged(app, poison, poison)
        service.refuses = lambda number: number < poison
        async with ward(app, processor_of(app)) as patient:

            async def all_parked() -> bool:
                return len(await open_letters(app)) == poison

            await patient.goes_on_until(all_parked)
            await app.append("late", Ticked(1_000))
            last = (await app.append("s0", Ticked(1_001))).position
            await bring_up(patient.feed, app)

            async def tried_again() -> bool:
                return failed_since(patient, last) == poison

            await patient.goes_on_until(tried_again)
            assert patient.clock.monotonic() < 15 * 300
            await holds(lambda: patient.agent.statistics().state == "running")
            assert len(await open_letters(app)) == poison + 1
            failed = service.failed
            await app.append("late", Ticked(1_002))
            await bring_up(patient.feed, app)
            await holds(lambda: ("late", 1_002) in service.calls)
            assert service.failed == failed, "what is known to be poison is left alone"


async def test_poison_here_and_there_is_put_aside_without_a_pause(database_url: str) -> None:
    service = Service()
    app = fragile_app(database_url, page_events=1_000)
    calling(app, service)
    async with app:
        for begun in range(0, 1_000, 100):
            await app.append_many(
                [(f"s{number}", Ticked(number)) for number in range(begun, begun + 100)]
            )
        poison = set(random.Random(5).sample(range(1_000), 30))
        service.refuses = poison.__contains__
        async with ward(app, processor_of(app)) as patient:

            async def done() -> bool:
                return len(service.calls) + len(await open_letters(app)) == 1_000

            await patient.goes_on_until(done)
            assert patient.told("shard_paused") == []
            assert len(await open_letters(app)) == 30


@pytest.mark.parametrize("lasts", [False, True])
async def test_another_owner_takes_over_what_was_asked_for(database_url: str, lasts: bool) -> None:
    service = Service()
    app = fragile_app(database_url)
    calling(app, service)
    async with app:
        await logged(app, 3 if lasts else 30, 30)
        service.refuses = lambda number: True
        async with ward(app, processor_of(app)) as patient:

            async def paused() -> bool:
                return bool(patient.told("shard_paused"))

            await patient.goes_on_until(paused)
        async with ward(app, processor_of(app)) as patient:
            service.refuses = lambda number: lasts and patient.clock.monotonic() < 200

            async def done() -> bool:
                return len(service.calls) == (3 if lasts else 30) and not await open_letters(app)

            await patient.goes_on_until(done)
        assert in_order(service)
