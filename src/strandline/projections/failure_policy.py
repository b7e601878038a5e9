"""What becomes of events that a projection or subscription cannot process: data, and one decision.

    @app.projection("orders", on_error=sl.ErrorPolicy(apply="skip", exceptions={KeyError: "pause"}))

Actions: ``pause`` tries the whole batch again by schedule, and then rests; nothing is passed over.
``park`` puts the event into a dead letter, and later events of the same stream or key behind it,
while all others go on. ``skip`` puts the event alone into a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from strandline.errors import (
    EventFailure,
    InvalidDefinition,
    OwnershipLost,
    Unavailable,
    UndecodableEvent,
    UnknownEventType,
)


class Action(StrEnum):
    """What is done about a failure once its tries have failed."""

    PAUSE = "pause"
    SKIP = "skip"
    PARK = "park"


Decide = Callable[[EventFailure], Action]
"""What to do about a failure of one event; it raises the failure where the policy says pause."""


class Category(StrEnum):
    """What kind of failure it is; each has a policy of its own."""

    APPLY = "apply"  # the projection's or subscription's own code raised
    UNDECODABLE = "undecodable"  # the stored JSON does not fit the class
    UNKNOWN_TYPE = "unknown_type"  # no class is registered for it
    DATABASE = "database"  # no answer, read-only, full
    OWNERSHIP = "ownership"  # another node has the shard
    OTHER = "other"  # nobody has foreseen it: a defect, ours or a library's


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """What is done about events that cannot be processed.

    Attributes:
        apply: The projection's own code raised.
        undecodable: The stored JSON does not fit the registered class.
        unknown_type: No class is registered: ``ignore`` (projections pass such events, subscriptions
            get them as ``UnknownEvent``), or an action.
        exceptions: Exception class of the user's code → action, before ``apply``; the nearest class
            counts.
    """

    apply: str = Action.PARK
    undecodable: str = Action.PARK
    unknown_type: str = "ignore"
    exceptions: Mapping[type[BaseException], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is no action."""
        actions = [one.value for one in Action]
        for name, value in (("apply", self.apply), ("undecodable", self.undecodable)):
            if value not in actions:
                raise InvalidDefinition(f"{name}={value!r} is not one of {', '.join(actions)}")
        if self.unknown_type not in ("ignore", *actions):
            raise InvalidDefinition(
                f"unknown_type={self.unknown_type!r} is not one of ignore, {', '.join(actions)}"
            )
        for cls, value in self.exceptions.items():
            if not (isinstance(cls, type) and issubclass(cls, BaseException)):
                raise InvalidDefinition(f"exceptions: {cls!r} is not an exception class")
            if value not in actions:
                raise InvalidDefinition(
                    f"exceptions: {value!r} for {cls.__name__} is not one of {', '.join(actions)}"
                )

    def action(self, error: BaseException) -> Action:
        """What to do about *error*; everything that is no event's failure is a pause."""
        category = category_of(error)
        if category is Category.UNDECODABLE:
            return Action(self.undecodable)
        if category is Category.UNKNOWN_TYPE:
            return Action.PAUSE if self.unknown_type == "ignore" else Action(self.unknown_type)
        if category is not Category.APPLY:
            return Action.PAUSE
        cause = error.__cause__ or error
        for cls in type(cause).__mro__:
            if cls in self.exceptions:
                return Action(self.exceptions[cls])
        return Action(self.apply)


CONTINUOUS = ErrorPolicy()
"""While a projection runs: others must not wait for one bad event."""

REBUILDING = ErrorPolicy(apply=Action.PAUSE, undecodable=Action.PAUSE)
"""While it is rebuilt: what serves goes on, so better stop and be looked at than swap in a hole."""


def category_of(error: BaseException) -> Category:
    """What kind of failure *error* is."""
    if isinstance(error, OwnershipLost):
        return Category.OWNERSHIP
    if isinstance(error, Unavailable | OSError | TimeoutError):
        return Category.DATABASE
    if isinstance(error, UndecodableEvent):
        return Category.UNDECODABLE
    if isinstance(error, UnknownEventType):
        return Category.UNKNOWN_TYPE
    return Category.APPLY if isinstance(error, EventFailure) else Category.OTHER


def checked_policy(policy: object, what: str) -> ErrorPolicy | None:
    """*policy*, if it can be *what*'s.

    Raises:
        InvalidDefinition: It is none.
    """
    if policy is None or isinstance(policy, ErrorPolicy):
        return policy
    raise InvalidDefinition(f"{what}: on_error={policy!r} is not an sl.ErrorPolicy")
