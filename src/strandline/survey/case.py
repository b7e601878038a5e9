"""What findings are made from: a survey, the one before, and from when on something is worth a word."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import cached_property

from strandline.settings import Settings
from strandline.survey.facts import ShardFacts, Survey

APP = "MODULE:APP"  # stands in cures where nobody has said which App it is
STARTING = 15.0  # seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """From when on something is worth a word; seconds unless said otherwise.

    Attributes:
        behind: Lag of a shard.
        starting: For a node to begin what it was given.
        waiting: For a job that may run.
        idle: For a transaction in which nothing happens.
        long: For one that is in use, and for a build that tells nothing.
        horizon: For a snapshot that keeps dead rows from being removed.
        recent: Since a node has gone.
        stop: For a stop.
        loop: Lateness of an event loop.
        still: Between two surveys that tell whether a shard gets on.
        full: Share of the connections.
        terms: Terms of leaders within an hour.
    """

    behind: float = 60.0
    starting: float = STARTING
    waiting: float = 60.0
    idle: float = 30.0
    long: float = 300.0
    horizon: float = 3_600.0
    recent: float = 3_600.0
    stop: float = 20.0
    loop: float = 1.0
    still: float = 10.0
    full: float = 0.9
    terms: int = 6

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Those that *settings* ask for."""
        return cls(
            idle=settings.leak_after,
            stop=0.8 * settings.stop_timeout,
            starting=max(STARTING, settings.rebalance_interval + settings.revoke_timeout / 2),
        )


@dataclass(frozen=True)
class Case:
    """What is to be judged.

    Attributes:
        survey: The picture.
        before: An earlier one; None: nothing can be said of what grows.
        app: Where the App is declared, for commands that need it.
        unhealed: Events that came late and are left to be healed; None: nobody has looked.
    """

    survey: Survey
    before: Survey | None = None
    limits: Limits = field(default_factory=Limits)
    app: str = APP
    unhealed: int | None = None

    @property
    def node(self) -> str:
        """The command that starts a node."""
        return f"strandline node {self.app}"

    @property
    def is_cluster(self) -> bool:
        """Whether nodes share the work."""
        return self.survey.mode == "cluster"

    @property
    def is_worked(self) -> bool:
        """Whether any app is there that could run something."""
        if self.is_cluster:
            return any(one.is_here and one.state != "silent" for one in self.survey.nodes)
        return self.survey.server is None or self.survey.server.room.apps > 0

    def shard_before(self, shard: ShardFacts) -> ShardFacts | None:
        """*shard* as it was in the earlier survey; None if that is too young to tell anything."""
        return self._before.get(shard.name) if self._between >= self.limits.still else None

    @cached_property
    def unplaced(self) -> frozenset[str]:
        """Names of work that the leader found no node for."""
        return frozenset(one.name for one in self.survey.work.unplaced)

    @cached_property
    def versions(self) -> dict[str, int]:
        """The latest version of each projection that has any."""
        found: dict[str, int] = {}
        for one in self.survey.shards:
            name, version = versioned(one.projection)
            found[name] = max(version, found.get(name, 0))
        return found

    @cached_property
    def _before(self) -> dict[str, ShardFacts]:
        return {one.name: one for one in self.before.shards} if self.before is not None else {}

    @property
    def _between(self) -> float:
        """Seconds between the surveys."""
        if self.before is None:
            return 0.0
        return (self.survey.taken_at - self.before.taken_at).total_seconds()


def word(text: str) -> str:
    """*text* as it is typed in a shell."""
    return shlex.quote(text)


def last_word(text: str) -> str:
    """The same, at the end of a command, where it could be taken for an option."""
    return f"-- {word(text)}" if text.startswith("-") else word(text)


def versioned(label: str) -> tuple[str, int]:
    """Name and version of a projection; a subscription has version 0."""
    name, _, version = label.rpartition(":v")
    return (name, int(version)) if name and version.isdecimal() else (label, 0)


def projection_of(name: str) -> str:
    """What a shard's name is of: ``orders:v2`` for ``orders:v2:3/8``."""
    return name.rpartition(":")[0] or name


def pattern(names: list[str]) -> str:
    """What stands for *names*, shards of one projection, in `strandline work`."""
    return names[0] if len(names) == 1 else f"{projection_of(names[0])}:*"
