"""Appending to one stream or several: versions, refusals, bad input, ids."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from stores import Bench, Deposited, Noted, Opened, Stranger, bad, deposits, opened

from strandline.errors import (
    DuplicateEvent,
    InvalidEvent,
    InvalidInput,
    InvalidStream,
    InvalidVersion,
    PayloadTooLarge,
    StreamArchived,
    UnregisteredEvent,
    WrongVersion,
)
from strandline.events.append import MAX_APPEND_BYTES, append_together
from strandline.events.event import ANY, NO_STREAM, STREAM_EXISTS, Metadata


async def test_versions_count_from_one_and_go_on(database_url: str) -> None:
    async with opened(database_url) as bench:
        first = await bench.append("a", [Opened("Ada"), Deposited(1)], expected=NO_STREAM)
        second = await bench.append("a", Deposited(2), expected=2)

        assert (first.version, second.version) == (2, 3)
        assert second.position > first.position
        assert await bench.stored("a") == [(1, None), (2, 1), (3, 2)]
        assert bench.told == [first.position, second.position]


async def test_one_event_needs_no_list_and_a_generator_will_do(database_url: str) -> None:
    async with opened(database_url) as bench:
        assert (await bench.append("a", Deposited(1))).version == 1
        assert (await bench.append("a", (Deposited(n) for n in range(3)))).version == 4


@pytest.mark.parametrize(
    ("existing", "expected", "words"),
    [
        (0, 1, "version 0, expected 1"),
        (0, STREAM_EXISTS, "expected an existing stream"),
        (2, NO_STREAM, "version 2, expected no stream"),
        (2, 1, "version 2, expected 1"),
        (2, 3, "version 2, expected 3"),
    ],
)
async def test_a_stream_that_is_not_as_expected_takes_nothing(
    database_url: str, existing: int, expected: int, words: str
) -> None:
    async with opened(database_url) as bench:
        if existing:
            await bench.append("a", deposits(*range(existing)))
        before = await bench.counts()

        with pytest.raises(WrongVersion, match=words) as caught:
            await bench.append("a", Deposited(9), expected=expected)

        assert caught.value.actual == existing
        assert await bench.counts() == before


async def test_a_refused_append_draws_no_position(database_url: str) -> None:
    async with opened(database_url) as bench:
        before = await bench.append("a", Deposited(1))
        for expected in (NO_STREAM, 5):
            with pytest.raises(WrongVersion):
                await bench.append("a", deposits(1, 2, 3), expected=expected)

        assert (await bench.append("a", Deposited(1))).position == before.position + 1


@pytest.mark.parametrize("expected", [ANY, STREAM_EXISTS, 1])
async def test_an_expectation_that_holds_lets_the_append_pass(
    database_url: str, expected: int
) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(1))

        assert (await bench.append("a", Deposited(2), expected=expected)).version == 2


async def test_an_archived_stream_takes_nothing_until_it_is_unarchived(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(1))
        await bench.store.archive("a")
        for expected in (ANY, STREAM_EXISTS, NO_STREAM, 1):
            with pytest.raises(StreamArchived, match="'a' is archived"):
                await bench.append("a", Deposited(2), expected=expected)
        assert await bench.stored("a") == [(1, 1)]

        await bench.store.unarchive("a")

        assert (await bench.append("a", Deposited(2), expected=1)).version == 2


async def test_tenants_have_streams_of_their_own(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(1), tenant="one")
        done = await bench.append("a", Deposited(2), tenant="two", expected=NO_STREAM)

        assert done.version == 1
        assert [one.data for one in await bench.store.read_stream("a", tenant="two")] == [
            Deposited(2)
        ]


async def test_the_stream_type_of_the_first_append_stays(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(1), stream_type="account")
        await bench.append("a", Deposited(2), stream_type="other")

        state = await bench.store.stream_state("a")

        assert state is not None
        assert state.type == "account"


async def test_metadata_comes_back_as_it_was_given(database_url: str) -> None:
    about = Metadata(correlation="c", causation="b", user="ada", headers={"ip": [1, None]})
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(1), metadata=about)
        await bench.append("a", Deposited(2), metadata={"user": "bo", "shoe": 43})
        await bench.append("a", Deposited(3))

        found = [one.metadata for one in await bench.store.read_stream("a")]

        assert found == [about, Metadata(user="bo", headers={"shoe": 43}), Metadata()]


async def test_the_recording_span_is_kept_as_traceparent(database_url: str) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    tracer = sdk.TracerProvider().get_tracer("test")
    async with opened(database_url) as bench:
        with tracer.start_as_current_span("order") as span:
            await bench.append("a", Deposited(1))
            await bench.append("a", Deposited(1), metadata={"traceparent": "mine"})
        own, given = [one.metadata.traceparent for one in await bench.store.read_stream("a")]

        context = span.get_span_context()
        flags = context.trace_flags
        assert own == f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"
        assert given == "mine"


STRANGE = "\\u0000 is not a NUL; \"quotes\" 'and' {schema} $1 %s — ünïcödé 🏖 \x7f \x01"


async def test_odd_texts_survive(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append(STRANGE, Opened(STRANGE), tenant=STRANGE, stream_type=STRANGE)

        (event,) = await bench.store.read_stream(STRANGE, tenant=STRANGE)

        assert event.data == Opened(STRANGE)
        assert (event.stream, event.tenant) == (STRANGE, STRANGE)


def nested(depth: int) -> Noted:
    return Noted(msgspec.Raw(b"[" * depth + b"]" * depth))


BAD: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "no event": (InvalidEvent, "at least one event", {"events": []}),
    "no generated event": (InvalidEvent, "at least one", {"events": iter(())}),
    "None": (InvalidEvent, "not an event", {"events": None}),
    "a text": (InvalidEvent, "not an event", {"events": "opened"}),
    "a mapping": (InvalidEvent, "not an event", {"events": {"amount": 1}}),
    "a set, which has no order": (InvalidEvent, "list", {"events": {Deposited(1), Deposited(2)}}),
    "a number": (InvalidEvent, "not an event", {"events": 7}),
    "a list with a mapping": (UnregisteredEvent, "dict", {"events": [Deposited(1), {}]}),
    "an unknown class": (UnregisteredEvent, "Stranger", {"events": Stranger(1)}),
    "a list with an unknown class": (UnregisteredEvent, "Stranger", {"events": [Stranger(1)]}),
    "a class": (InvalidEvent, "not an event", {"events": Deposited}),
    "NUL in an event": (InvalidEvent, "NUL", {"events": Opened("a\0b")}),
    "a lone surrogate": (InvalidEvent, "JSON", {"events": Opened("\ud800")}),
    "NaN": (InvalidEvent, "NaN", {"events": Deposited(math.nan)}),
    "infinity": (InvalidEvent, "NaN or infinity", {"events": Deposited(-math.inf)}),
    "no JSON form": (InvalidEvent, "no JSON form", {"events": Opened(object())}),  # type: ignore[arg-type]
    "too large": (PayloadTooLarge, "limit is 2000", {"events": Opened("x" * 2000)}),
    "a large one behind": (PayloadTooLarge, "2000", {"events": [Opened(""), Opened("x" * 2000)]}),
    "too many": (InvalidInput, "limit is 50", {"events": deposits(*range(51))}),
    "bad JSON": (InvalidEvent, "append_batch: PostgreSQL", {"events": Noted(msgspec.Raw(b"{,}"))}),
    "a number out of range": (InvalidEvent, "append_batch: PostgreSQL", {"events": bad()}),
    "deeper than the server": (
        InvalidEvent,
        "append_batch: PostgreSQL",
        {"events": nested(900_000)},
    ),
    "an empty stream": (InvalidStream, "1 to 500", {"stream": ""}),
    "a long stream": (InvalidStream, "1 to 500", {"stream": "ä" * 251}),
    "NUL in a stream": (InvalidStream, "NUL", {"stream": "a\0"}),
    "a surrogate in a stream": (InvalidStream, "UTF-8", {"stream": "\udc80"}),
    "a stream that is bytes": (InvalidStream, "not bytes", {"stream": b"a"}),
    "no stream": (InvalidStream, "NoneType", {"stream": None}),
    "an empty tenant": (InvalidStream, "tenant", {"tenant": ""}),
    "no tenant": (InvalidStream, "tenant", {"tenant": None}),
    "a long tenant": (InvalidStream, "tenant", {"tenant": "x" * 201}),
    "a long stream type": (InvalidStream, "stream type", {"stream_type": "x" * 201}),
    "a version below": (InvalidVersion, "-3", {"expected": -3}),
    "a bare -1": (InvalidVersion, "sl.ANY", {"expected": -1}),
    "a huge version": (InvalidVersion, "out of range", {"expected": 2**63}),
    "a version that is a text": (InvalidVersion, "'1'", {"expected": "1"}),
    "a version that is a float": (InvalidVersion, "1.0", {"expected": 1.0}),
    "a version that is a flag": (InvalidVersion, "True", {"expected": True}),
    "no version": (InvalidVersion, "None", {"expected": None}),
    "metadata of another type": (InvalidInput, "metadata", {"metadata": {"user": 5}}),
    "wrong Metadata": (InvalidInput, "metadata", {"metadata": Metadata(user=5)}),  # type: ignore[arg-type]
    "metadata that is a list": (InvalidInput, "mapping", {"metadata": [1]}),
    "headers that are none": (InvalidInput, "metadata", {"metadata": {"headers": 3, "x": 1}}),
    "NUL in metadata": (InvalidEvent, "NUL", {"metadata": {"user": "\0"}}),
    "NaN in metadata": (InvalidEvent, "NaN", {"metadata": {"x": math.nan}}),
    "metadata too large": (PayloadTooLarge, "metadata", {"metadata": {"x": "y" * 2000}}),
    "ids that are none": (InvalidEvent, "UUIDs", {"ids": ["one"]}),
    "ids that are numbers": (InvalidEvent, "UUIDs", {"ids": [1]}),
    "too few ids": (InvalidEvent, "0 ids for 1", {"ids": []}),
    "too many ids": (InvalidEvent, "2 ids for 1", {"ids": [uuid4(), uuid4()]}),
    "the same id twice": (
        InvalidEvent,
        "twice",
        {"events": deposits(1, 2), "ids": [UUID(int=5), str(UUID(int=5))]},
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_refused_in_words_and_nothing_is_written(
    database_url: str, name: str
) -> None:
    error, words, given = BAD[name]
    options = {"stream": "a", "events": Deposited(1), **given}
    stream, events = options.pop("stream"), options.pop("events")
    limits = {"max_payload_bytes": 2_000_000} if "deeper" in name else {"max_payload_bytes": 2000}
    async with opened(database_url, max_events_per_append=50, **limits) as bench:
        with pytest.raises(error, match=words):
            await bench.append(stream, events, **options)

        assert await bench.counts() == (0, 0)
        assert (await bench.append("a", Deposited(1), expected=NO_STREAM)).position == 1


async def test_the_largest_names_and_payloads_fit(database_url: str) -> None:
    async with opened(database_url, max_payload_bytes=2000) as bench:
        owner = "x" * (2000 - len('{"owner":""}'))
        done = await bench.append(
            "ä" * 250, Opened(owner), tenant="x" * 200, stream_type="y" * 200, ids=[uuid4()]
        )

        assert done.version == 1


async def test_one_append_has_a_limit_in_all(database_url: str) -> None:
    half = Opened("x" * (MAX_APPEND_BYTES // 2))
    async with opened(database_url, max_payload_bytes=MAX_APPEND_BYTES) as bench:
        with pytest.raises(InvalidInput, match="import_events"):
            bench.prepare("a", [half, half])
        items = [bench.prepare(stream, half) for stream in "ab"]
        with pytest.raises(InvalidInput, match="import_events"):
            await bench.pools.work.run(append_together(items))

        assert await bench.counts() == (0, 0)


# ---- ids


async def test_the_same_ids_again_are_stored_once(database_url: str) -> None:
    ids = [uuid4(), uuid4()]
    async with opened(database_url) as bench:
        first = await bench.append("a", deposits(1, 2), ids=ids, expected=NO_STREAM)
        await bench.append("a", Deposited(3))
        again = await bench.append("a", deposits(1, 2), ids=ids, expected=NO_STREAM)

        assert first.ids == tuple(ids)
        assert not first.stored_before
        assert again.stored_before
        assert (again.version, again.position) == (first.version, first.position)
        assert len(await bench.stored("a")) == 3


@pytest.mark.parametrize("case", ["in part", "in another order", "in another stream", "apart"])
async def test_ids_that_are_stored_otherwise_are_duplicates(database_url: str, case: str) -> None:
    one, two, three = uuid4(), uuid4(), uuid4()
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(1), ids=[one])
        await bench.append("b", Deposited(1))
        if case == "apart":
            await bench.append("a", Deposited(1))
        await bench.append("a", Deposited(2), ids=[two])
        stream, ids = {
            "in part": ("a", [two, three]),
            "in another order": ("a", [two, one]),
            "in another stream": ("b", [one, two]),
            "apart": ("a", [one, two]),
        }[case]
        before = await bench.counts()

        with pytest.raises(DuplicateEvent, match="stored already, as version"):
            await bench.append(stream, deposits(1, 2), ids=ids)

        assert await bench.counts() == before


async def test_tenants_may_use_the_same_ids(database_url: str) -> None:
    name = uuid4()
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(1), ids=[name], tenant="one")
        done = await bench.append("a", Deposited(1), ids=[name], tenant="two")

        assert not done.stored_before


async def test_new_ids_grow_with_time(database_url: str) -> None:
    async with opened(database_url) as bench:
        first = await bench.append("a", Deposited(1))
        second = await bench.append("a", Deposited(1))

        assert first.ids[0].version == second.ids[0].version == 7
        made = datetime.fromtimestamp((first.ids[0].int >> 80) / 1000, UTC)
        assert abs((datetime.now(UTC) - made).total_seconds()) < 60


# ---- several streams


async def test_several_streams_are_appended_together(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("b", Deposited(0))
        items = [
            bench.prepare("b", deposits(1, 2), expected=1),
            bench.prepare("a", Deposited(3), expected=NO_STREAM),
        ]
        done = await bench.pools.work.run(append_together(items))

        assert [(one.stream, one.version) for one in done] == [("b", 3), ("a", 1)]
        assert done[0].position < done[1].position
        assert await bench.stored("b") == [(1, 0), (2, 1), (3, 2)]


async def test_one_refused_stream_undoes_all(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("b", Deposited(0))
        before = await bench.counts()
        items = [
            bench.prepare("a", Deposited(3)),
            bench.prepare("b", Deposited(1), expected=7),
            bench.prepare("c", Deposited(3)),
        ]
        with pytest.raises(WrongVersion, match="'b' is at version 1, expected 7"):
            await bench.pools.work.run(append_together(items))

        assert await bench.counts() == before


async def test_a_stream_stands_in_an_append_once(database_url: str) -> None:
    async with opened(database_url) as bench:
        items = [bench.prepare("a", Deposited(1)), bench.prepare("a", Deposited(2))]
        with pytest.raises(InvalidInput, match="twice"):
            await bench.pools.work.run(append_together(items))

        items[1] = bench.prepare("a", Deposited(2), tenant="another")
        assert len(await bench.pools.work.run(append_together(items))) == 2


async def test_several_streams_with_ids_are_stored_once(database_url: str) -> None:
    ids = [uuid4(), uuid4()]
    async with opened(database_url) as bench:

        def items(*streams: str) -> list[Any]:
            return [
                bench.prepare(stream, Deposited(1), expected=NO_STREAM, ids=[name])
                for stream, name in zip(streams, ids, strict=True)
            ]

        first = await bench.pools.work.run(append_together(items("a", "b")))
        again = await bench.pools.work.run(append_together(items("a", "b")))

        assert [one.position for one in again] == [one.position for one in first]
        assert all(one.stored_before for one in again)
        with pytest.raises(DuplicateEvent):
            await bench.pools.work.run(append_together(items("a", "c")))
        assert await bench.counts() == (2, 2)


async def test_a_bad_event_undoes_all_streams(database_url: str) -> None:
    async with opened(database_url) as bench:
        items = [bench.prepare("a", Deposited(1)), bench.prepare("b", bad())]
        with pytest.raises(InvalidEvent):
            await bench.pools.work.run(append_together(items))

        assert await bench.counts() == (0, 0)


async def test_a_bench_counts_what_is_there(database_url: str) -> None:
    """The checks above look at the tables, not at the store's own answers."""
    async with opened(database_url) as bench:
        assert isinstance(bench, Bench)
        await bench.append("a", deposits(1, 2))

        assert await bench.counts() == (1, 2)
