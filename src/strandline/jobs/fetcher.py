"""A node's own connection for claims: numbers them, and calls back those whose answer never came."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

from strandline.errors import NodeEvicted, Unavailable
from strandline.jobs.fetch import (
    Piece,
    claim,
    claim_piece,
    first_claim,
    give_back,
    jobs_to_cancel,
    recall,
    recall_unwanted,
)
from strandline.jobs.parts import Limits
from strandline.jobs.row import COUNTER_BITS, Claimed, Ended
from strandline.jobs.wiring import JobWiring
from strandline.loops import Loop, Rhythm
from strandline.postgres.line import Line
from strandline.postgres.operations import Answer, Op
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs")

DEADLINE = 10.0  # seconds for one claim
RECALL_FOR = 3 * DEADLINE  # seconds in which a statement that nobody waits for may yet commit
BRIEFLY = 2.0  # seconds that somebody waits for jobs to be given back
# The statements here are for a few rows of a table whose size changes all the time: plans that
# suit a moment without statistics must not stay.
PLANS = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


class Fetcher:
    """Claims jobs for one node, for all of its queues in turn.

    Args:
        wiring: Where the database is.
        limits: Claim from queues with limits.
        on_given: Called when jobs were given back.
        on_unwanted: Called with the end of a job that was never begun, and is to be cancelled.
    """

    def __init__(
        self,
        wiring: JobWiring,
        limits: Limits,
        on_given: Callable[[], None],
        on_unwanted: Callable[[Ended], None],
    ) -> None:
        self._wiring = wiring
        self._on_unwanted = on_unwanted
        self._clock = wiring.clock
        self._limits = limits
        self._on_given = on_given
        self._number = 0
        self._is_cut = False
        self._counter = _counter()
        self._asked: set[int] = set()  # claims under way
        self._doubtful: dict[int, float] = {}  # claims without an answer, and since when
        self._unreturned: dict[tuple[int, int], Claimed] = {}
        self._line = _line(wiring, self._number)
        self._loop = Loop("job recall", self._called_back, Rhythm(1.0))

    def begin(self, number: int) -> None:
        """Claim for node *number* from now on."""
        self._number, self._counter = number, _counter()
        self._line = _line(self._wiring, number)
        self._loop.start()

    async def claim(
        self, queue: str, kinds: Sequence[str], limit: int, start: tuple[int, int]
    ) -> list[Claimed]:
        """Claim jobs; see ``fetch.claim``.

        Raises:
            Unavailable: No answer. What may have been claimed is given back in the background.
            NodeEvicted: After ``cut``.
        """
        return await self._ask(lambda token: claim(queue, kinds, limit, token, *start))

    async def claim_piece(
        self, queue: str, kinds: Sequence[str], limit: int, start: tuple[int, int]
    ) -> Piece:
        """Claim jobs from the next piece of the line. Raises as ``claim``."""
        return await self._ask(lambda token: claim_piece(queue, kinds, limit, token, start))

    async def claim_limited(
        self, queue: str, kinds: Sequence[str], limit: int
    ) -> list[Claimed] | None:
        """Claim jobs of a queue with limits; None: ask again in a moment. Raises as ``claim``."""
        return await self._ask(lambda token: self._limits.claim(queue, kinds, limit, token))

    def pause_of(self, queue: str) -> float | None:
        """See ``Limits``."""
        return self._limits.pause_of(queue)

    async def give_back(self, jobs: Iterable[Claimed]) -> None:
        """Give *jobs* back, which were not begun: now, or as soon as the database answers."""
        if self._is_cut:
            return
        self._unreturned |= {(job.id, job.claim): job for job in jobs}
        if self._unreturned:
            try:
                async with asyncio.timeout(BRIEFLY):
                    await self._returned()
            except (Unavailable, TimeoutError) as error:
                log.tell("jobs_not_given_back", count=len(self._unreturned), error=error)
                self._loop.wake()

    async def to_cancel(self) -> list[int]:
        """Ids of this node's running jobs that somebody wants cancelled."""
        wanted = await self._line.run(jobs_to_cancel(self._number))
        return [one.id for one in wanted]

    async def stop(self) -> None:
        """Give back what is left, as far as that can be done now, and close the connection."""
        await self._loop.stop(timeout=BRIEFLY)
        try:
            async with asyncio.timeout(BRIEFLY):
                await self._called_back()
        except (Unavailable, TimeoutError) as error:
            log.tell("fetched_jobs_kept", error=error)
        await self._line.close()

    async def cut(self) -> None:
        """End at once: this node is none any more, and its jobs are others'."""
        self._is_cut = True
        self._doubtful.clear()
        self._unreturned.clear()
        self._line.cut()
        await self._loop.stop(timeout=0.1)

    def knows(self, job: int, claim: int) -> bool:
        """Whether *job* is about to come here under *claim*, or to be given back."""
        return claim in self._asked or claim in self._doubtful or (job, claim) in self._unreturned

    async def _ask(self, claiming: Callable[[int], Op[Answer]]) -> Answer:
        token = self._token()
        self._asked.add(token)
        try:
            return await self._line.run(claiming(token))
        except BaseException:
            self._doubtful[token] = self._clock.monotonic()
            self._loop.wake()
            raise
        finally:
            self._asked.discard(token)

    def _token(self) -> int:
        if self._is_cut:
            raise NodeEvicted(str(self._number), reason="its jobs are others'")
        return first_claim(self._number) + next(self._counter) % (1 << COUNTER_BITS)

    async def _called_back(self) -> None:
        if self._unreturned:
            await self._returned()
        if not self._doubtful:
            return
        asked = dict(self._doubtful)
        tokens = sorted(asked)
        given = await self._line.run(recall(tokens))
        for job in await self._line.run(recall_unwanted(tokens)):
            self._unwanted(job)
        now = self._clock.monotonic()
        for token, since in asked.items():
            if now - since > RECALL_FOR:
                self._doubtful.pop(token, None)
        if given:
            log.tell("unanswered_claims_given_back", queues=sorted(given))
            self._on_given()

    async def _returned(self) -> None:
        asked = dict(self._unreturned)
        given = await self._line.run(give_back(asked.values()))
        for one in asked:
            self._unreturned.pop(one, None)
        for job in asked.values():
            if job.id in given.unwanted:
                self._unwanted(job)
        if given.queues:
            self._on_given()

    def _unwanted(self, job: Claimed) -> None:
        if not self._is_cut:
            self._on_unwanted(Ended(job, "cancelled", reason="cancelled before it was begun"))


def _counter() -> Iterator[int]:
    """Numbers of fetches, from a place of chance: a fail-over may give a node's number out twice."""
    return count(secrets.randbits(COUNTER_BITS - 1))


def _line(wiring: JobWiring, number: int) -> Line:
    settings = wiring.settings
    url = wiring.pools.control_url
    is_pooled = settings.pooler == "transaction" and url != settings.direct_url
    return Line(
        url,
        settings.schema,
        application=f"strandline jobs {number}",  # see rescue.end_sessions
        connect_timeout=settings.connect_timeout,
        deadline=min(DEADLINE, settings.statement_timeout),
        prepared=settings.prepared_statements and not is_pooled,
        parameters=PLANS,
    )
