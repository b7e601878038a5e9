"""Attributes that only spans have: what has too many values for a label."""

from __future__ import annotations

from strandline.telemetry.catalogue.attribute import ours

ALL = (
    ours("database", "the database system", "postgresql", "postgresql", key="db.system.name"),
    ours("tenant", "tenant; never a label of metrics", "acme"),
    ours("stream", "stream that is appended to", "order-42"),
    ours("stream_type", "its type", "order", key="strandline.stream.type"),
    ours("streams", "how many streams are appended to", "3", key="strandline.streams.count"),
    ours("events", "how many events", "500", key="strandline.events.count"),
    ours("stream_version", "the stream's version after it", "7", key="strandline.stream.version"),
    ours("position", "position of the last event", "48213"),
    ours("floor", "position before the batch", "48000", key="strandline.batch.floor"),
    ours("ceiling", "position that the batch reaches", "48213", key="strandline.batch.ceiling"),
    ours("job", "id of the job", "90071992", key="strandline.job.id"),
    ours("jobs", "how many jobs", "100", key="strandline.jobs.count"),
    ours("attempt", "which attempt it is, from 1", "2", key="strandline.job.attempt"),
    ours("ending", "how the attempt ended", "retry", key="strandline.job.ending"),
    ours("letters", "how many dead letters", "3", key="strandline.letters.count"),
    ours(
        "unlinked",
        "contexts of the batch's events beyond the 32 that are linked",
        "118",
        key="strandline.links.dropped",
    ),
    ours("mark", "the high-water mark", "48213", key="strandline.high_water.mark"),
    ours("highest", "the highest visible position", "48220", key="strandline.high_water.highest"),
    ours(
        "settled",
        "position the detection has settled",
        "48213",
        key="strandline.high_water.position",
    ),
    ours(
        "difference",
        "positions between the mark and the highest visible one",
        "7",
        key="strandline.high_water.difference",
    ),
    ours(
        "stale",
        "whether a gap is held open for too long",
        "true",
        key="strandline.high_water.stale",
    ),
    ours(
        "holders",
        "how many transactions hold the gap open",
        "1",
        key="strandline.high_water.holders.count",
    ),
    ours(
        "skipped",
        "numbers this detection has passed that hold no event",
        "3",
        key="strandline.skipped_events.count",
    ),
    ours(
        "forced",
        "those of them that were passed without a proof",
        "0",
        key="strandline.skipped_events.forced",
    ),
    ours("epoch", "number of the grant", "12"),
    ours("changes", "assignments that the plan changes", "4", key="strandline.plan.changes"),
    ours("moves", "those of them that take work from a node", "1", key="strandline.plan.moves"),
    ours("build", "number of the build", "5", key="strandline.build.number"),
    ours("signals", "how many stop signals came", "1", key="strandline.shutdown.signals"),
)
