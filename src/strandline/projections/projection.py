"""What every projection has: a name, a version, a lifecycle, and its shards' and tables' names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar

from strandline.errors import InvalidDefinition
from strandline.projections.failure_policy import ErrorPolicy, checked_policy
from strandline.projections.handlers import Handler, only_handler, waiting_method

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
MOST_SHARDS = 1000  # each costs a checkpoint and an agent, and reads what concerns the others


class Lifecycle(StrEnum):
    """When a projection is brought up to date."""

    LIVE = "live"  # folded on demand, stored nowhere
    INLINE = "inline"  # in the transaction of the append
    ASYNC = "async"  # by a node, in the background


class Projection:
    """A named, versioned rule from events to a read model.

    Attributes:
        shards: Into how many shards it is cut, by the hash of the stream or of the key.
        on_error: What is done about events that it cannot process; None: what the settings say.
        indexes: Fields of the document to index, as ``"owner"`` or ``"address.city"``; ``"*"``
            indexes everything for containment queries.
        upstream: In a composite: the classes of what earlier stages tell of their documents.
        effects_handler: Its ``@sl.effects`` method.
        enrich_handler: Its ``@sl.enrich`` method.
        members: The projections that it consists of, if it is a composite.
        part_of: The composite that it is a member of.
    """

    name: str = ""
    version: int = 1
    lifecycle: Lifecycle = Lifecycle.ASYNC
    shards: int = 1
    on_error: ErrorPolicy | None = None
    kind: ClassVar[str] = ""
    indexes: ClassVar[tuple[str, ...]] = ()
    upstream: tuple[type[Any], ...] = ()
    effects_handler: Handler | None = None
    enrich_handler: Handler | None = None
    members: tuple[Projection, ...] = ()
    part_of: Projection | None = None

    def named(
        self,
        name: str,
        version: int,
        lifecycle: str,
        shards: int = 1,
        on_error: ErrorPolicy | None = None,
    ) -> None:
        """Give the definition its name; called by ``app.projection``.

        Raises:
            InvalidDefinition: A part of it cannot be used.
        """
        self.name = checked_name(name)
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= 9999:
            raise InvalidDefinition(f"projection {name!r}: version {version!r} is not 1 to 9999")
        self.version = version
        try:
            self.lifecycle = Lifecycle(lifecycle)
        except ValueError:
            raise InvalidDefinition(
                f"projection {name!r}: lifecycle {lifecycle!r} is not live, inline or async"
            ) from None
        self.shards = checked_shards(shards, f"projection {name!r}")
        self.on_error = checked_policy(on_error, f"projection {name!r}")
        if not self.table.startswith("doc_") and (method := waiting_method(type(self))):
            raise InvalidDefinition(
                f"projection {name!r}: {method}: only sl.SingleStream and sl.MultiStream have side"
                " effects and enrichment"
            )
        if shards > 1 and self.lifecycle is not Lifecycle.ASYNC:
            raise InvalidDefinition(
                f"projection {name!r}: shards={shards} is for what nodes run; it is {lifecycle}"
            )

    @property
    def label(self) -> str:
        """Name and version, e.g. ``orders:v2``."""
        return f"{self.name}:v{self.version}"

    @property
    def run_label(self) -> str:
        """The label of what a node runs to bring it up to date: its composite's, or its own."""
        return self.label if self.part_of is None else self.part_of.label

    @property
    def table(self) -> str:
        """The name of the table its documents or rows are in; empty when it has none."""
        return ""

    @property
    def raises_effects(self) -> bool:
        """Whether it, or a member, has an ``@sl.effects`` method."""
        return any(one.effects_handler is not None for one in (self, *self.members))

    @property
    def hears_upstream(self) -> bool:
        """Whether it handles what earlier stages of its composite tell of their documents."""
        return False

    def take_waiting_handlers(self, handlers: list[Handler]) -> None:
        """Take those for effects and enrichment out of *handlers*.

        Raises:
            InvalidDefinition: Its lifecycle has none, or there are several of a kind.
        """
        self.effects_handler = only_handler(handlers, "effects")
        self.enrich_handler = only_handler(handlers, "enrich")
        for one in (self.effects_handler, self.enrich_handler):
            if one is not None and self.lifecycle is not Lifecycle.ASYNC:
                raise InvalidDefinition(
                    f"{one.name}: @sl.{one.role} is for what nodes run; {self.label} is"
                    f" {self.lifecycle}"
                )

    def bind(self, types: Any, names: Mapping[str, Any] | None) -> None:
        """Find the handlers and check them against the registered events."""
        raise NotImplementedError(f"{type(self).__name__} is not a kind of projection")


def checked_name(name: object) -> str:
    """*name*, if a projection or subscription can have it.

    Raises:
        InvalidDefinition: It is not 1 to 40 of a-z, 0-9 and _, beginning with a letter.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidDefinition(
            f"{name!r} is not a name: 1 to 40 of a-z, 0-9 and _, beginning with a letter"
        )
    return name


def checked_shards(shards: object, what: str) -> int:
    """*shards*, if *what* can be cut into so many.

    Raises:
        InvalidDefinition: It is not 1 to ``MOST_SHARDS``.
    """
    known = isinstance(shards, int) and not isinstance(shards, bool) and 1 <= shards <= MOST_SHARDS
    if not known:
        raise InvalidDefinition(f"{what}: shards={shards!r} is not 1 to {MOST_SHARDS}")
    return int(shards)  # type: ignore[call-overload,no-any-return]  # checked in the line above
