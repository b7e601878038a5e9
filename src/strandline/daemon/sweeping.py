"""What builds that have ended leave behind: shards that somebody held, a schema that was in use.

The shards go first. A batch that has passed the fence holds its shard until it ends, and its schema
stays for as long: without it the names in the user's SQL would mean what serves.
"""

from __future__ import annotations

from strandline.daemon import exchange, rebuilds
from strandline.daemon.rebuilds import DROP_SHADOW
from strandline.postgres.operations import Op, none
from strandline.postgres.pools import Pool
from strandline.postgres.statements import quoted
from strandline.telemetry.journal import Journal

log = Journal("strandline.rebuilds")

PATIENCE = 0.5  # seconds for whoever still uses it


async def sweep(pool: Pool, schema: str, *, channel: str) -> bool:
    """Delete it; whether nothing is left. As often as you like, on as many nodes as you like.

    Args:
        pool: Of the nodes' role.
        schema: Strandline's own.
        channel: Where other nodes hear of changed work.
    """
    clean = True
    for label in await pool.run(rebuilds.leftovers()):
        clean = await _swept(pool, label, rebuilds.clean(label, channel=channel)) and clean
    for one in await pool.run(rebuilds.shadows(exchange.marks(schema))):
        drop = none(DROP_SHADOW.about(shadow=quoted(one.name)))
        clean = await _swept(pool, one.name, drop) and clean
    return clean


async def _swept(pool: Pool, name: str, op: Op[None]) -> bool:
    try:
        async with pool.transaction(watched=False) as session:
            await session.run(rebuilds.be_patient(PATIENCE))
            await session.run(op)
    except Exception as error:  # whatever it is, it is tried again
        log.tell("leftover_stays", leftover=name, error=error)
        return False
    log.tell("leftover_gone", leftover=name)
    return True
