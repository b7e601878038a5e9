"""Why a build does not get on, in words that are kept in its row; empty: nothing keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from strandline.daemon import rebuilds, slicing
from strandline.daemon.checkpoint import is_locked
from strandline.daemon.rebuilds import Build, BuildProgress, Standing
from strandline.postgres.operations import Op
from strandline.postgres.pools import Pool

WAITS = "it waits: "
"""How those begin that are taken away again as soon as they are not true any more."""

UNKNOWN = "no node that is there has code of it: start one, or cancel it"


def in_the_queue(rows: Sequence[BuildProgress], at_once: int) -> str:
    """Of a build that has not begun, while as many as *at_once* are under way: *rows*."""
    resting: dict[str, bool] = {}
    for row in rows:
        if row.state != "queued":
            shadow = f"{row.label}~{row.number}"
            resting[shadow] = resting.get(shadow, False) or row.shard_state == "paused"
    names = ", ".join(name + " (pauses)" * rests for name, rests in sorted(resting.items()))
    return f"{WAITS}rebuilds_at_once is {at_once}, and under way are {names}"


def unsealed(standing: Standing, *, is_exact: bool, is_near: bool) -> str:
    """Of one that cannot be sealed, since one side pauses and the other would stand still."""
    if standing.pauses is not None:
        return f"{WAITS}{standing.pauses}"
    if not standing.is_settled:
        return f"{WAITS}what serves is being cut otherwise"
    if is_exact and is_near and standing.live_pauses is not None:
        return f"{WAITS}what serves pauses, and has to come as far: {standing.live_pauses}"
    return ""


def behind(standing: Standing) -> str:
    """Of one that was sealed for long."""
    pauses = f" ({standing.live_pauses})" if standing.live_pauses is not None else ""
    return (
        f"it was sealed at {standing.seal}: the build is at {standing.shadow_low}, what serves at"
        f" {standing.live_low}, and does not get on{pauses}"
    )


def gave_way(error: Exception) -> str:
    """Of one whose swap was tried, and has to be tried again."""
    if is_locked(error):
        return "somebody reads a table of it for long: the swap waits for that"
    return str(error)


def too_long(build: Build, error: Exception, tries: int) -> str:
    """Of one that fails, since no try is long enough."""
    if build.purpose != "rebuild":
        part = "compare or exchange a smaller part"
    else:
        part = "rebuild a smaller part" if not build.is_whole else "make room on the server"
    return (
        f"its last step was tried {tries} times, and took longer than a statement may ({error}):"
        f" {part}, or raise statement_timeout"
    )


async def keep(pool: Pool, build: Build, reason: str) -> None:
    """Let *build* say *reason*, if nobody takes a step of it at this moment; empty: it gets on."""
    if reason == build.reason or not (reason or build.reason.startswith(WAITS)):
        return
    async with pool.transaction() as session:
        now = await session.run(rebuilds.lock(build.number))
        if now is not None and now.state == build.state and now.reason == build.reason:
            await session.run(rebuilds.note(now, now.state, reason))


async def compared_again(pool: Pool, build: Build, error: Exception) -> None:
    """Let *build* say why its comparison, which had begun, has not come to an end."""
    async with pool.transaction() as session:
        now = await session.run(rebuilds.lock(build.number))
        if now is not None and now.state == "building":
            reason = f"it is going to be compared again: {error}"
            await session.run(rebuilds.note(now, now.state, reason))


def may_begin(build: Build, at_once: int) -> Op[bool]:
    """Whether *build*, queued and locked, may begin now; it says for what it waits."""
    if (yield from rebuilds.count_building()) >= at_once:
        reason = in_the_queue((yield from rebuilds.progress()), at_once)
    elif build.label in (yield from slicing.slicings([build.label])):
        return True
    else:
        reason = f"{WAITS}no node has ever run {build.label}"
    if reason != build.reason:
        yield from rebuilds.note(build, build.state, reason)
    return False


async def tell_unknown(pool: Pool, known: Mapping[str, object]) -> None:
    """Let builds say so that nobody's code has; *known*: what this process could build."""
    for row in await pool.run(rebuilds.progress()):
        if row.known_by == 0 and row.label not in known and not row.reason:
            async with pool.transaction() as session:
                now = await session.run(rebuilds.lock(row.number))
                if now is not None and now.is_open and not now.reason:
                    await session.run(rebuilds.note(now, now.state, UNKNOWN))
