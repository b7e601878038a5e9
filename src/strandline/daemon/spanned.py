"""The spans of one shard's batches: from the load of a page to its commit, after the appends of its events.

A page mostly holds events of many requests, and a span has one parent. So it links to the appends of
its events, and is a child only where all of those that somebody follows belong to one trace. Of a trace
that has long been told it is no part: a rebuild reads the events of years.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import msgspec

from strandline.daemon.batch import Batch, Processor
from strandline.daemon.feed import Page
from strandline.projections.fold import METADATA, RECORDED_AT, TYPE, Row
from strandline.telemetry import tracing
from strandline.telemetry.trace_context import parsed


class _Carrying(msgspec.Struct):
    """The metadata of an event, of which only this counts here."""

    traceparent: str | None = None


_decode = msgspec.json.Decoder(_Carrying).decode
_TRACE = slice(3, 35)  # of a traceparent: the trace's id
FOLLOWED_FOR = timedelta(hours=1)  # since the append; who keeps traces takes no more of an old one


class BatchSpans:
    """Makes the spans of one shard.

    Args:
        shard: Its name.
        processor: Of its batches.
        node: The node's name.
    """

    def __init__(self, shard: str, processor: Processor, node: str) -> None:
        self._shard = shard
        self._processor = processor
        self._node = node

    def begun(self, page: Page, began: float, loaded: float) -> tracing.AnySpan:
        """The span of a batch of *page*, which was asked for and had at these seconds since 1970."""
        if not tracing.is_on():
            return tracing.NOTHING
        appends = _appends_of(page.rows, self._processor.appetite.names)
        traces = list(appends)
        events = len(page.rows)
        span = tracing.span(
            "strandline.batch",
            parent=_parent_among(appends),
            links=traces[: tracing.MOST_LINKS],
            began=began,
            node=self._node,
            projection=self._processor.label,
            shard=self._shard,
            floor=page.floor,
            ceiling=page.ceiling,
            events=events,
            unlinked=max(0, len(traces) - tracing.MOST_LINKS) or None,
        )
        tracing.record("strandline.batch.load", began, loaded, parent=span, events=events)
        return span

    def apply(self) -> tracing.AnySpan:
        """The span of folding a page, inside that of its batch."""
        return tracing.span("strandline.batch.apply")

    def commit(self) -> tracing.AnySpan:
        """The span of a transaction, inside that of its batch."""
        return tracing.span("strandline.batch.commit")

    def replaying(self) -> tracing.AnySpan:
        """The span of a replay of dead letters."""
        return tracing.span(
            "strandline.replay",
            parent=tracing.ROOT,
            node=self._node,
            projection=self._processor.label,
            shard=self._shard,
        )


def told(span: tracing.AnySpan, batch: Batch) -> None:
    """Say on *span* what *batch* has put aside."""
    if batch.letters:
        span.set(letters=len(batch.letters))


@contextmanager
def failing(span: tracing.AnySpan) -> Iterator[None]:
    """A block in which *span* is the current one, and which ends it if it fails."""
    try:
        with span.within():
            yield
    except BaseException as error:
        span.end(error)
        raise


def _parent_among(appends: dict[str, datetime]) -> str:
    """The last of *appends* if all belong to one trace, which is not yet over; else none."""
    if len({one[_TRACE] for one in appends}) != 1:
        return tracing.ROOT
    last, at = list(appends.items())[-1]
    return last if datetime.now(UTC) - at < FOLLOWED_FOR else tracing.ROOT


def _appends_of(rows: Sequence[Row], names: Iterable[str] | None) -> dict[str, datetime]:
    """``traceparent`` of each append of *rows*, and when it was; only of types among *names*, unless None."""
    found: dict[str, datetime] = {}
    if not rows or len(rows[0]) <= METADATA:  # read without
        return found
    wanted = None if names is None else frozenset(names)
    for row in [one for one in rows if one[METADATA]]:  # mostly few of many
        metadata = row[METADATA]
        if '"traceparent"' not in metadata:
            continue
        if wanted is not None and row[TYPE] not in wanted:
            continue
        try:
            trace = _decode(metadata).traceparent
        except (msgspec.DecodeError, RecursionError):  # written by hand
            continue
        if trace is not None and trace not in found and parsed(trace) is not None:
            found[trace] = row[RECORDED_AT]
    return found
