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
from strandline.projections.subscription import EventBatch

__version__ = "0.1.0"

__all__ = sorted(name for name in dir() if name != "annotations" and not name.startswith("_"))
