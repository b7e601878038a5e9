"""Random appends over several streams against a model that is a dictionary."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import Bench, Deposited, opened

from strandline.errors import ConflictError, DuplicateEvent, StreamArchived, WrongVersion
from strandline.events.append import append_together
from strandline.events.event import ANY, NO_STREAM, STREAM_EXISTS
from strandline.testing.database import fresh_database

STREAMS = ("a", "b", "c")


@dataclass(frozen=True)
class Step:
    """One append: to one stream, or to several all or none; perhaps with ids of its own."""

    parts: tuple[tuple[str, int, int], ...]  # stream, events, expected
    first_id: int | None


@dataclass(frozen=True)
class Toggle:
    """Archive a stream, or bring it back."""

    stream: str


_expected = st.sampled_from([ANY, NO_STREAM, STREAM_EXISTS]) | st.integers(1, 6)
_part = st.tuples(st.sampled_from(STREAMS), st.integers(1, 3), _expected)
_steps = st.builds(
    Step,
    st.lists(_part, min_size=1, max_size=3, unique_by=lambda part: part[0]).map(tuple),
    st.none() | st.integers(1, 8),
)
_toggles = st.builds(Toggle, st.sampled_from(STREAMS))
_programs = st.lists(st.one_of(_steps, _steps, _steps, _toggles), max_size=14)


@dataclass
class Model:
    """What the database should hold."""

    streams: dict[str, list[int]] = field(default_factory=dict)  # amounts, in order
    archived: set[str] = field(default_factory=set)
    places: dict[int, tuple[str, int]] = field(default_factory=dict)  # id → stream and version
    amount: int = 0

    def expects(self, step: Step) -> type[Exception] | None | bool:
        """The error that *step* must end in; True: it is stored already; None: it is stored."""
        if step.first_id is not None:
            known = [self._known(step, number) for number in range(len(step.parts))]
            if any(one is DuplicateEvent for one in known):
                return DuplicateEvent
            if all(known):
                return True
            if any(known):
                return DuplicateEvent
        for stream, _, expected in step.parts:
            version = len(self.streams.get(stream, ()))
            if stream in self.archived:
                return StreamArchived
            holds = {
                int(ANY): True,
                int(NO_STREAM): version == 0,
                int(STREAM_EXISTS): version > 0,
            }.get(int(expected), version == expected)
            if not holds:
                return WrongVersion
        return None

    def ids(self, step: Step, number: int) -> list[int]:
        """The ids of a part: they follow each other over all parts."""
        assert step.first_id is not None
        start = step.first_id + sum(part[1] for part in step.parts[:number])
        return list(range(start, start + step.parts[number][1]))

    def _known(self, step: Step, number: int) -> type[Exception] | bool:
        stream = step.parts[number][0]
        found = [self.places.get(one) for one in self.ids(step, number)]
        if not any(found):
            return False
        first = found[0]
        whole = first is not None and all(
            one == (stream, first[1] + offset) for offset, one in enumerate(found)
        )
        return True if whole else DuplicateEvent

    def store(self, step: Step) -> list[list[int]]:
        """Do it; the amounts of each part."""
        made = []
        for number, (stream, count, _) in enumerate(step.parts):
            line = self.streams.setdefault(stream, [])
            amounts = list(range(self.amount, self.amount + count))
            self.amount += count
            if step.first_id is not None:
                for offset, one in enumerate(self.ids(step, number)):
                    self.places[one] = (stream, len(line) + 1 + offset)
            line.extend(amounts)
            made.append(amounts)
        return made


async def _do(bench: Bench, model: Model, step: Step) -> None:
    wanted = model.expects(step)
    before = {stream: len(line) for stream, line in model.streams.items()}
    amounts = model.store(step) if wanted is None else [[0] * part[1] for part in step.parts]
    items = []
    for number, (stream, _, expected) in enumerate(step.parts):
        options: dict[str, Any] = {"expected": expected}
        if step.first_id is not None:
            options["ids"] = [UUID(int=one) for one in model.ids(step, number)]
        events = [Deposited(one) for one in amounts[number]]
        items.append(bench.prepare(stream, events, **options))
    try:
        if len(items) == 1:
            done = [await bench.store.append_prepared(items[0])]
        else:
            done = await bench.pools.work.run(append_together(items))
    except ConflictError as error:
        assert type(error) is wanted, (step, wanted, error)
        if isinstance(error, WrongVersion):
            assert error.actual == before.get(error.stream, 0)
        return
    assert wanted in (None, True), (step, wanted)
    assert [one.stored_before for one in done] == [wanted is True] * len(done)
    for part, one in zip(step.parts, done, strict=True):
        if wanted is None:
            assert one.version == before.get(part[0], 0) + part[1]


async def _toggle(bench: Bench, model: Model, stream: str) -> None:
    if stream in model.archived:
        model.archived.discard(stream)
        await bench.store.unarchive(stream)
    elif stream in model.streams:
        model.archived.add(stream)
        await bench.store.archive(stream)


async def _run(url: str, program: list[Step | Toggle]) -> None:
    async with opened(url) as bench:
        await bench.rows("TRUNCATE strandline.streams, strandline.events RESTART IDENTITY")
        model = Model()
        for step in program:
            if isinstance(step, Toggle):
                await _toggle(bench, model, step.stream)
            else:
                await _do(bench, model, step)

        rows = await bench.rows(
            "SELECT stream, version, (data->>'amount')::int, position FROM strandline.events"
            " ORDER BY position"
        )
        for stream in STREAMS:
            line = model.streams.get(stream, [])
            found = [(version, amount) for name, version, amount, _ in rows if name == stream]
            assert found == list(enumerate(line, 1))
        versions = dict(await bench.rows("SELECT id, version FROM strandline.streams"))
        assert versions == {stream: len(line) for stream, line in model.streams.items()}


_quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@settings(max_examples=30, deadline=None, suppress_health_check=_quiet)
@given(program=_programs)
def test_the_store_does_what_a_dictionary_would(
    database_url: str, program: list[Step | Toggle]
) -> None:
    asyncio.run(_run(database_url, program))


@dataclass(frozen=True)
class Writer:
    """A task that reads a stream's version and appends to it, again and again."""

    stream: str
    appends: int
    events: int
    is_exact: bool


