"""Start, wait until told to end, shut down: the life of a node, whatever of it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from strandline.cluster.shutdown import Shutdown
from strandline.cluster.shutdown_report import ShutdownReport


async def until_told(
    start: Callable[[], Awaitable[Any]],
    told: Callable[[], Awaitable[str]],
    shutdown: Shutdown,
    *,
    began: Callable[[], float | None] = lambda: None,
) -> ShutdownReport:
    """Call *start*, wait for *told*, run *shutdown*. Told during the start, break that off.

    Cancelling the call is a request to end as well: it runs the same steps and raises at their end.

    Args:
        start: Starts everything, and registers with *shutdown* how each part is stopped.
        told: Waits for the request to end; its reason.
        shutdown: What was registered there is stopped, also after a start that failed.
        began: Monotonic moment of the request, from which the time limits count.

    Raises:
        BaseException: What *start* raised, once everything it had started is stopped.
    """
    waiting = asyncio.create_task(_isolated(told), name="strandline:told")
    await asyncio.sleep(0)
    if waiting.done():  # told already, perhaps during the imports: start nothing
        return await shutdown.run(_reason(waiting.result()), began=began(), stubborn=True)
    starting = asyncio.create_task(_isolated(start), name="strandline:start")
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        failure = starting.result() if starting.done() else None
        if isinstance(failure, BaseException) and not waiting.done():
            await shutdown.run(f"start failed: {type(failure).__name__}", stubborn=True)
            raise failure
        await asyncio.wait({waiting})
    except asyncio.CancelledError:
        if not starting.done():
            shutdown.break_off(starting)
        await shutdown.run("cancelled", stubborn=True)
        raise
    finally:
        waiting.cancel()
    if not starting.done():
        shutdown.break_off(starting)
    return await shutdown.run(_reason(waiting.result()), began=began(), stubborn=True)


def _reason(told: Any) -> str:
    return told if isinstance(told, str) else f"failed: {told!r}"


async def _isolated(call: Callable[[], Awaitable[Any]]) -> Any:
    """What *call* gives or raises; SystemExit would end the event loop."""
    try:
        return await call()
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return error
