"""Every exception strandline raises on purpose, grouped by what the caller should do.

    StrandlineError
    ├── SetupError              fix the program or its settings
    │   ├── InvalidSetting
    │   ├── InvalidDefinition
    │   ├── MissingExtra
    │   ├── SchemaOutOfDate
    │   ├── UnknownProjection
    │   ├── UnknownJob
    │   ├── UnregisteredEvent
    │   ├── NotOpen
    │   ├── RebuildFailed
    │   └── TransactionFailed
    ├── InvalidInput            change what you passed; nothing was written
    │   ├── InvalidStream
    │   ├── InvalidVersion
    │   └── InvalidEvent
    │       └── PayloadTooLarge
    ├── NotFound                ask for something else, or wait for it
    │   ├── StreamNotFound
    │   ├── DocumentNotFound
    │   ├── JobNotFound
    │   └── ResultNotKept
    ├── ConflictError           read again, decide again
    │   ├── WrongVersion
    │   ├── DuplicateEvent
    │   ├── DuplicateJob
    │   ├── JobNotDone
    │   ├── StreamArchived
    │   ├── RebuildUnderWay
    │   └── RebuildCancelled
    ├── OwnershipLost           stop writing at once; another owner exists or may exist
    │   ├── LeaseLost
    │   ├── CheckpointMoved
    │   ├── ClaimLost
    │   └── NodeEvicted
    ├── Unavailable             wait and try again; nothing was decided
    │   ├── DatabaseUnavailable
    │   │   ├── DatabaseReadOnly
    │   │   └── DiskFull
    │   ├── PoolExhausted
    │   ├── AnswerTimedOut
    │   ├── OutcomeUnknown
    │   └── ServerNotStarted
    └── EventFailure            bad data or a bad rule; the projection's failure policy decides
        ├── UndecodableEvent
        ├── UnknownEventType
        └── ApplyFailed

docs/reference/errors.md is made from this file.
"""

from __future__ import annotations


class StrandlineError(Exception):
    """Base of everything strandline raises on purpose."""


TO_THE_PROCESS = (KeyboardInterrupt, SystemExit)
"""What the user's code raises to end the process, and not for us to judge."""


def shown(error: BaseException) -> str:
    """*error* for a message; its class and how to show it may be the user's, and raise as well."""
    try:
        return repr(error)
    except Exception:  # the user's code raises anything
        return type(error).__name__


# ---- SetupError: fix the program or its settings


class SetupError(StrandlineError):
    """The program or its settings are wrong; trying again cannot help."""


class InvalidSetting(SetupError):
    """A setting has a value that cannot work."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        super().__init__(f"setting {name}={value!r}: {reason}")
        self.name = name
        self.value = value
        self.reason = reason


class InvalidDefinition(SetupError):
    """An event, projection or subscription is declared in a way that cannot run."""


class MissingExtra(SetupError):
    """An optional dependency is needed for this call."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs an optional part: pip install "strandline[{extra}]"')
        self.extra = extra


class SchemaOutOfDate(SetupError):
    """The tables in the database are older or newer than this program."""


class UnknownProjection(SetupError):
    """No projection or subscription of that name is registered on this app."""


class UnknownJob(SetupError):
    """No job of that kind is declared on this app."""


class UnregisteredEvent(SetupError):
    """An object was appended whose class is not registered with ``app.event``."""


class NotOpen(SetupError):
    """The app is used before it is opened or after it is closed, or a transaction after its end."""


class RebuildFailed(SetupError):
    """A rebuild cannot be begun or ended as things are; what served before goes on serving."""


class TransactionFailed(SetupError):
    """A transaction was rolled back though its block went on: all of it is undone.

    Either a statement failed and its error was caught inside: PostgreSQL takes nothing more after an
    error, so let it leave the block, or put what may fail into a savepoint. Or the transaction was
    open for longer than ``leak_rollback_after``: end it sooner.
    """


# ---- InvalidInput: change what you passed


class InvalidInput(StrandlineError):
    """An argument is wrong. Nothing was written."""


class InvalidStream(InvalidInput):
    """A stream id, stream type or tenant is empty, too long or has a NUL character."""


class InvalidVersion(InvalidInput):
    """An expected version, version range or position is not one."""


class InvalidEvent(InvalidInput):
    """An event cannot be stored as it is."""


class PayloadTooLarge(InvalidEvent):
    """An event is larger than the limit. Store the large part elsewhere and its key here."""

    def __init__(self, event_type: str, *, payload_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"event {event_type!r} has {payload_bytes} bytes of JSON, the limit is {limit_bytes}"
            " (setting max_payload_bytes)"
        )
        self.payload_bytes = payload_bytes
        self.limit_bytes = limit_bytes


# ---- NotFound


class NotFound(StrandlineError):
    """What was asked for is not there (yet)."""


class StreamNotFound(NotFound):
    """No stream has this id."""


class DocumentNotFound(NotFound):
    """The read model has no document under this id."""


class JobNotFound(NotFound):
    """No job has this id: it never had one, or it has ended and was not kept (see ``keep=``)."""


class ResultNotKept(NotFound):
    """The job has ended, and its result is not there: declare the job with ``keep="all"``."""


# ---- ConflictError: read again, decide again


class ConflictError(StrandlineError):
    """Somebody else was first. Read again, decide again."""


