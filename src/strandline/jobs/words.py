"""What names, keys and options of jobs may be: checked before anything is sent."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from strandline.errors import InvalidInput, StrandlineError
from strandline.jobs.row import PRIORITIES

MOST_BYTES = {"queue": 100, "kind": 200, "key": 500, "unique key": 500, "tenant": 200, "tag": 100}
MOST_TAGS = 50
LONGEST_DELAY = 3_155_760_000.0  # a hundred years
MOST_ATTEMPTS = 32_767

_UNFIT = re.compile("[\0\ud800-\udfff]")


def checked_word(value: Any, what: str, *, error: type[StrandlineError] = InvalidInput) -> str:
    """*value*, if it can be a queue, kind, key, unique key, tenant or tag.

    Raises:
        InvalidInput: It is no text, empty, too long, or holds what PostgreSQL cannot store.
    """
    most = MOST_BYTES[what]
    if not isinstance(value, str):
        raise error(f"a job's {what} is a text, not {type(value).__name__}")
    if not value or len(value) > most or _UNFIT.search(value) or len(value.encode()) > most:
        raise error(
            f"a job's {what} has 1 to {most} bytes of UTF-8 and no NUL; got {value[:80]!r}"
            f" ({len(value)} characters)"
        )
    return value


def checked_job_option(
    name: str, value: Any, *, error: type[StrandlineError] = InvalidInput
) -> Any:
    """*value* of the option *name*, if it can be one: its seconds where it is a timedelta."""
    if name == "priority":
        if type(value) is not int or value not in PRIORITIES:
            raise error(f"priority={value!r} is not a whole number from 1 (first) to 9")
    elif name == "max_attempts":
        if type(value) is not int or not 1 <= value <= MOST_ATTEMPTS:
            raise error(f"max_attempts={value!r} is not a whole number from 1 to {MOST_ATTEMPTS}")
    elif name == "keep":
        if value not in ("failed", "all", "none"):
            raise error(f"keep={value!r} is not 'failed', 'all' or 'none'")
    elif name == "timeout":
        if value is not None:
            return checked_seconds(name, value, above=0.0, error=error)
    elif name == "run_at" and not (isinstance(value, datetime) and value.tzinfo is not None):
        raise error(f"run_at={value!r} is not a datetime with a time zone")
    return value


def checked_seconds(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    error: type[StrandlineError] = InvalidInput,
) -> float:
    """*value* in seconds, if it is a number of them or a timedelta, not negative and not endless."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not 0 <= value <= LONGEST_DELAY or (above is not None and value <= above):
        raise error(
            f"{name}={value!r} is not a number of seconds from 0 to {LONGEST_DELAY:.0f}"
            f"{'' if above is None else ', and more than 0'}"
        )
    return float(value)


def checked_tags(tags: Any) -> tuple[str, ...]:
    """*tags*, if they are words to find a job by."""
    if isinstance(tags, str | bytes) or not isinstance(tags, Iterable):
        raise InvalidInput(f"tags={tags!r} are not a number of texts, as in [{str(tags)!r}]")
    found = tuple(checked_word(one, "tag") for one in tags)
    if len(found) > MOST_TAGS:
        raise InvalidInput(f"{len(found)} tags are more than {MOST_TAGS}: {tags!r}")
    return found


def checked_meta(meta: Any) -> dict[str, Any]:
    """*meta*, if it can stand beside what is kept there already."""
    if not isinstance(meta, Mapping) or not all(isinstance(name, str) for name in meta):
        raise InvalidInput(f"meta={meta!r} is not a mapping by texts")
    taken = {"tags", "timeout"} & meta.keys()
    if taken:
        raise InvalidInput(f"meta cannot hold {', '.join(sorted(taken))}: there are options for it")
    return dict(meta)
