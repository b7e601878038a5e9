"""Given events, when something happens, then this: the whole app on a real database.

    await (
        app_scenario(app)
        .given("account-1", AccountOpened("Ada"))
        .when(lambda app: deposit(app, "account-1", 5))
        .then_document(Accounts, "account-1", Account("Ada", 5))
    )

Nothing happens before ``await``. Projections are caught up before anything is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, Self

from strandline.app import App
from strandline.errors import StreamNotFound, Unavailable
from strandline.projections.projection import Lifecycle
from strandline.projections.registry import Reference
from strandline.telemetry.signals import Notice
from strandline.testing.differences import same, words
from strandline.testing.history import split

Step = Callable[[], Awaitable[None]]


def app_scenario(app: App, *, tenant: str = "default", timeout: float = 30.0) -> AppScenario:
    """Begin a scenario on an open *app*.

    Args:
        app: Its projections are run by the scenario, unless it is a node already.
        tenant: Whose streams and documents these are.
        timeout: Seconds that projections may take to catch up.
    """
    return AppScenario(app, tenant=tenant, timeout=timeout)


class AppScenario:
    """Steps, run in order by ``await``. Every method answers the scenario."""

    def __init__(self, app: App, *, tenant: str, timeout: float) -> None:
        self._app = app
        self._tenant = tenant
        self._timeout = timeout
        self._steps: list[Step] = []
        self._stream = "stream-1"
        self._before: dict[str, int] = {}
        self._raised: Exception | None = None
        self._caught_up = False

    def __await__(self) -> Generator[Any, None, None]:
        """Run the steps.

        Raises:
            AssertionError: Something is not as expected; the message shows the difference.
            Exception: What ``when`` raised, if no ``then_raises`` follows.
        """
        return self._run().__await__()

    # ---- given and when

    def given(self, *events: Any) -> Self:
        """These events were appended; a text before them names their stream."""
        self._stream, given = split(events, self._stream)
        stream = self._stream

        async def step() -> None:
            done = await self._app.append(stream, given, tenant=self._tenant)
            self._before[stream] = done.version
            self._caught_up = False

        self._steps.append(step)
        return self

    def when(self, *happening: Any) -> Self:
        """More events are appended, or an ``async`` function is called with the app."""
        if len(happening) == 1 and callable(happening[0]):
            self._steps.append(lambda: self._called(happening[0]))
            return self
        self._stream, given = split(happening, self._stream)
        stream = self._stream

        async def append(app: App) -> None:
            await app.append(stream, given, tenant=self._tenant)

        self._steps.append(lambda: self._called(append))
        return self

    # ---- then

    def then_document(self, projection: Reference, name: str, expected: Any) -> Self:
        """The projection has this document."""

        async def step() -> None:
            __tracebackhide__ = True
            found = await self._found(projection, name)
            if found is None:
                raise AssertionError(f"{_title(projection)} has no document {name!r}")
            same(found, expected, f"document {name!r} of {_title(projection)}")

        return self._look(step)

    def then_no_document(self, projection: Reference, name: str) -> Self:
        """The projection has no document of that id."""

        async def step() -> None:
            __tracebackhide__ = True
            found = await self._found(projection, name)
            if found is not None:
                raise AssertionError(
                    f"{_title(projection)} has a document {name!r}:\n{words(found)}"
                )

        return self._look(step)

    def then_documents(self, projection: Reference, expected: Mapping[str, Any]) -> Self:
        """The projection has these documents and no others."""

        async def step() -> None:
            __tracebackhide__ = True
            found = dict(await self._app.query(projection, tenant=self._tenant))
            same(found, dict(expected), f"documents of {_title(projection)}")

        return self._look(step)

    def then_events(self, *expected: Any) -> Self:
        """What happened appended exactly these events to the stream (a text before them names it)."""
        stream = self._stream
        if expected and isinstance(expected[0], str):
            stream, expected = expected[0], expected[1:]

        async def step() -> None:
            __tracebackhide__ = True
            first = self._before.get(stream, 0) + 1
            events = await self._app.read_stream(stream, tenant=self._tenant, from_version=first)
            found = [event.data for event in events]
            same(found, list(expected), f"events appended to {stream!r}")

        return self._look(step, catch_up=False)

    def then_appended(self, *expected: Any) -> Self:
        """Side effects and what happened have appended exactly these events to the stream.

        A text before them names the stream. Unlike ``then_events`` it waits for projections first.
        """
        stream = self._stream
        if expected and isinstance(expected[0], str):
            stream, expected = expected[0], expected[1:]

        async def step() -> None:
            __tracebackhide__ = True
            first = self._before.get(stream, 0) + 1
            op = self._app.read_stream(stream, tenant=self._tenant, from_version=first)
            try:
                found = [event.data for event in await op]
            except StreamNotFound:
                found = []
            same(found, list(expected), f"events appended to {stream!r}")

        return self._look(step)

    def then_raises(self, error: type[Exception], match: str = "") -> Self:
        """What happened raised *error* with *match* in its text."""

        async def step() -> None:
            __tracebackhide__ = True
            raised, self._raised = self._raised, None
            if raised is None:
                raise AssertionError(f"{error.__name__} was not raised")
            if not isinstance(raised, error):
                raise AssertionError(  # noqa: TRY004 - a failed expectation, not a wrong argument
                    f"not {error.__name__} was raised, but {raised!r}"
                ) from raised
            if match not in str(raised):
                raise AssertionError(f"{match!r} is not in {str(raised)!r}") from raised

        self._steps.append(step)
        return self

    # ---- how

    async def _run(self) -> None:
        __tracebackhide__ = True
        steps, self._steps = self._steps, []
        for step in steps:
            await step()
        self._raise_unexpected()

    async def _called(self, happening: Callable[[App], Awaitable[Any]]) -> None:
        self._raise_unexpected()
        self._caught_up = False
        try:
            await happening(self._app)
        except Exception as error:  # whatever the user's code raises is told by then_raises
            self._raised = error

    def _look(self, step: Step, *, catch_up: bool = True) -> Self:
        async def looked() -> None:
            __tracebackhide__ = True
            self._raise_unexpected()
            if catch_up and not self._caught_up:
                await self._catch_up()
                self._caught_up = True
            await step()

        self._steps.append(looked)
        return self

    async def _found(self, projection: Reference, name: str) -> Any:
        definition = self._app.registry.projection(projection)
        if definition.lifecycle is Lifecycle.LIVE:
            return await self._app.live(projection, name, tenant=self._tenant)
        return await self._app.find(projection, name, tenant=self._tenant)

    async def _catch_up(self) -> None:
        """Catch up; a handler that raises is raised here, and not after tries and pauses."""
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def hear(notice: Notice) -> None:
            if notice.name != "batch_failed" or failed.done():
                return
            if not isinstance(notice.facts["error"], Unavailable):
                failed.set_exception(notice.facts["error"])

        end = self._app.signals.listen(hear)
        caught = asyncio.create_task(self._app.catch_up(timeout=self._timeout))
        try:
            either: set[asyncio.Future[Any]] = {caught, failed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            await caught
        finally:
            end()
            failed.cancel()
            caught.cancel()
            await asyncio.wait({caught})

    def _raise_unexpected(self) -> None:
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised


def _title(projection: Reference) -> str:
    return projection if isinstance(projection, str) else getattr(projection, "__name__", "it")
