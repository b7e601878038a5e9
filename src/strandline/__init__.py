"""strandline: an event store with an always-on projection cluster, on PostgreSQL and nothing else.

    import strandline as sl

These names are the public face; everything else may change. ``strandline.sync`` has the blocking
twins, ``strandline.testing`` the kit for your own tests.
"""

from strandline.app import App, Transaction
from strandline.errors import (
    AnswerTimedOut,
    ApplyFailed,
    CheckpointMoved,
    ConflictError,
    DatabaseUnavailable,
    DocumentNotFound,
    DuplicateEvent,
    EventFailure,
    InvalidDefinition,
    InvalidInput,
    NotFound,
    OutcomeUnknown,
    OwnershipLost,
    PoolExhausted,
    SchemaOutOfDate,
    SetupError,
    StrandlineError,
    StreamArchived,
    StreamNotFound,
    Unavailable,
    UndecodableEvent,
    UnknownEventType,
    UnknownProjection,
    WrongVersion,
)
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
from strandline.projections.handlers import apply, create, delete, fan_out, key
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
    "CheckpointMoved",
    "ConflictError",
    "DatabaseUnavailable",
    "DocumentNotFound",
    "DuplicateEvent",
    "EventBatch",
    "EventFailure",
    "Expected",
    "ImportedEvent",
    "InvalidDefinition",
    "InvalidInput",
    "Metadata",
    "MultiStream",
    "NotFound",
    "OutcomeUnknown",
    "OwnershipLost",
    "PoolExhausted",
    "RecordedEvent",
    "SchemaOutOfDate",
    "SetupError",
    "SingleStream",
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
    "Unknown",
    "UnknownEventType",
    "UnknownProjection",
    "WrongVersion",
    "add",
    "apply",
    "bucket",
    "column",
    "constant",
    "count",
    "create",
    "delete",
    "execute",
    "fan_out",
    "first",
    "greatest",
    "key",
    "least",
    "on",
    "subtract",
]

# So that tracebacks read strandline.WrongVersion. Value classes stay at home: that is where their
# annotations are resolved.
for _name in __all__:
    _one = globals()[_name]
    if callable(_one) and not vars(_one).get("__annotations__"):
        _one.__module__ = __name__
del _name, _one
