"""strandline: an event store with an always-on projection cluster and jobs, on PostgreSQL alone.

    import strandline as sl

These names are the public face; everything else may change. ``strandline.sync`` has the blocking
twins, ``strandline.testing`` the kit for your own tests.

A name is imported from its home when it is first used: so a node hears signals before it has
imported a driver, and its side process imports none of what it does not need.
"""

from importlib import import_module as _import_module

from strandline.errors import (
    AnswerTimedOut,
    ApplyFailed,
    CheckpointMoved,
    ClaimLost,
    ConflictError,
    DatabaseUnavailable,
    DocumentNotFound,
    DuplicateEvent,
    DuplicateJob,
    EventFailure,
    InvalidDefinition,
    InvalidInput,
    JobNotDone,
    JobNotFound,
    NotFound,
    OutcomeUnknown,
    OwnershipLost,
    PoolExhausted,
    ResultNotKept,
    SchemaOutOfDate,
    SetupError,
    StrandlineError,
    StreamArchived,
    StreamNotFound,
    Unavailable,
    UndecodableEvent,
    UnknownEventType,
    UnknownJob,
    UnknownProjection,
    WrongVersion,
)

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is slow to import
if TYPE_CHECKING:
    from strandline.app import App, Transaction
    from strandline.daemon.letter_desk import DeadLetter
    from strandline.events.bulk import ImportedEvent
    from strandline.events.event import (
        ANY,
        NO_STREAM,
        STREAM_EXISTS,
        Appended,
        Expected,
        Metadata,
        RecordedEvent,
        StreamState,
        Unknown,
    )
    from strandline.jobs.context import JobContext, current
    from strandline.jobs.flow import batch, chain, dag
    from strandline.jobs.inject import Inject
    from strandline.jobs.job import Call, Job, Unique
    from strandline.jobs.results import JobRef
    from strandline.jobs.retry import Retry
    from strandline.jobs.verdicts import Cancel, Snooze
    from strandline.projections.composite import Composite
    from strandline.projections.effects import Change, Changes
    from strandline.projections.enrichment import Lookup
    from strandline.projections.failure_policy import ErrorPolicy
    from strandline.projections.handlers import (
        apply,
        create,
        delete,
        effects,
        enrich,
        fan_out,
        key,
    )
    from strandline.projections.multi_stream import MultiStream
    from strandline.projections.single_stream import SingleStream
    from strandline.projections.sql_projection import Sql, Statements, execute
    from strandline.projections.subscription import EventBatch
    from strandline.projections.table_declaration import Table
    from strandline.projections.table_rules import (
        add,
        column,
        count,
        first,
        greatest,
        least,
        on,
        subtract,
    )
    from strandline.projections.table_values import (
        POSITION,
        RECORDED_AT,
        STREAM,
        TENANT,
        TYPE,
        VERSION,
        bucket,
        constant,
    )
    from strandline.projections.upstream import Deleted, Updated

__version__ = "0.1.0"

__all__ = [
    "ANY",
    "NO_STREAM",
    "POSITION",
    "RECORDED_AT",
    "STREAM",
    "STREAM_EXISTS",
    "TENANT",
    "TYPE",
    "VERSION",
    "AnswerTimedOut",
    "App",
    "Appended",
    "ApplyFailed",
    "Call",
    "Cancel",
    "Change",
    "Changes",
    "CheckpointMoved",
    "ClaimLost",
    "Composite",
    "ConflictError",
    "DatabaseUnavailable",
    "DeadLetter",
    "Deleted",
    "DocumentNotFound",
    "DuplicateEvent",
    "DuplicateJob",
    "ErrorPolicy",
    "EventBatch",
    "EventFailure",
    "Expected",
    "ImportedEvent",
    "Inject",
    "InvalidDefinition",
    "InvalidInput",
    "Job",
    "JobContext",
    "JobNotDone",
    "JobNotFound",
    "JobRef",
    "Lookup",
    "Metadata",
    "MultiStream",
    "NotFound",
    "OutcomeUnknown",
    "OwnershipLost",
    "PoolExhausted",
    "RecordedEvent",
    "ResultNotKept",
    "Retry",
    "SchemaOutOfDate",
    "SetupError",
    "SingleStream",
    "Snooze",
    "Sql",
    "Statements",
    "StrandlineError",
    "StreamArchived",
    "StreamNotFound",
    "StreamState",
    "Table",
    "Transaction",
    "Unavailable",
    "UndecodableEvent",
    "Unique",
    "Unknown",
    "UnknownEventType",
    "UnknownJob",
    "UnknownProjection",
    "Updated",
    "WrongVersion",
    "add",
    "apply",
    "batch",
    "bucket",
    "chain",
    "column",
    "constant",
    "count",
    "create",
    "current",
    "dag",
    "delete",
    "effects",
    "enrich",
    "execute",
    "fan_out",
    "first",
    "greatest",
    "key",
    "least",
    "on",
    "subtract",
]

_HOMES = {
    "strandline.app": ("App", "Transaction"),
    "strandline.daemon.letter_desk": ("DeadLetter",),
    "strandline.events.bulk": ("ImportedEvent",),
    "strandline.events.event": (
        "ANY",
        "NO_STREAM",
        "STREAM_EXISTS",
        "Appended",
        "Expected",
        "Metadata",
        "RecordedEvent",
        "StreamState",
        "Unknown",
    ),
    "strandline.jobs.context": ("JobContext", "current"),
    "strandline.jobs.flow": ("batch", "chain", "dag"),
    "strandline.jobs.inject": ("Inject",),
    "strandline.jobs.job": ("Call", "Job", "Unique"),
    "strandline.jobs.results": ("JobRef",),
    "strandline.jobs.retry": ("Retry",),
    "strandline.jobs.verdicts": ("Cancel", "Snooze"),
    "strandline.projections.failure_policy": ("ErrorPolicy",),
    "strandline.projections.composite": ("Composite",),
    "strandline.projections.effects": ("Change", "Changes"),
    "strandline.projections.enrichment": ("Lookup",),
    "strandline.projections.handlers": (
        "apply",
        "create",
        "delete",
        "effects",
        "enrich",
        "fan_out",
        "key",
    ),
    "strandline.projections.multi_stream": ("MultiStream",),
    "strandline.projections.single_stream": ("SingleStream",),
    "strandline.projections.sql_projection": ("Sql", "Statements", "execute"),
    "strandline.projections.subscription": ("EventBatch",),
    "strandline.projections.table_declaration": ("Table",),
    "strandline.projections.table_rules": (
        "add",
        "column",
        "count",
        "first",
        "greatest",
        "least",
        "on",
        "subtract",
    ),
    "strandline.projections.table_values": (
        "POSITION",
        "RECORDED_AT",
        "STREAM",
        "TENANT",
        "TYPE",
        "VERSION",
        "bucket",
        "constant",
    ),
    "strandline.projections.upstream": ("Deleted", "Updated"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # else a misspelt name would be fine for type checkers

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(_import_module(home), name)
        _call_it_ours(value)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


def _call_it_ours(value: object) -> None:
    """Let tracebacks read strandline.WrongVersion.

    Value classes stay at home: that is where their annotations are resolved.
    """
    if callable(value) and not vars(value).get("__annotations__"):
        value.__module__ = __name__


for _name in __all__:
    if _name not in _HOME_OF:
        _call_it_ours(globals()[_name])
del _name
