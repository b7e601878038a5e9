"""A database that takes no writes: shards pause and say why, nothing is lost, they go on by themselves."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tally import (
    Versions,
    assert_applied_exactly_once,
    committed,
    connected,
    end_backends,
    fill,
    holds,
    tally_app,
)
from ward import handled, scripted, ward

from strandline.app import App
from strandline.errors import DatabaseReadOnly, DiskFull, Unavailable

CLUSTER = {"pulse": "loop", "pulse_interval": 0.1, "pulse_deadline": 0.1, "node_ttl": 3.0}
CLUSTER |= {"leader_ttl": 2.0, "leader_margin": 0.1, "rebalance_interval": 0.2}

FULL = """CREATE FUNCTION public.no_room() RETURNS trigger LANGUAGE plpgsql AS $$
          BEGIN RAISE EXCEPTION 'could not extend file: No space left on device'
                USING ERRCODE = '53100'; END $$;
          CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {table}
             FOR EACH STATEMENT EXECUTE FUNCTION public.no_room()"""


async def set_read_only(url: str, is_on: bool) -> None:
    """Set it for new connections, and end all others."""
    async with connected(url) as operator:
        await operator.execute("SET default_transaction_read_only = off")
        name = await operator.fetchval("SELECT quote_ident(current_database())")
        value = "on" if is_on else "off"
        await operator.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        if is_on:
            await end_backends(operator)


def told_by(app: App, name: str) -> list[dict[str, Any]]:
    facts: list[dict[str, Any]] = []
    app.signals.listen(lambda notice: facts.append(notice.facts) if notice.name == name else None)
    return facts


@pytest.mark.parametrize("mode", ["solo", "cluster"])
async def test_shards_pause_while_the_database_is_read_only_and_go_on_when_it_is_not(
    database_url: str, impatient: None, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    caplog.set_level(logging.WARNING)
    settings: dict[str, Any] = {"failure_pause": 30.0, "page_events": 5, "mode": mode}
    app = tally_app(database_url, **settings, **(CLUSTER if mode == "cluster" else {}))
    async with app:
        last = await fill(app, 200)
        batches, paused = committed(app), told_by(app, "shard_paused")
        recovered = told_by(app, "shard_recovered")
        await app.start()
        await batches(4)
        try:
            await set_read_only(database_url, True)
            await holds(lambda: len({one["shard"] for one in paused}) == 2, timeout=20)

            assert all(one["category"] == "database" for one in paused)
            assert any(isinstance(one["error"], DatabaseReadOnly) for one in paused)
            agents = app.statistics().agents
            assert {one.state for one in agents} <= {"paused", "running", "claiming", "stopped"}
            if mode == "solo":
                assert {one.state for one in agents} == {"paused"}
                assert all(one.next_at is not None and one.reason for one in agents)
            assert "takes no writes now" in caplog.text

            # reads go on, and refused writes say what is the matter
            assert len([event async for event in app.read_all(settled=False)]) == 200
            assert isinstance(await app.query(Versions), object)
            assert await holds(lambda: is_refused(app))
        finally:
            await set_read_only(database_url, False)
        # none of the connections is ended: each has to find out by itself
        await app.wait_for(last, timeout=20)

        await assert_applied_exactly_once(app)
        if mode == "solo":
            assert {one["shard"] for one in recovered} == {one["shard"] for one in paused}
        rows = await holds(lambda: all_running(app))
        assert [(row.reason, row.failure, row.next_at) for row in rows] == [("", None, None)] * 2


async def is_refused(app: App) -> bool:
    with pytest.raises(Unavailable) as refused:
        await fill(app, 1)
    return isinstance(refused.value, DatabaseReadOnly)


async def all_running(app: App) -> Any:
    rows = await app.progress()
    return rows if all(row.state == "running" for row in rows) else None


async def test_a_full_disk_pauses_the_shards_that_write_to_it_and_no_other(
    database_url: str, impatient: None
) -> None:
    async with tally_app(database_url, failure_pause=0.5, page_events=5, mode="solo") as app:
        last = await fill(app, 200)
        paused = told_by(app, "shard_paused")
        async with connected(database_url) as operator:
            await operator.execute(FULL.format(table="strandline.doc_versions_v1"))
            await app.start()
            await app.wait_for(last, "positions")
            row = await holds(lambda: is_paused(app, "versions:v1:all"))

            assert (row.category, row.phase) == ("database", "commit")
            assert "no room left" in row.reason
            assert row.next_at is not None
            assert {one["shard"] for one in paused} == {"versions:v1:all"}
            assert isinstance(paused[0]["error"], DiskFull)
            assert dict(await app.query(Versions)) == {}

            await operator.execute("DROP TRIGGER full_disk ON strandline.doc_versions_v1")
        await app.wait_for(last, timeout=20)
        await assert_applied_exactly_once(app)


async def test_a_disk_that_has_no_room_for_checkpoints_or_notes_either_loses_nothing(
    database_url: str, impatient: None
) -> None:
    async with tally_app(database_url, failure_pause=0.3, page_events=5, mode="solo") as app:
        last = await fill(app, 200)
        batches, paused = committed(app), told_by(app, "shard_paused")
        await app.start()
        await batches(4)
        async with connected(database_url) as operator:
            await operator.execute(FULL.format(table="strandline.shards"))
            await operator.execute(
                "CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON strandline.shard_status"
                " FOR EACH STATEMENT EXECUTE FUNCTION public.no_room()"
            )
            await holds(lambda: len({one["shard"] for one in paused}) == 2)
            agents = app.statistics().agents
            assert all("no room left" in one.reason for one in agents), "though no table says so"
            await operator.execute(
                "DROP TRIGGER full_disk ON strandline.shards;"
                "DROP TRIGGER full_disk ON strandline.shard_status"
            )
        await app.wait_for(last, timeout=20)
        await assert_applied_exactly_once(app)


async def test_an_outage_is_not_over_while_the_server_answers_but_takes_no_writes(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 20)
        processor = await scripted(app)
        try:
            async with ward(app, processor, start=False) as patient:
                await set_read_only(database_url, True)
                patient.agent.start()
                await patient.tries(0.25, 0.5, 1.0)
                for _ in range(5):
                    await patient.tries(1.0)  # looks; each is a question that would be answered
                await patient.asleep(1.0)
                assert len(patient.told("shard_paused")) == 1
                assert patient.agent.state == "paused"

                await set_read_only(database_url, False)
                await patient.goes_on_until(lambda: patient.agent.position == last)
                assert len(await handled(app)) == 20
        finally:
            await set_read_only(database_url, False)


async def is_paused(app: App, shard: str) -> Any:
    rows = {row.name: row for row in await app.progress()}
    return rows[shard] if rows[shard].state == "paused" else None


async def test_the_note_of_a_pause_is_written_as_soon_as_it_can_be(database_url: str) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 20)
        processor = await scripted(app)
        processor.script["prepare"] = [DiskFull("no room")] * 4
        async with connected(database_url) as operator:
            await operator.execute(FULL.format(table="strandline.shard_status"))
            async with ward(app, processor) as patient:
                await patient.tries(0.25, 0.5, 1.0)
                await patient.asleep(1.0)  # until it looks whether it can be told
                assert await patient.status() is None

                await operator.execute("DROP TRIGGER full_disk ON strandline.shard_status")
                patient.clock.advance(1.0)
                await patient.asleep(29.0)
                row = await patient.status()
                assert row is not None
                assert (row["state"], row["category"]) == ("paused", "database")
                assert 25 < row["left"] <= 29

                patient.clock.advance(29.0)
                await patient.reaches(last)
                assert len(await handled(app)) == 20
