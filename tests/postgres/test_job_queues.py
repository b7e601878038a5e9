"""What is said about queues: by code, by operators; and what nodes know of it, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from job_bench import Desk, desk, desks
from tally import holds

from strandline.errors import InvalidInput
from strandline.jobs import queues
from strandline.jobs.queues import Queues, QueueSettings, declared
from strandline.postgres.listener import Listener
from strandline.postgres.pools import Pool
from strandline.settings import Settings

SCHEMA: dict[str, Any] = {"schema": "strandline"}


async def settings_of(one: Desk, name: str = "mail") -> QueueSettings | None:
    found = {row.name: row for row in await one.run(queues.list_queues())}
    return found.get(name)


async def test_code_says_it_again_until_an_operator_sets_something(database_url: str) -> None:
    async with desk(database_url) as one:
        first = declared("mail", concurrency=20, at_most=50, per_key=1, rate=(100, 60))
        assert await one.run(queues.declare(first, **SCHEMA))
        assert not await one.run(queues.declare(first, **SCHEMA))
        assert await one.run(queues.declare(declared("mail", concurrency=21), **SCHEMA))
        found = await settings_of(one)
        assert found is not None
        assert (found.concurrency, found.at_most, found.rate, found.set_by) == (
            21,
            None,
            None,
            "code",
        )

        await one.run(queues.set_queue("mail", at_most=3, **SCHEMA))
        assert not await one.run(queues.declare(first, **SCHEMA))
        found = await settings_of(one)
        assert found is not None
        assert (found.concurrency, found.at_most, found.set_by) == (21, 3, "operator")

        assert await one.run(queues.forget("mail", **SCHEMA))
        assert not await one.run(queues.forget("mail", **SCHEMA))
        assert await one.run(queues.declare(first, **SCHEMA))


async def test_only_what_is_given_is_set_and_none_takes_it_away(database_url: str) -> None:
    async with desk(database_url) as one:
        await one.run(queues.set_queue("mail", at_most=3, rate=(5, 1), **SCHEMA))

        found = await one.run(queues.set_queue("mail", at_most=None, per_key=2, **SCHEMA))

        assert (found.at_most, found.per_key, found.rate, found.rate_seconds) == (None, 2, 5, 1.0)
        found = await one.run(queues.set_queue("mail", rate=None, per_key=None, **SCHEMA))
        assert not found.is_limited


async def test_a_pause_is_neither_lifted_nor_made_by_code(database_url: str) -> None:
    async with desk(database_url) as one:
        await one.run(queues.pause("mail", "why\0 so", **SCHEMA))
        await one.run(queues.declare(declared("mail", at_most=1), **SCHEMA))

        found = await settings_of(one)
        assert found is not None
        assert (found.is_paused, found.paused_reason, found.at_most) == (True, "why so", 1)

        assert await one.run(queues.resume("mail", **SCHEMA))
        assert not await one.run(queues.resume("mail", **SCHEMA))


async def test_the_list_tells_what_waits_and_runs(database_url: str) -> None:
    async with desk(database_url) as one:
        await one.insert(*(one.plain(queue="mail") for _ in range(3)), one.plain())
        await one.insert(later := one.plain(queue="later"))
        await one.connection.execute(
            "UPDATE jobs SET state = 1, run_at = now() WHERE id = $1", later.id
        )
        await one.claim(1, "mail")
        await one.run(queues.set_queue("empty", at_most=1, **SCHEMA))

        found = {row.name: row for row in await one.run(queues.list_queues())}

        counts = {name: (row.available, row.scheduled, row.running) for name, row in found.items()}
        assert counts == {
            "mail": (2, 0, 1),
            "default": (1, 0, 0),
            "later": (0, 1, 0),
            "empty": (0, 0, 0),
        }
        assert found["mail"].oldest is not None
        assert found["later"].oldest is None


async def test_nodes_hear_of_a_change_at_once(database_url: str) -> None:
    async with desk(database_url) as one, known(database_url, interval=3600.0) as (found, changed):
        assert found.settings_of("mail") == QueueSettings("mail")
        await one.run(queues.declare(declared("mail", concurrency=4), **SCHEMA))
        await holds(lambda: found.settings_of("mail").concurrency == 4, 30)
        await one.run(queues.pause("mail", **SCHEMA))
        await holds(lambda: found.settings_of("mail").is_paused, 30)
        await one.run(queues.forget("mail", **SCHEMA))
        await holds(lambda: found.settings_of("mail") == QueueSettings("mail"), 30)

        assert len(changed) == 3


async def test_nodes_that_hear_nothing_look(database_url: str) -> None:
    async with desk(database_url) as one, known(database_url, interval=0.05) as (found, _):
        await one.connection.execute("INSERT INTO queues (name, at_most) VALUES ('mail', 2)")

        await holds(lambda: found.settings_of("mail").is_limited, 30)


async def test_a_node_counts_what_was_claimed_before_it_knew_of_the_limit(
    database_url: str,
) -> None:
    async with desks(database_url, 2) as (one, other), known(database_url, interval=0.05):
        await one.insert(*(one.plain(queue="mail") for _ in range(3)))
        await one.claim(1, "mail")
        await one.connection.execute("INSERT INTO queues (name, at_most) VALUES ('mail', 2)")
        await other.claim(1, "mail")  # by a node that does not know of it yet

        counted = "SELECT count(*) FROM jobs WHERE state = 2 AND flags & 256 = 256"
        await holds(lambda: _is(one, counted, 2), 30)


@pytest.mark.parametrize(
    "said",
    [
        {"concurrency": 0},
        {"at_most": -1},
        {"per_key": 1.5},
        {"per_key": True},
        {"at_most": 2**31},
        {"rate": (0, 1)},
        {"rate": (1, 0)},
        {"rate": 5},
        {"rate": (1, float("nan"))},
        {"rate": (1, "1")},
    ],
)
def test_what_makes_no_sense_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        declared("mail", **said)
    with pytest.raises(InvalidInput):
        next(queues.set_queue("mail", **said, **SCHEMA))


@pytest.mark.parametrize("name", ["", "x" * 101, "a\0b", 5])
def test_a_name_that_cannot_be_one_is_refused(name: Any) -> None:
    makers: list[Callable[[], Any]] = [
        lambda: declared(name),
        lambda: next(queues.pause(name, **SCHEMA)),
        lambda: next(queues.resume(name, **SCHEMA)),
        lambda: next(queues.forget(name, **SCHEMA)),
        lambda: next(queues.set_queue(name, at_most=1, **SCHEMA)),
    ]
    for make in makers:
        with pytest.raises(InvalidInput):
            make()


async def _is(one: Desk, sql: str, wanted: int) -> bool:
    return bool(await one.value(sql) == wanted)


@asynccontextmanager
async def known(url: str, interval: float) -> AsyncIterator[tuple[Queues, list[int]]]:
    """A node's picture of the queues, and what it told of changes."""
    settings = Settings(database_url=url)
    pool = Pool("control", url, 1, settings)
    await pool.open()
    listener = Listener(url, settings)
    changed: list[int] = []
    found = Queues(pool, listener, interval=interval)
    found.on_changed(lambda: changed.append(1))
    try:
        await found.start()
        listener.start()
        await holds(lambda: "strandline.queues" in listener._connection_channels, 30)
        yield found, changed
    finally:
        await found.stop()
        await listener.stop()
        await pool.close()
