"""What a failure looks like in a dead letter: its words, and a fingerprint to count it by."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import TracebackType

import msgspec

from strandline.errors import ApplyFailed, StrandlineError
from strandline.projections.failure_policy import Category, category_of

LONGEST = 2_000  # characters of a message that are kept
_OURS = str(Path(__file__).resolve().parents[1])
_VALUES = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\d+""")
_encode = msgspec.json.Encoder().encode


def as_json(error: BaseException) -> str:
    """Class, message, cause and handler of *error*, as JSON that PostgreSQL can store."""
    root = root_of(error)
    cause = root.__cause__
    described = {
        "class": type(root).__name__,
        "message": plain(_words(error)),
        "cause": plain(_words(cause)) if cause is not None else "",
        "handler": handler_of(root),
    }
    return _encode(described).decode()


def fingerprint(error: BaseException, event_type: str) -> str:
    """The same for failures that look alike: whatever differs in numbers and quoted values only."""
    root = root_of(error)
    message = _VALUES.sub("?", plain(_words(root)))
    parts = (type(root).__name__, handler_of(root), message, event_type)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def category(error: BaseException) -> str:
    """The category of a dead letter: what is none of an event's failures counts as ``apply``."""
    found = category_of(error)
    known = found in (Category.UNDECODABLE, Category.UNKNOWN_TYPE)
    return found.value if known else Category.APPLY.value


def root_of(error: BaseException) -> BaseException:
    """What the user's code raised, where *error* is our word for that."""
    cause = error.__cause__
    if isinstance(error, ApplyFailed) and cause and not isinstance(cause, StrandlineError):
        return cause
    return error


def handler_of(error: BaseException) -> str:
    """The name of the function of the user's that *error* came out of; empty if none did."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith((_OURS, "<frozen")):
            return code.co_qualname
        trace = trace.tb_next
    return ""


def _words(error: BaseException) -> str:
    try:
        return str(error) or repr(error)
    except Exception:  # it is the user's class
        return type(error).__name__


def plain(text: str) -> str:
    """*text* without what PostgreSQL cannot store, and not too long."""
    kept = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return kept.encode("utf-8", "replace").decode().replace("\0", "�")