_writers = st.lists(
    st.builds(
        Writer, st.sampled_from(STREAMS), st.integers(1, 8), st.integers(1, 3), st.booleans()
    ),
    min_size=2,
    max_size=10,
)


async def _write(bench: Bench, writer: Writer, number: int) -> int:
    stored = 0
    for _ in range(writer.appends):
        expected = ANY
        if writer.is_exact:
            state = await bench.store.stream_state(writer.stream)
            expected = state.version if state else NO_STREAM
        try:
            done = await bench.append(
                writer.stream, [Deposited(number)] * writer.events, expected=expected
            )
        except WrongVersion as error:
            assert writer.is_exact
            assert error.actual > int(expected)
        else:
            if writer.is_exact:
                assert done.version == int(expected) + writer.events
            stored += writer.events
    return stored


async def _compete(url: str, writers: list[Writer]) -> None:
    async with opened(url) as bench, opened(url) as other:
        await bench.rows("TRUNCATE strandline.streams, strandline.events RESTART IDENTITY")
        benches = (bench, other)
        done = await asyncio.gather(
            *(_write(benches[n % 2], writer, n) for n, writer in enumerate(writers))
        )

        for stream in STREAMS:
            rows = await bench.rows(
                "SELECT version, (data->>'amount')::int FROM strandline.events"
                " WHERE stream = $1 ORDER BY position",
                stream,
            )
            assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
        for number, count in enumerate(done):
            found = await bench.rows(
                "SELECT count(*) FROM strandline.events WHERE (data->>'amount')::int = $1", number
            )
            assert found == [(count,)]


@settings(max_examples=15, deadline=None, suppress_health_check=_quiet)
@given(writers=_writers)
def test_writers_at_once_never_share_a_version(database_url: str, writers: list[Writer]) -> None:
    asyncio.run(_compete(database_url, writers))


async def test_a_fresh_database_is_empty(server_url: str) -> None:
    """The model starts from nothing; so must the database."""
    async with fresh_database(server_url) as url, opened(url) as bench:
        assert await bench.counts() == (0, 0)
