"""``app.queues``: the queues of a database, and what is said about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strandline.errors import InvalidDefinition, InvalidInput, NotFound
from strandline.jobs import queues
from strandline.jobs.queues import UNSAID, QueueSettings, QueueState, Rate, Unsaid

if TYPE_CHECKING:
    from strandline.postgres.pools import Pool, Pools
    from strandline.settings import Settings


class QueueFace:
    """Queues of an app."""

    declared_queues: dict[str, QueueSettings]

    if TYPE_CHECKING:
        settings: Settings

        @property
        def pools(self) -> Pools: ...

    def queue(
        self,
        name: str,
        /,
        *,
        concurrency: int | None = None,
        at_most: int | None = None,
        per_key: int | None = None,
        rate: Rate | None = None,
    ) -> None:
        """Declare limits of a queue. A queue needs no declaration to be used.

        Written down when the app opens; what an operator has set wins, see ``app.queues.set``.

        Args:
            name: Of the queue, 1 to 100 bytes.
            concurrency: Jobs at once on each node; None: the setting ``job_concurrency``.
            at_most: Jobs at once on all nodes together.
            per_key: Jobs at once of one key, on all nodes together.
            rate: (jobs, seconds): so many may begin in so long, on all nodes together.

        Raises:
            InvalidDefinition: A number is not positive, or the name is taken or cannot be one.
        """
        if name in self.declared_queues:
            raise InvalidDefinition(f"queue {name!r} is declared already")
        try:
            said = queues.declared(
                name, concurrency=concurrency, at_most=at_most, per_key=per_key, rate=rate
            )
        except InvalidInput as error:
            raise InvalidDefinition(f"queue {name!r}: {error}") from error
        self.declared_queues[name] = said

    async def _declare_queues(self, pool: Pool) -> None:
        for said in self.declared_queues.values():
            await pool.run(queues.declare(said, schema=self.settings.schema))

    @property
    def queues(self) -> QueueDesk:
        """Where jobs wait: look, pause, limit."""
        return QueueDesk(self.pools.work, self.settings.schema)


class QueueDesk:
    """The queues of one database. What is said here is followed by all nodes within two seconds.

    Args:
        pool: Of the database.
        schema: Of the tables.
    """

    def __init__(self, pool: Pool, schema: str) -> None:
        self._pool = pool
        self._schema = schema

    async def list(self) -> list[QueueState]:
        """Queues that have settings or jobs, by name, with what waits and runs."""
        return await self._pool.run(queues.list_queues())

    async def get(self, name: str, /) -> QueueState:
        """One of them.

        Raises:
            NotFound: It has neither settings nor jobs.
        """
        for one in await self.list():
            if one.name == name:
                return one
        raise NotFound(f"queue {name!r} has neither settings nor jobs")

    async def pause(self, name: str, /, reason: str = "") -> None:
        """Let nothing of it be fetched until it is resumed; what runs goes on."""
        await self._pool.run(queues.pause(name, reason, schema=self._schema))

    async def resume(self, name: str, /) -> bool:
        """Let it be fetched again; whether it was paused."""
        return await self._pool.run(queues.resume(name, schema=self._schema))

    async def set(
        self,
        name: str,
        /,
        *,
        concurrency: int | Unsaid | None = UNSAID,
        at_most: int | Unsaid | None = UNSAID,
        per_key: int | Unsaid | None = UNSAID,
        rate: Rate | Unsaid | None = UNSAID,
    ) -> QueueSettings:
        """Set what is given; code does not change its settings any more until it is forgotten.

        Args:
            name: Of the queue.
            concurrency: Jobs at once on each node; None: as the node says.
            at_most: Jobs at once on all nodes together; None: no limit. So with the others.
            per_key: Jobs at once of one key, on all nodes together.
            rate: (jobs, seconds): so many may begin in so long.

        Raises:
            InvalidInput: Nothing is given, or a number is not positive.
        """
        op = queues.set_queue(
            name,
            schema=self._schema,
            concurrency=concurrency,
            at_most=at_most,
            per_key=per_key,
            rate=rate,
        )
        return await self._pool.run(op)

    async def forget(self, name: str, /) -> bool:
        """Forget its settings and its pause; its jobs stay. Whether there was something.

        What code declares comes back when a node starts.
        """
        return await self._pool.run(queues.forget(name, schema=self._schema))
