"""The versions of an app's projections, and where its subscriptions stand: settle, retire, rewind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from strandline.daemon import retiring, rewinding
from strandline.daemon.retiring import NotYetError, Retired
from strandline.daemon.rewinding import CHECKPOINTS_CHANNEL, Rewound
from strandline.errors import AnswerTimedOut, DatabaseUnavailable, InvalidDefinition, Unavailable
from strandline.events.high_water import HighWater
from strandline.postgres.operations import Op
from strandline.postgres.pools import Pool
from strandline.projections.lifecycles import is_locked
from strandline.projections.projection import Projection
from strandline.projections.registry import Reference, Registry
from strandline.projections.subscription import Subscription
from strandline.requests import SETTLED_WITHIN, Requests, rest_between_tries
from strandline.settings import Settings
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

if TYPE_CHECKING:
    from strandline.daemon.progress import Waiting
    from strandline.postgres.pools import Pools

log = Journal("strandline.versions")
Answer = TypeVar("Answer")


class VersionFace:
    """What is done to a version of a projection, or to a subscription, as a whole."""

    if TYPE_CHECKING:
        registry: Registry
        settings: Settings

        @property
        def pools(self) -> Pools: ...
        @property
        def requests(self) -> Requests: ...
        @property
        def waiting(self) -> Waiting: ...

    async def retire(
        self, projection: Reference, *, timeout: float = 30.0, force: bool = False
    ) -> None:
        """Drop what an old version of a projection has written, and never run it again.

        Nodes that still run it stop doing so, and old code that is started again leaves it out. If it
        is the version that raises the side effects, the newest one takes over, exactly where this one
        has ended.

        Args:
            projection: The old version: its class while a higher version is registered, or its label,
                e.g. ``"orders:v1"``, which need not be registered.
            timeout: Seconds to wait for batches and appends under way, and until the version has
                raised all side effects that the newest one has passed silently.
            force: Do not wait for that: nobody raises those side effects.

        Raises:
            InvalidDefinition: It is the version that this code has.
            UnknownProjection: Nothing is known of it.
            ConflictError: It is being rebuilt; or it has open dead letters, and so has not raised
                the side effects of their events.
            AnswerTimedOut: Not within *timeout* seconds; the message says what it waits for.
        """
        await retire(self.pools.control, self.requests, projection, timeout=timeout, force=force)
        self.waiting.wake()

    async def rewind(
        self, subscription: Any, to: int | datetime | str, *, timeout: float = 60.0
    ) -> int:
        """Send a subscription to another place of the log; the position that it goes on behind.

        Works while nodes run it: what is under way is refused, and comes again. With ``(batch, tx)``
        every event beyond the position is handled exactly once from then on. Its open dead letters
        beyond the position are superseded.

        Args:
            subscription: Its function or its name.
            to: A position: everything beyond it comes (again); a time (aware): everything recorded
                then or later; ``"beginning"``; or ``"present"``, which leaves out what is pending.
            timeout: Seconds to wait for batches under way.

        Raises:
            InvalidDefinition: It is a projection: use ``rebuild``.
            InvalidInput: *to* lies beyond the high-water mark or in the future.
            ConflictError: It is being rebuilt.
            AnswerTimedOut: A batch did not end within *timeout* seconds.
        """
        done = await rewind(
            self.pools.control, self.registry, self.settings, subscription, to, timeout=timeout
        )
        self.waiting.wake()
        return done.position


async def settle(pool: Pool, requests: Requests) -> None:
    """Let every stored projection be kept as the code says: by its appends, or by nodes.

    Raises:
        InvalidDefinition: One cannot be kept by its appends now; the message says why.
        AnswerTimedOut: Appends that began before did not end.
    """
    if await pool.run(requests.unsettled()):
        await patiently(
            pool, requests.settle, "a change of lifecycle was not made", timeout=SETTLED_WITHIN
        )
    for text in await pool.run(requests.left_to_nodes()):
        log.tell("lifecycle_differs", advice=text)


async def retire(
    pool: Pool,
    requests: Requests,
    reference: Reference,
    *,
    timeout: float = 30.0,
    force: bool = False,
) -> Retired:
    """See ``VersionFace.retire``."""
    label = retired_label(requests.registry, reference)
    schema = requests.settings.schema
    silent = requests.registry.is_silent(label)
    checkpoints = f"{schema}.{CHECKPOINTS_CHANNEL}"

    def bury() -> Op[Retired]:
        return retiring.bury(
            label,
            schema=schema,
            channel=f"{schema}.cluster",
            checkpoints=checkpoints,
            silent=silent,
            force=force,
        )

    def drop() -> Op[None]:
        return requests.drop_retired(label, retiring.drop)

    waits_for: set[str] = set()

    async def keep_still(reason: Exception) -> None:
        if isinstance(reason, NotYetError):
            waits_for.add(reason.heir)
            op = retiring.keep_still(label, reason.heir, checkpoints=checkpoints)
            async with pool.transaction() as session:
                await session.run(op)

    try:
        done = await patiently(
            pool, bury, f"{label} was not retired", timeout=timeout, meanwhile=keep_still
        )
    except BaseException:
        with suppress(Unavailable):  # whoever cares for cuts does it
            for heir in waits_for:
                await pool.run(retiring.let_go(label, heir))
        raise
    await patiently(pool, drop, f"the tables of {label} were not dropped", timeout=timeout)
    requests.forget(label)
    told = f"; {done.heir} raises side effects beyond {done.effects_after}" if done.heir else ""
    log.tell("projection_retired", projection=label, note=told)
    return done


def retired_label(registry: Registry, reference: Reference) -> str:
    """The label that is to be retired.

    Raises:
        InvalidDefinition: It is the version that this code has, or no version of a projection.
    """
    if isinstance(reference, str) and ":" in reference:
        label = reference
    else:
        label = registry.projection(reference).label
    parts = retiring.name_and_version(label)
    if parts is None:
        raise InvalidDefinition(f"{label!r} is not a version of a projection, such as 'orders:v1'")
    known = [one for one in registry.kept() if one.name == parts[0]]
    newest = max((one.version for one in known), default=0)
    if any(one.part_of is not None for one in registry.each() if one.label == label):
        raise InvalidDefinition(f"{label} is a member of a composite: retire that")
    if parts[1] == newest:
        raise InvalidDefinition(
            f"{label} is what this code has: register a higher version of it, or take it out"
        )
    return label


async def rewind(
    pool: Pool,
    registry: Registry,
    settings: Settings,
    reference: Any,
    to: int | datetime | str,
    *,
    timeout: float = 60.0,
) -> Rewound:
    """See ``VersionFace.rewind``."""
    subscription = _subscription(registry, reference)
    rewinding.checked(to, datetime.now(UTC))
    position = await pool.run(rewinding.position_of(to, await _present(pool, settings)))
    done = await patiently(
        pool,
        lambda: rewinding.rewind(
            subscription.label,
            subscription.shards,
            position,
            channel=f"{settings.schema}.{CHECKPOINTS_CHANNEL}",
            patience=min(rewinding.PATIENCE, max(timeout, 0.05)),
        ),
        f"{subscription.label} was not rewound",
        timeout=timeout,
    )
    log.tell("subscription_rewound", projection=subscription.label, position=done.position)
    return done


def _subscription(registry: Registry, reference: Any) -> Subscription:
    for one in registry.subscriptions.values():
        if reference in (one, one.handle, one.name):
            return one
    found: Projection = registry.projection(reference)
    raise InvalidDefinition(
        f"{found.label} is a projection: rewound, it would apply events a second time to what it"
        " has written; rebuild it"
    )


async def _present(pool: Pool, settings: Settings) -> int:
    """The mark, moved as far as it goes: there may be no node that looks."""
    detector = HighWater(pool, settings, Signals(), on_moved=lambda _: None)
    mark = -1
    while (position := await detector.tick()) > mark:
        mark = position
    return mark


async def patiently(
    pool: Pool,
    make: Callable[[], Op[Answer]],
    failed: str,
    *,
    timeout: float,
    meanwhile: Callable[[Exception], Awaitable[None]] | None = None,
) -> Answer:
    """Run what *make* makes in a transaction, again while it gives way to others.

    Args:
        pool: Where.
        make: Makes it, for each try.
        failed: What did not come about, in words.
        timeout: Seconds after which it is not tried again.
        meanwhile: Called with the reason before it is tried again; may give way as well.

    Raises:
        AnswerTimedOut: It still did after *timeout* seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        waits: Exception
        try:
            async with pool.transaction() as session:
                return await session.run(make())
        except NotYetError as error:
            waits = error
        except DatabaseUnavailable as error:
            if not is_locked(error):
                raise
            waits = error
        if time.monotonic() >= deadline:
            raise AnswerTimedOut(f"{failed} within {timeout:g} s: {waits}") from waits
        if meanwhile is not None:
            try:
                await meanwhile(waits)
            except DatabaseUnavailable as error:
                if not is_locked(error):
                    raise
        await asyncio.sleep(rest_between_tries(random.random()))  # noqa: S311 - spreading, not secrecy
