"""Tells whose fault it is that a method or function of the user's was left by an exception."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from strandline.errors import TO_THE_PROCESS, OwnershipLost, Unavailable


@contextmanager
def blaming(
    fault: Callable[[BaseException], Exception], *, but: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Raise *fault* of whatever leaves the block, which calls a coroutine of the user's.

    What is nobody's fault passes, as *but* does: the database or a service of ours is away, the shard is another
    node's, the shard or the process is told to end. A cancellation of a task of the user's own, and
    what extension modules raise when they panic, do not pass.
    """
    try:
        yield
    except but:
        raise
    except (Unavailable, OwnershipLost, GeneratorExit, *TO_THE_PROCESS):
        raise  # GeneratorExit closes a coroutine
    except asyncio.CancelledError as error:
        current = asyncio.current_task()
        if current is None or current.cancelling():
            raise
        raise fault(error) from error
    except BaseException as error:
        raise fault(error) from error
