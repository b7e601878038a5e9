"""What the parts that run jobs share with the rest of the app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from strandline.clock import Clock, SystemClock
from strandline.jobs.kinds import Kinds
from strandline.postgres.listener import Listener, Notifier
from strandline.postgres.pools import Pools
from strandline.settings import Settings
from strandline.telemetry.signals import Signals

Begin = Callable[[Any], tuple[Any, Callable[[], None]]]
"""Makes the ``tx`` of the user's functions on a session, and what to call once that is committed."""


@dataclass(frozen=True, slots=True)
class JobWiring:
    """What the parts that run jobs share.

    Attributes:
        kinds: The jobs that the code declares.
        begin: See ``Begin``.
        queues: That the code declares; its node works them too.
    """

    pools: Pools
    settings: Settings
    signals: Signals
    listener: Listener
    notifier: Notifier
    kinds: Kinds
    begin: Begin
    queues: frozenset[str] = frozenset()
    clock: Clock = field(default_factory=SystemClock)
