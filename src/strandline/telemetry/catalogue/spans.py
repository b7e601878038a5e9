"""Every span by name: kind, attributes, meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["internal", "producer", "consumer", "client"]


@dataclass(frozen=True, slots=True)
class Span:
    """One kind of span. What failed has the status ERROR and ``error.type`` besides.

    Attributes:
        name: The same for all of a kind; what tells them apart is in the attributes.
        role: Its kind in the words of OpenTelemetry.
        attributes: Names of ``ATTRIBUTES``; not every one is on each span.
        meaning: What it spans.
        links: What it links to; empty if to nothing.
        parent: What it is a child of, where that is not the span that is current.
    """

    name: str
    role: Role
    attributes: tuple[str, ...]
    meaning: str
    links: str = ""
    parent: str = ""


EVENTS = (
    Span(
        "strandline.append",
        "producer",
        (
            *("database", "tenant", "stream", "stream_type", "streams", "events"),
            *("position", "stream_version"),
        ),
        "an append, until it is stored, or until the transaction it is part of can go on;"
        " its context is written with the events",
    ),
    Span(
        "strandline.import",
        "producer",
        ("database", "events", "position"),
        "an import of events by COPY",
    ),
)

BATCHES = (
    Span(
        "strandline.batch",
        "consumer",
        ("node", "projection", "shard", "floor", "ceiling", "events", "letters", "unlinked"),
        "a page of events, from its load to its commit",
        links="the appends of its events: each once, 32 at the most",
        parent="the append, if all those of its events belong to one trace, and the last is no hour old;"
        " else none",
    ),
    Span(
        "strandline.batch.load",
        "internal",
        ("database", "events"),
        "the load of its page, also while the batch before it commits",
        parent="strandline.batch",
    ),
    Span(
        "strandline.batch.apply",
        "internal",
        (),
        "folding its events, in memory; for subscriptions decoding them",
        parent="strandline.batch",
    ),
    Span(
        "strandline.batch.commit",
        "internal",
        ("database",),
        "its transaction: documents, side effects, checkpoint; for subscriptions the function too",
        parent="strandline.batch",
    ),
    Span(
        "strandline.replay",
        "consumer",
        ("node", "projection", "shard"),
        "the replay of dead letters that were asked for",
        parent="none",
    ),
)

JOBS = (
    Span(
        "strandline.enqueue",
        "producer",
        ("database", "kind", "queue", "jobs", "job"),
        "enqueueing a job, many, or a flow; its context is written with the job",
    ),
    Span(
        "strandline.job",
        "consumer",
        ("node", "kind", "queue", "job", "attempt", "tenant", "ending"),
        "one attempt of a job; what ended it in another way than an error is no failure",
        links="what enqueued it",
        parent="what enqueued it",
    ),
    Span(
        "strandline.jobs.fetch",
        "internal",
        ("database", "node", "queue", "jobs"),
        "a fetch that found jobs",
        parent="none",
    ),
    Span(
        "strandline.jobs.flush",
        "internal",
        ("database", "node", "jobs"),
        "writing how jobs ended, many at once",
        parent="none",
    ),
)

CLUSTER = (
    Span(
        "strandline.high_water",
        "internal",
        (
            *("node", "mark", "highest", "settled", "difference", "stale", "holders"),
            *("skipped", "forced"),
        ),
        "a detection that met a gap: it waited, passed one, or gave up waiting",
        parent="none",
    ),
    Span(
        "strandline.election",
        "internal",
        ("node", "outcome", "reason"),
        "an attempt to get the leader's lease",
        parent="none",
    ),
    Span(
        "strandline.plan",
        "internal",
        ("node", "changes", "moves"),
        "a plan of the leader that changed something",
        parent="none",
    ),
    Span(
        "strandline.rebuild",
        "internal",
        ("node", "projection", "build", "state", "reason"),
        "a rebuild or repair, from what this node first did for it to its end",
        parent="none",
    ),
    Span(
        "strandline.shutdown",
        "internal",
        ("node", "result", "reason", "signals"),
        "the stop of a node",
        parent="none",
    ),
    Span(
        "strandline.shutdown.step",
        "internal",
        ("step", "status", "reason"),
        "one step of it",
        parent="strandline.shutdown",
    ),
)

ALL: tuple[Span, ...] = (*EVENTS, *BATCHES, *JOBS, *CLUSTER)

SPANS: dict[str, Span] = {one.name: one for one in ALL}
