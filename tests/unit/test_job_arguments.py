"""What a job's arguments may be, how they are stored, and how old ones are read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import msgspec
import pydantic
import pytest
from cryptography.fernet import Fernet

from strandline.errors import InvalidDefinition, InvalidInput, InvalidSetting, UnknownJob
from strandline.jobs.inject import Inject
from strandline.jobs.job import Job, Unique
from strandline.jobs.kinds import Kinds
from strandline.jobs.registration import JobRegistration
from strandline.jobs.row import NewJob
from strandline.settings import Settings


class Colour(Enum):
    RED = "red"


class Order(pydantic.BaseModel):
    number: int


class Point(msgspec.Struct):
    x: float = 0.0


class Declared(JobRegistration):
    def __init__(self, **settings: Any) -> None:
        self.kinds = Kinds(settings=Settings(**settings))


def stored(app: Declared, call: Any) -> NewJob:
    return app.kinds.prepare(call, 7)


@pytest.fixture
def app() -> Declared:
    return Declared()


async def test_arguments_are_stored_by_name_and_come_back_as_their_types(app: Declared) -> None:
    @app.job
    async def paint(
        number: int,
        /,
        colour: Colour,
        *,
        at: datetime | None = None,
        order: Order | None = None,
        points: tuple[Point, ...] = (),
    ) -> None: ...

    at = datetime(2026, 1, 2, tzinfo=UTC)
    call = paint.call(1, Colour.RED, at=at, order=Order(number=3), points=(Point(2.0),))
    job = stored(app, call)

    assert json.loads(job.args) == {
        "number": 1,
        "colour": "red",
        "at": "2026-01-02T00:00:00Z",
        "order": {"number": 3},
        "points": [{"x": 2.0}],
    }
    assert app.kinds.decode("paint", job.args) == (
        (1,),
        {"colour": Colour.RED, "at": at, "order": Order(number=3), "points": (Point(2.0),)},
    )


async def test_a_default_is_that_of_the_code_that_runs(app: Declared) -> None:
    @app.job
    async def greet(name: str, greeting: str = "hello") -> None: ...

    job = stored(app, greet.call("Ada"))

    assert json.loads(job.args) == {"name": "Ada"}
    assert app.kinds.decode("greet", job.args) == ((), {"name": "Ada"})
    assert app.kinds.decode("greet", '{"name":"Ada","gone":1}') == ((), {"name": "Ada"})


async def test_what_is_injected_is_no_argument(app: Declared) -> None:
    @app.job
    async def send(to: str, mailer: Any = Inject(dict), *, copies: int = 1) -> None: ...

    assert send.arguments.names == ["to", "copies"]
    assert json.loads(stored(app, send.call("a", copies=2)).args) == {"to": "a", "copies": 2}
    with pytest.raises(InvalidInput, match="mailer"):
        stored(app, send.call("a", mailer=1))


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, "misses number, rate"),
        ((1, 2.0, "", 4, 5), {}, "takes 4 by position, got 5"),
        ((1,), {"number": 1, "rate": 1.0}, "got 'number' twice"),
        ((1, 2.0), {"other": 1}, "no argument 'other'"),
        (("1", 2.0), {}, "Expected `int`, got `str`"),
        ((1, float("nan")), {}, "NaN or infinity"),
        ((1, object()), {}, "no JSON form"),
        ((1, 1.0), {"text": "a\0b"}, "NUL character"),
        ((1, 1.0), {"text": "\ud800"}, "no JSON form"),
        ((1, 1.0), {"text": "x" * 2_000}, "the limit is 1024"),
        ((1, 1.0), {"anything": float("inf")}, "NaN or infinity"),
    ],
)
async def test_bad_arguments_are_refused_before_anything_is_sent(
    args: tuple[Any, ...], kwargs: dict[str, Any], words: str
) -> None:
    app = Declared(max_payload_bytes=1024)

    @app.job
    async def take(number: int, rate: float, text: str = "", anything: Any = None) -> None: ...

    with pytest.raises(InvalidInput, match=words):
        stored(app, take.call(*args, **kwargs))


async def test_a_text_that_only_looks_like_a_nul_is_fine(app: Declared) -> None:
    @app.job
    async def take(text: str) -> None: ...

    job = stored(app, take.call("\\u0000"))

    assert app.kinds.decode("take", job.args) == (("\\u0000",), {})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"priority": 0}, "priority=0"),
        ({"priority": True}, "priority=True"),
        ({"delay": -1}, "delay=-1"),
        ({"delay": float("nan")}, "delay=nan"),
        ({"delay": timedelta(days=50_000)}, "delay="),
        ({"run_at": datetime(2026, 1, 1)}, "run_at="),  # noqa: DTZ001 - that is the point
        ({"queue": ""}, "queue"),
        ({"queue": "q" * 101}, "queue"),
        ({"key": "a\0"}, "key"),
        ({"tenant": 5}, "tenant"),
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"max_attempts": 40_000}, "max_attempts=40000"),
        ({"timeout": 0}, "timeout=0"),
        ({"keep": "some"}, "keep='some'"),
        ({"tags": ["", "a"]}, "tag"),
        ({"meta": {"tags": 1}}, "meta cannot hold tags"),
        ({"meta": {"a": object()}}, "meta of a job"),
        ({"meta": {"a": "\0"}}, "meta of a job"),
        ({"unique": ""}, "unique key"),
        ({"unique": Unique(by=("nothing",))}, "unique by 'nothing'"),
        ({"unique": Unique(within=0)}, "within=0"),
        ({"ordered": True}, "ordered by its key"),
    ],
)
async def test_bad_options_are_refused(app: Declared, options: dict[str, Any], words: str) -> None:
    @app.job
    async def work() -> None: ...

    with pytest.raises(InvalidInput, match=words):
        stored(app, work.call().with_(**options))


async def test_options_of_the_call_go_before_those_of_the_job(app: Declared) -> None:
    @app.job(queue="mail", priority=3, max_attempts=4, keep="all", key=lambda to: f"to-{to}")
    async def send(to: str) -> None: ...

    usual = stored(app, send.call("a"))
    other = stored(
        app,
        send.call("a").with_(
            queue="fast", priority=1, max_attempts=2, keep="none", key="k", tenant="t",
            tags=["red"], timeout=5, meta={"why": "so"}, delay=timedelta(minutes=1),
        ),
    )  # fmt: skip

    assert (usual.queue, usual.priority, usual.max_attempts, usual.flags) == ("mail", 3, 4, 64)
    assert (usual.key, usual.tenant, usual.meta, usual.is_plain) == ("to-a", None, None, True)
    assert (other.queue, other.priority, other.max_attempts, other.flags) == ("fast", 1, 2, 128)
    assert (other.key, other.tenant, other.delay, other.is_plain) == ("k", "t", 60.0, False)
    assert json.loads(other.meta or "") == {"why": "so", "tags": ["red"], "timeout": 5.0}
    assert stored(app, send.call("a").with_(delay=1).with_(run_at=datetime.now(UTC))).delay is None


async def test_unique_keys_are_those_of_the_same_arguments(app: Declared) -> None:
    @app.job(unique=Unique())
    async def send(to: str, copies: int = 1) -> None: ...

    @app.job(unique=Unique(by=("to", "tenant"), within=60, until="started"))
    async def bill(to: str, copies: int = 1) -> None: ...

    def key(call: Any) -> str | None:
        return stored(app, call).unique_key

    assert key(send.call("a")) == key(send.call(to="a", copies=1))
    assert key(send.call("a")) != key(send.call("a", copies=2))
    assert key(send.call("a")) != key(bill.call("a"))
    assert key(bill.call("a")) == key(bill.call("a", copies=2))
    assert key(bill.call("a")) != key(bill.call("a").with_(tenant="t"))
    assert key(send.call("a").with_(unique="mine")) == "mine"
    assert stored(app, bill.call("a")).unique_seconds == 60.0


async def test_encrypted_arguments_need_one_of_the_keys() -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    before, after = Declared(job_keys=old), Declared(job_keys=f"{new}, {old}")
    without = Declared(job_keys=new)

    async def keep(secret: str) -> None: ...

    for one in (before, after, without):
        one.job(encrypted=True)(keep)
    job = stored(before, before.kinds.get("keep").call("s3cret"))

    assert "s3cret" not in job.args
    assert job.flags == 16
    assert after.kinds.decode("keep", job.args, encrypted=True) == (("s3cret",), {})
    with pytest.raises(InvalidSetting, match="none of the keys"):
        without.kinds.decode("keep", job.args, encrypted=True)
    with pytest.raises(InvalidSetting, match="need a key"):
        nothing = Declared()
        stored(nothing, nothing.job(encrypted=True)(keep).call("x"))


async def test_jobs_stored_under_old_names_and_shapes_are_read(app: Declared) -> None:
    @app.job(name="send-mail", aliases=["mail"])
    async def send(to: str, copies: int) -> None: ...

    @app.upcast_job("letter", to=send)
    def of_a_letter(old: dict[str, Any]) -> dict[str, Any]:
        return {"to": old["address"], "copies": 1}

    assert set(app.kinds.names) == {"send-mail", "mail", "letter"}
    assert app.kinds.decode("mail", '{"to":"a","copies":2}') == (("a", 2), {})
    assert app.kinds.decode("letter", '{"address":"a"}') == (("a", 1), {})
    assert stored(app, send.call("a", 1)).kind == "send-mail"
    with pytest.raises(msgspec.ValidationError):
        app.kinds.decode("mail", '{"to":1,"copies":2}')


async def test_a_function_that_cannot_be_a_job_is_refused(app: Declared) -> None:
    async def rest(*numbers: int) -> None: ...
    async def fine() -> None: ...
    async def generates() -> Any:
        yield 1

    def plain() -> None: ...

    @app.job
    async def taken() -> None: ...

    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("name every argument", rest, {}),
        ("executor='thread' does not fit", fine, {"executor": "thread"}),
        ("executor='async' does not fit", plain, {"executor": "async"}),
        ("is a generator", generates, {}),
        ("declared already", fine, {"name": "taken"}),
        ("declared already", fine, {"aliases": ["taken"]}),
        ("has no name of its own", lambda: None, {}),
        ("priority=10", fine, {"priority": 10}),
        ("kind", fine, {"name": "x" * 201}),
        ("timeout=-1", fine, {"timeout": -1}),
        ("max_attempts=0", fine, {"max_attempts": 0}),
    ]
    for words, function, options in cases:
        with pytest.raises(InvalidDefinition, match=words):
            app.job(**options)(function)
    assert app.kinds.names == ["taken"]


async def test_annotations_that_json_cannot_be_read_as_are_told_at_the_latest_at_open(
    app: Declared,
) -> None:
    @app.job
    async def odd(what: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(InvalidDefinition, match="'odd'.*Nowhere"):
        app.kinds.bind()


async def test_a_job_of_another_app_is_refused(app: Declared) -> None:
    other = Declared()

    async def work() -> None: ...

    mine, theirs = app.job(work), other.job(work)

    with pytest.raises(UnknownJob, match="another one"):
        app.kinds.check(theirs.call())
    with pytest.raises(UnknownJob, match="declared: work"):
        app.kinds.get("play")
    with pytest.raises(InvalidInput, match="cannot be enqueued"):
        app.kinds.check(work)
    assert app.kinds.check(mine.call()).job is mine


async def test_a_job_can_still_be_called(app: Declared) -> None:
    @app.job
    async def double(number: int) -> int:
        """Twice."""
        return number * 2

    @app.job(executor="process")
    def half(number: int) -> float:
        return number / 2

    assert await double(4) == 8
    assert half(4) == 2.0
    assert (double.__doc__, double.executor, half.executor) == ("Twice.", "async", "process")
    assert isinstance(double, Job)
