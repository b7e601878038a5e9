"""What ``sl.current()`` reaches on a node."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from strandline.jobs import flows
from strandline.jobs.job import Call
from strandline.jobs.progress import ProgressBoard
from strandline.jobs.row import Claimed, Flag
from strandline.postgres.pool import Pool

Complete = Callable[[Claimed, Any], AbstractAsyncContextManager[Any]]
"""Makes the transaction that completes a job with a result as it commits."""


class NodeReach:
    """See ``context.Reach``.

    Args:
        pool: For short questions.
        board: Writes the progress.
        complete: See ``Complete``.
    """

    def __init__(self, pool: Pool, board: ProgressBoard, complete: Complete) -> None:
        self._pool = pool
        self._board = board
        self.completing = complete
        self.progress = board.note

    async def results(self, job: Claimed) -> dict[str, Any]:
        """What the jobs that *job* has waited for have returned, by name."""
        if not job.flags & Flag.HAS_PARENTS:
            return {}
        found = await self._pool.run(flows.results(job.id))
        return {name: msgspec.json.decode(text) for name, text in found.items()}

    async def enqueue(self, call: Call[Any]) -> Any:
        """Enqueue *call* on the app that declared its job."""
        return await call.enqueue()
