"""The fence (I1, I3): a write that names a wrong owner, epoch or position changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from tally import Seen, Versions, connected, tally_app

from strandline.app import App
from strandline.daemon.batch import Batch
from strandline.daemon.checkpoint import Checkpoint, claim, move, reread, reset
from strandline.daemon.document_batch import DocumentProcessor
from strandline.daemon.feed import Page
from strandline.errors import CheckpointMoved

SHARD = "versions:v1:all"
ME = UUID(int=7)
WRONG: list[dict[str, Any]] = [
    {"epoch": 1},
    {"epoch": 3},
    {"owner": UUID(int=1)},
    {"position": 9},
    {"position": 11},
    {"shard": "versions:v2:all"},
]


async def claimed(app: App) -> Checkpoint:
    """The right to go on at position 10, under epoch 2."""
    run = app.pools.work.run
    await run(claim(SHARD, uuid4()))
    checkpoint = await run(claim(SHARD, ME))
    await run(move(checkpoint, 10))
    return checkpoint.at(10)


def processor(app: App) -> DocumentProcessor:
    documents = app.requests.documents(Versions)
    return DocumentProcessor(documents, app.registry.types, app.pools.work, app.settings)


BATCH = Batch(
    Page(10, 20, ()),
    (
        '[{"t": "default", "i": "new", "d": {"versions": [1]}, "v": 1, "p": 11}]',
        '[{"t": "default", "i": "old"}]',
    ),
)


async def where(app: App) -> tuple[int, int, UUID]:
    async with connected(app.url) as other:
        row = await other.fetchrow(
            "SELECT position, epoch, owner FROM strandline.shards WHERE name = $1", SHARD
        )
    return tuple(row)


async def with_an_old_document(app: App) -> None:
    async with connected(app.url) as other:
        await other.execute(
            """INSERT INTO strandline.doc_versions_v1 (tenant, id, data, version, position)
               VALUES ('default', 'old', '{"versions": [7]}', 1, 1)"""
        )


async def test_the_owner_moves_on_and_writes(database_url: str) -> None:
    async with tally_app(database_url) as app:
        checkpoint = await claimed(app)
        await with_an_old_document(app)

        await processor(app).commit(BATCH, checkpoint)

        assert await where(app) == (20, 2, ME)
        assert dict(await app.query(Versions)) == {"new": Seen([1])}
        with pytest.raises(CheckpointMoved):
            await processor(app).commit(BATCH, checkpoint)  # the same batch a second time


@pytest.mark.parametrize("wrong", WRONG, ids=str)
async def test_a_batch_of_documents_under_a_wrong_claim_writes_nothing(
    database_url: str, wrong: dict[str, Any]
) -> None:
    async with tally_app(database_url) as app:
        checkpoint = replace(await claimed(app), **wrong)
        await with_an_old_document(app)

        with pytest.raises(CheckpointMoved, match="another node has claimed it"):
            await processor(app).commit(BATCH, checkpoint)

        assert await where(app) == (10, 2, ME)
        assert dict(await app.query(Versions)) == {"old": Seen([7])}


@pytest.mark.parametrize("wrong", WRONG, ids=str)
async def test_a_checkpoint_under_a_wrong_claim_does_not_move(
    database_url: str, wrong: dict[str, Any]
) -> None:
    async with tally_app(database_url) as app:
        checkpoint = replace(await claimed(app), **wrong)

        with pytest.raises(CheckpointMoved):
            await app.pools.work.run(move(checkpoint, 20))

        assert await where(app) == (10, 2, ME)


async def test_every_claim_raises_the_epoch_and_begins_where_the_last_one_ended(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        first = await claimed(app)

        again = await app.pools.work.run(claim(SHARD, ME, start=3))

        assert (again.epoch, again.position) == (first.epoch + 1, 10)
        with pytest.raises(CheckpointMoved):
            await app.pools.work.run(move(first, 20))
        with pytest.raises(CheckpointMoved):
            await app.pools.work.run(reread(first))
        assert await app.pools.work.run(reread(again)) == again


async def test_an_epoch_that_was_given_twice_is_good_for_its_owner_only(database_url: str) -> None:
    """As after a fail-over to a server that had not heard of the last claim."""
    async with tally_app(database_url) as app:
        checkpoint = await claimed(app)
        async with connected(app.url) as other:
            await other.execute("UPDATE strandline.shards SET owner = $1", UUID(int=8))

        with pytest.raises(CheckpointMoved):
            await app.pools.work.run(reread(checkpoint))
        with pytest.raises(CheckpointMoved):
            await app.pools.work.run(move(checkpoint, 20))


async def test_a_reset_refuses_whoever_runs_the_shard(database_url: str) -> None:
    async with tally_app(database_url) as app:
        checkpoint = await claimed(app)

        await app.pools.work.run(reset(SHARD))

        assert await where(app) == (0, 3, None)
        with pytest.raises(CheckpointMoved):
            await app.pools.work.run(move(checkpoint, 20))


async def test_a_shard_that_never_ran_begins_where_it_is_told(database_url: str) -> None:
    async with tally_app(database_url) as app:
        found = await app.pools.work.run(claim("new:all", ME, start=42))

        assert (found.epoch, found.position) == (1, 42)