class WrongVersion(ConflictError):
    """The stream is not at the version the append expected. Nothing was written."""

    def __init__(self, stream: str, *, expected: object, actual: int, tenant: str) -> None:
        super().__init__(
            f"stream {stream!r} is at version {actual}, expected {expected}"
            " (read it again and decide again)"
        )
        self.stream = stream
        self.expected = expected
        self.actual = actual
        self.tenant = tenant


class DuplicateEvent(ConflictError):
    """An event id is already stored in another place. Nothing was written."""


class DuplicateJob(ConflictError):
    """A job with this unique key is there already. Nothing was enqueued."""

    def __init__(self, kind: str, unique_key: str, *, job: int) -> None:
        super().__init__(f"job {kind!r} with unique key {unique_key!r} is there already: {job}")
        self.kind = kind
        self.unique_key = unique_key
        self.job = job


class JobNotDone(ConflictError):
    """A job whose result was asked for was cancelled, discarded, or is a dead letter."""

    def __init__(self, job: int, state: str, *, error: str = "") -> None:
        super().__init__(f"job {job} is {state}{': ' if error else ''}{error}")
        self.job = job
        self.state = state
        self.error = error


class StreamArchived(ConflictError):
    """The stream is archived and takes no more events. Nothing was written."""

    def __init__(self, stream: str, *, tenant: str) -> None:
        super().__init__(f"stream {stream!r} is archived and takes no more events")
        self.stream = stream
        self.tenant = tenant


class RebuildUnderWay(ConflictError):
    """A projection is being rebuilt or verified already. Nothing was begun."""


class RebuildCancelled(ConflictError):
    """Somebody cancelled the rebuild while it was waited for; what served before goes on serving."""


# ---- OwnershipLost: stop writing at once


class OwnershipLost(StrandlineError):
    """You no longer own what you were about to write for.

    Never retry: a retry could overwrite the new owner's work.
    """


class LeaseLost(OwnershipLost):
    """A lease expired, was given up, or has a later epoch."""

    def __init__(self, name: str, *, epoch: int, reason: str) -> None:
        super().__init__(f"lease {name!r} of epoch {epoch} is lost: {reason}")
        self.name = name
        self.epoch = epoch
        self.reason = reason


class NodeEvicted(OwnershipLost):
    """This node was declared dead: its work belongs to others, and it stops all of it."""

    def __init__(self, node: str, *, reason: str) -> None:
        super().__init__(
            f"node {node} was declared dead ({reason}): it stops its work, and may join again"
            " under a new id"
        )
        self.node = node
        self.reason = reason


class CheckpointMoved(OwnershipLost):
    """A shard's checkpoint is not where its agent left it: another epoch owns it now."""

    def __init__(self, shard: str, *, epoch: int, position: int) -> None:
        super().__init__(
            f"shard {shard!r} is no longer at epoch {epoch}, position {position}:"
            " another node has claimed it; this agent stops"
        )
        self.shard = shard
        self.epoch = epoch
        self.position = position


class ClaimLost(OwnershipLost):
    """A job belongs to a later attempt, here or elsewhere: what this one did is not recorded."""

    def __init__(self, job: int, *, claim: int) -> None:
        super().__init__(f"job {job} is no longer held under claim {claim}: another attempt has it")
        self.job = job
        self.claim = claim


# ---- Unavailable: wait and try again


class Unavailable(StrandlineError):
    """No answer, or not now. Wait and try again."""


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached, is starting or shutting down, or dropped the connection."""


class DatabaseReadOnly(DatabaseUnavailable):
    """PostgreSQL answers, but takes no writes: a standby, or ``default_transaction_read_only``.

    Reads go on. Find out who has set it, or wait for the fail-over to end; shards go on by themselves.
    """


class DiskFull(DatabaseUnavailable):
    """PostgreSQL has no room left for what is written (SQLSTATE 53100).

    Reads go on. Make room on the server's disk; shards go on by themselves at their next try.
    """


class PoolExhausted(Unavailable):
    """No connection came free in time."""


class AnswerTimedOut(Unavailable):
    """The wait ended before the answer came."""


class OutcomeUnknown(Unavailable):
    """The connection broke during a commit and it could not be found out whether it took effect.

    Trying again with the same event ids is safe: what is stored already is not stored twice.
    """


class ServerNotStarted(Unavailable):
    """The embedded PostgreSQL server could not be started."""


# ---- EventFailure: bad data or a bad rule


class EventFailure(StrandlineError):
    """An event could not be processed. The failure policy decides what happens next."""


class UndecodableEvent(EventFailure):
    """The stored JSON does not fit the class registered for its type."""

    def __init__(self, event_type: str, reason: str, *, position: int = 0) -> None:
        at = f" at position {position}" if position else ""
        super().__init__(f"event {event_type!r}{at} cannot be decoded: {reason}")
        self.event_type = event_type
        self.position = position
        self.reason = reason


class UnknownEventType(EventFailure):
    """The log has an event whose type no class or alias is registered for."""

    def __init__(self, event_type: str, *, position: int = 0) -> None:
        at = f" at position {position}" if position else ""
        super().__init__(
            f"event type {event_type!r}{at} is not registered"
            " (register a class, or an alias of one, with app.event)"
        )
        self.event_type = event_type
        self.position = position


class ApplyFailed(EventFailure):
    """A projection's or subscription's own code raised. The cause is chained."""

    def __init__(self, projection: str, reason: str, *, position: int = 0) -> None:
        at = f" at position {position}" if position else ""
        super().__init__(f"{projection}{at}: {reason}")
        self.projection = projection
        self.position = position
        self.reason = reason
