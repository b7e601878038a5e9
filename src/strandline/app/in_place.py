"""A rebuild in place: deleted, and begun again from the start."""

from __future__ import annotations

from collections.abc import Sequence

from strandline.app.versions import patiently
from strandline.daemon import exchange, rebuilds, slicing
from strandline.daemon.scope import EVERYTHING
from strandline.postgres.operations import Op
from strandline.postgres.pools import Pool
from strandline.projections.documents import Documents
from strandline.projections.projection import Projection
from strandline.projections.sql_projection import OwnTables
from strandline.requests import Model, Requests

PATIENCE = 0.7  # seconds for a lock; less than deadlock_timeout
GIVES_UP_AFTER = 30.0  # seconds


async def emptied_at_rest(
    pool: Pool, requests: Requests, projection: Projection, shards: Sequence[str]
) -> bool:
    """Send *projection* back to the beginning and delete what it has written.

    Args:
        pool: The work pool.
        requests: Of the app.
        projection: One that nodes run.
        shards: Its shards, all of which are at rest.

    Returns:
        False if it was cut into other shards meanwhile, which are not at rest: nothing was done.

    Raises:
        AnswerTimedOut: Batches, or readers, have been in the way all the time.
    """
    model = requests.model(projection)
    try:
        await patiently(
            pool,
            lambda: _emptied(model, projection.label, shards, requests.settings.schema),
            f"{projection.label} was not emptied",
            timeout=GIVES_UP_AFTER,
        )
    except _NotAtRestError:
        return False
    return True


def _emptied(model: Model, label: str, shards: Sequence[str], schema: str) -> Op[None]:
    yield from rebuilds.be_patient(exchange.CALM_PATIENCE)
    yield from model.create()
    if not isinstance(model, OwnTables):
        pairs = exchange.filled_in(model.tables(), schema)
        yield from exchange.keep_autovacuum_away([pair.live for pair in pairs])
        # Waiting for a batch with letters may be a deadlock: this gives way then, before the batch does.
        yield from rebuilds.be_patient(PATIENCE)
    # Whoever is not at rest after all must not deadlock with this. A batch of documents is one
    # statement, which has locked the table before it comes to the shard's row; other batches lock
    # the row, then the table.
    table_first = isinstance(model, Documents)
    if table_first:
        yield from model.empty()
    # Twice: the first waits for a change of its cut, and would not see the new shards.
    yield from slicing.reset(label)
    found = yield from slicing.reset(label)
    if set(found) - set(shards):
        raise _NotAtRestError
    if not table_first:
        yield from model.empty()
    yield from exchange.supersede(label, EVERYTHING, "it was rebuilt in place")


class _NotAtRestError(Exception):
    """The projection's shards are others by now."""
