"""What becomes of events that cannot be processed: as the projection, the class, the settings say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from poisoned import LABELS, TABLES, Seen, Step, applied, letters, poisoned_app
from tally import connected, holds

import strandline as sl
from strandline.app import App
from strandline.errors import InvalidDefinition, InvalidSetting
from strandline.projections.failure_policy import Action, Category, category_of

pytestmark = pytest.mark.usefixtures("impatient")

STREAMS = 4
POISON = {9, 18}  # the tenth event; of streams s1 and s2


async def filled(app: App) -> int:
    """Twenty-eight events, in turn for four streams; two of them poison."""
    last = 0
    for number in range(28):
        event = Step(number, poison=number in POISON)
        last = (await app.append(f"s{number % STREAMS}", [event])).position
    return last


async def has_tables(url: str) -> None:
    async with connected(url) as operator:
        await operator.execute(TABLES)


def by_key(wanted: dict[str, list[int]]) -> list[tuple[str, int]]:
    return [(key, number) for key in sorted(wanted) for number in wanted[key]]


STREAM_NUMBERS = {f"s{i}": list(range(i, 28, STREAMS)) for i in range(STREAMS)}
THIRDS = {str(i): list(range(i, 28, 3)) for i in range(3)}


def parked(numbers: dict[str, list[int]]) -> dict[str, list[int]]:
    """What is applied of each key when it stops at its first poison."""
    return {
        key: [n for n in all_ if not any(p in all_ and n >= p for p in POISON)]
        for key, all_ in numbers.items()
    }


def skipped(numbers: dict[str, list[int]]) -> dict[str, list[int]]:
    return {key: [n for n in all_ if n not in POISON] for key, all_ in numbers.items()}


async def test_parked_each_kind_holds_back_the_poisoned_keys_and_no_other(
    database_url: str,
) -> None:
    await has_tables(database_url)
    async with poisoned_app(database_url) as app:
        last = await filled(app)
        await app.start()
        await app.wait_for(last, *(label.partition(":")[0] for label in LABELS))

        found = await applied(app, database_url)
        for label in LABELS:
            wanted = parked(THIRDS if label == "thirds:v1" else STREAM_NUMBERS)
            assert sorted(found[label]) == sorted(by_key(wanted)), label
        told = await letters(database_url)
        assert set(told) == set(LABELS)
        for label, rows in told.items():
            failed = [position for _, position, _, category in rows if category == "apply"]
            # of a multi-stream, 18 waits behind 9: both are in document 0
            assert failed == ([10] if label == "thirds:v1" else [10, 19]), label
            assert {status for _, _, status, _ in rows} == {"parked"}
        assert [row.state for row in await app.progress()] == ["running"] * 5


async def test_skipped_each_kind_goes_on_without_the_poison_and_no_key_waits(
    database_url: str,
) -> None:
    await has_tables(database_url)
    async with poisoned_app(database_url, on_error=sl.ErrorPolicy(apply="skip")) as app:
        last = await filled(app)
        await app.start()
        await app.wait_for(last, *(label.partition(":")[0] for label in LABELS))

        found = await applied(app, database_url)
        for label in LABELS:
            wanted = skipped(THIRDS if label == "thirds:v1" else STREAM_NUMBERS)
            assert sorted(found[label]) == sorted(by_key(wanted)), label
        for rows in (await letters(database_url)).values():
            assert [(row[1], *row[2:]) for row in rows] == [
                (10, "skipped", "apply"),
                (19, "skipped", "apply"),
            ]


async def test_paused_each_kind_stops_before_the_poison_and_the_others_go_on(
    database_url: str,
) -> None:
    await has_tables(database_url)
    app = poisoned_app(
        database_url, on_error=sl.ErrorPolicy(apply="pause"), failure_pause=60, page_events=4
    )

    @app.projection("counted")
    class Counted(sl.SingleStream[Seen]):
        @sl.apply
        def step(self, seen: Seen, event: Step) -> None:
            seen.numbers.append(event.number)

    async with app:
        last = await filled(app)
        await app.start()
        await app.wait_for(last, "counted")
        rows = await holds(lambda: all_paused(app))

        assert await letters(database_url) == {}
        for row in rows:
            assert row.position < 10
            assert (row.category, row.attempts, row.pauses) == ("apply", 4, 1)
            assert row.phase in ("apply", "commit")
            assert row.next_at is not None
        facts = json.loads(next(row.failure for row in rows if row.label == "steps:v1"))
        assert (facts["position"], facts["stream"], facts["version"]) == (10, "s1", 3)
        assert facts["type"] == "step"
        assert facts["handler"].endswith("Steps.step")


async def all_paused(app: App) -> Any:
    rows = [row for row in await app.progress() if row.label != "counted:v1"]
    return rows if all(row.state == "paused" for row in rows) else None


async def test_the_nearest_class_of_an_exception_decides(database_url: str) -> None:
    policy = sl.ErrorPolicy(
        apply="pause", exceptions={LookupError: "park", KeyError: "skip", ArithmeticError: "skip"}
    )
    app = App("classes", database_url, failure_pause=60)
    app.event("step")(Step)
    errors = {1: KeyError("a"), 2: IndexError("b"), 3: ZeroDivisionError("c"), 6: ValueError("d")}

    @app.projection("steps", on_error=policy)
    class Steps(sl.SingleStream[Seen]):
        @sl.apply
        def step(self, seen: Seen, event: Step) -> None:
            if event.number in errors:
                raise errors[event.number]
            seen.numbers.append(event.number)

    async with app:
        await app.append("s", [Step(n) for n in range(3)])
        await app.append("t", [Step(n) for n in range(3, 8)])
        await app.start()
        (row,) = await holds(lambda: is_paused(app))

        assert row.position == 6, "right before the one that says pause"
        assert [(p, *rest) for _, p, *rest in (await letters(database_url))["steps:v1"]] == [
            (2, "skipped", "apply"),
            (3, "parked", "apply"),
            (4, "skipped", "apply"),
        ]
        assert "ValueError" in row.reason


async def is_paused(app: App) -> Any:
    rows = await app.progress()
    return rows if rows[0].state == "paused" else None


async def test_the_settings_decide_where_a_projection_says_nothing(database_url: str) -> None:
    await has_tables(database_url)
    async with poisoned_app(database_url, on_apply_failed="skip") as app:
        last = await filled(app)
        await app.start()
        await app.wait_for(last, *(label.partition(":")[0] for label in LABELS))

        statuses = {row[2] for rows in (await letters(database_url)).values() for row in rows}
        assert statuses == {"skipped"}


async def test_undecodable_events_have_a_policy_of_their_own(database_url: str) -> None:
    await has_tables(database_url)
    policy = sl.ErrorPolicy(apply="pause", undecodable="skip")
    async with poisoned_app(database_url, on_error=policy) as app:
        for number in range(4):
            last = (await app.append("s", [Step(number)])).position
        async with connected(database_url) as operator:
            await operator.execute(
                """UPDATE strandline.events SET data = '{"number": "two"}' WHERE position = 3"""
            )
        await app.start()
        await app.wait_for(last, *(label.partition(":")[0] for label in LABELS))

        for rows in (await letters(database_url)).values():
            assert [(row[1], *row[2:]) for row in rows] == [(3, "skipped", "undecodable")]


async def test_a_type_that_no_class_is_registered_for_is_a_failure_if_the_policy_says_so(
    database_url: str,
) -> None:
    await has_tables(database_url)
    strict = sl.ErrorPolicy(unknown_type="skip")
    async with poisoned_app(database_url, on_error=strict) as app:
        await app.append("s", [Step(1), Step(2)])
        last = (await app.append("t", [Step(3)])).position
        async with connected(database_url) as operator:
            await operator.execute("UPDATE strandline.events SET type = 'leap' WHERE position = 2")
        await app.start()
        await app.wait_for(last, *(label.partition(":")[0] for label in LABELS))

        told = await letters(database_url)
        assert set(told) == set(LABELS)
        for rows in told.values():
            assert [(row[1], *row[2:]) for row in rows] == [(2, "skipped", "unknown_type")]


async def test_a_type_that_no_class_is_registered_for_is_passed_otherwise(
    database_url: str,
) -> None:
    await has_tables(database_url)
    async with poisoned_app(database_url) as app:
        last = (await app.append("s", [Step(2), Step(3)])).position
        async with connected(database_url) as operator:
            await operator.execute("UPDATE strandline.events SET type = 'leap' WHERE position = 1")
        await app.start()
        await app.wait_for(last, "steps", "thirds", "written", "told")

        assert await letters(database_url) == {}


# ---- the data itself


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"apply": "retry"}, "apply='retry' is not one of pause, skip, park"),
        ({"undecodable": "ignore"}, "undecodable='ignore' is not one of"),
        ({"unknown_type": "drop"}, "is not one of ignore, pause, skip, park"),
        ({"exceptions": {ValueError: "ignore"}}, "'ignore' for ValueError"),
        ({"exceptions": {"ValueError": "skip"}}, "is not an exception class"),
    ],
)
def test_a_policy_that_is_none_is_refused(given: Any, words: str) -> None:
    with pytest.raises(InvalidDefinition, match=words):
        sl.ErrorPolicy(**given)


def test_on_error_takes_nothing_but_a_policy() -> None:
    app = App("refused", "postgresql://nowhere")
    app.event("step")(Step)
    with pytest.raises(InvalidDefinition, match="is not an sl.ErrorPolicy"):

        @app.projection("steps", on_error="park")  # type: ignore[arg-type]  # the mistake
        class Steps(sl.SingleStream[Seen]):
            @sl.apply
            def step(self, seen: Seen, event: Step) -> None: ...

    with pytest.raises(InvalidDefinition, match="is not an sl.ErrorPolicy"):

        @app.subscription("told", on_error="park")  # type: ignore[arg-type]  # the mistake
        async def told(batch: sl.EventBatch) -> None: ...


@pytest.mark.parametrize("name", ["on_apply_failed", "on_undecodable", "on_unknown_type"])
def test_a_setting_that_is_no_action_is_refused(name: str) -> None:
    with pytest.raises(InvalidSetting, match=name):
        App("refused", "postgresql://nowhere", **{name: "retry"})


def test_what_is_no_failure_of_an_event_is_a_pause_whatever_the_policy_says() -> None:
    policy = sl.ErrorPolicy(apply="skip", undecodable="skip", exceptions={Exception: "skip"})

    for error in (sl.PoolExhausted("x"), RuntimeError("x"), OSError("x"), TimeoutError()):
        assert policy.action(error) is Action.PAUSE
    assert category_of(RuntimeError("x")) is Category.OTHER
    assert category_of(ConnectionResetError()) is Category.DATABASE
