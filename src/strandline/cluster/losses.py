"""Work that turns out to be another node's: told in the log with its numbers, and written down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from strandline.cluster import claims
from strandline.cluster.node import Identity
from strandline.cluster.work import Grant
from strandline.errors import LeaseLost, StrandlineError
from strandline.postgres.operations import Op
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.reconciler")


async def tell_lost(
    me: Identity, grant: Grant, run: Callable[[Op[Any]], Awaitable[Any]], signals: Signals
) -> bool:
    """Tell that *grant* ended without *me* having given it up; whether it did.

    It did not if the work itself is gone, e.g. since its projection is cut otherwise, or if it is
    nobody's under the very epoch of *grant*: then this node has released it. Never raises.
    """
    now = None
    try:
        now = await run(claims.owner_of(grant.work))
        if now is None:
            log.tell("work_withdrawn", work=grant.work, epoch=grant.epoch)
            return False
        if now.owner is None and now.epoch == grant.epoch:
            return False
    except StrandlineError as error:
        log.tell("owner_unknown", work=grant.work, error=error)
    whose = "its owner is not known" if now is None else f"nobody has it (epoch {now.epoch})"
    if now is not None and now.owner is not None:
        whose = f"node {now.node} ({now.owner}) has it under epoch {now.epoch}"
    lost = LeaseLost(grant.work, epoch=grant.epoch, reason=whose)
    log.tell("work_lost", work=grant.work, epoch=grant.epoch, reason=whose)
    signals.tell("ownership_lost", shard=grant.work, epoch=grant.epoch, error=lost)
    try:
        await run(claims.log_lost(me, grant, {"held": grant.epoch, "now": whose}))
    except StrandlineError as error:
        log.tell("loss_not_recorded", work=grant.work, error=error)
    return True
