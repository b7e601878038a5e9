"""Where an incident is played: nodes, what is scraped of them, and who judges it at the end."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from spans import seen
from tally import tally_app

from incidents.nodes import calm_app
from incidents.page import rows_of
from incidents.promtool import Incident
from incidents.scrape import Scrape, asked
from strandline.app import App


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@dataclass
class Stage:
    """One incident.

    Attributes:
        name: In the words of the page ``docs/operate/signals.md``.
        health: By phase: name of a check → outcomes, or path of a probe → answers, over all nodes.
    """

    name: str
    url: str
    folder: Path
    incident: Incident = field(default_factory=lambda: Incident({}))
    health: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    heard: Heard = field(default_factory=Heard)
    spans: Callable[[], Iterable[Any]] = tuple  # those that have ended
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def node(
        self,
        name: str = "a",
        *projections: Any,
        make: Callable[..., App] = tally_app,
        on_stop: Callable[[], Any] | None = None,
        **options: Any,
    ) -> App:
        """A node that runs until the end of the stage, and is scraped."""
        app = calm_app(self.url, name, make=make, **options)
        if on_stop is not None:
            app.on_stop(on_stop)
        await self._stack.enter_async_context(app)
        await app.start(*projections)
        self.watch(name, app.ops.url)
        return app

    async def enter(self, context: Any) -> Any:
        """Enter *context* until the end of the stage."""
        return await self._stack.enter_async_context(context)

    def watch(self, name: str, url: str) -> None:
        """Scrape *url* from now on."""
        assert url, f"node {name} has no ops port"
        self.incident.targets[name] = url

    def forget(self, name: str) -> None:
        """Scrape it no more: it was taken out of the targets."""
        del self.incident.targets[name]

    # ---- phases

    async def before(self, when: Callable[[Scrape], Any] = lambda _: True) -> Scrape:
        """Wait until the nodes are as *when* says, and healthy."""
        return await self._phase("before", when)

    async def during(self, when: Callable[[Scrape], Any], *, grows: Iterable[str] = ()) -> Scrape:
        """Wait until the failure is seen as *when* says.

        Args:
            grows: Metrics that go on growing while it lasts: scraped until they have grown.
        """
        found = await self._phase("during", when)
        self.incident.grows = tuple(grows)
        if self.incident.grows:

            def has_grown(now: Scrape) -> bool:
                return when(now) and all(
                    (now.value(one) or 0.0) > (found.value(one) or 0.0) for one in grows
                )

            found = await self._phase("during", has_grown)
        return found

    async def after(self, when: Callable[[Scrape], Any]) -> Scrape:
        """Wait until all is well again, as *when* says."""
        return await self._phase("after", when)

    async def _phase(self, phase: str, when: Callable[[Scrape], Any]) -> Scrape:
        def holds(now: Scrape) -> bool:
            # A wait of a moment must not be held for minutes.
            return bool(when(now)) and not now.has("strandline_pool_waiting_tasks")

        found = await getattr(self.incident, phase)(holds)
        seen = self.health.setdefault(phase, {})
        for url in self.incident.targets.values():
            code, text = await asked(url, "/healthz?format=json")
            for check in json.loads(text)["checks"] if code in (200, 503) else ():
                seen.setdefault(check["name"], set()).add(check["outcome"])
            for probe in ("/livez", "/readyz"):
                code, _ = await asked(url, probe)
                seen.setdefault(probe, set()).add(str(code))
        return found

    # ---- judgement

    async def judge(self, *alerts: str, may: Iterable[str] = ()) -> None:
        """Exactly *alerts* fire while it lasts (those in *may* or not); the page is true of it.

        Raises:
            AssertionError: It is otherwise.
        """
        judge = partial(self.incident.judge, *alerts, may=may, folder=self.folder)
        await asyncio.to_thread(judge)
        for row in rows_of(self.name):
            row.check(self)

    # ---- what rows of the page ask

    def metric(self, phase: str, name: str, labels: dict[str, str]) -> float | None:
        """The sum over its series in the last scrape of a phase."""
        return self.incident.phases[phase][-1].value(name, **labels)

    def told(self, event: str) -> bool:
        """Whether that log event was told."""
        return any(getattr(one, "event", "") == event for one in self.heard.records)


@asynccontextmanager
async def staged(name: str, url: str, folder: Path) -> AsyncIterator[Stage]:
    """A stage that is cleared at the end of the block."""
    logger = logging.getLogger("strandline")
    level = logger.level
    logger.setLevel(logging.INFO)
    with seen() as spans:
        stage = Stage(name, url, folder, spans=lambda: spans.all)
        logger.addHandler(stage.heard)
        try:
            async with stage._stack:
                yield stage
        finally:
            logger.removeHandler(stage.heard)
            logger.setLevel(level)
