"""An app whose handlers do what the test wants: go well, fail, or hang."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from tally import Dropped, Seen, Ticked

import strandline as sl
from strandline.app import App


@dataclass
class Mood:
    """How the handlers are.

    Attributes:
        fails: Whether they raise.
        goes_on: They wait for it.
    """

    fails: bool = False
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)

    def check(self) -> None:
        if self.fails:
            raise ValueError("the service is not there")


def fragile_app(url: str, mood: Mood, **settings: Any) -> App:
    """A projection and a subscription that are as *mood* is."""
    app = App("fragile", url, **{"failure_pause": 0.5, "longest_failure_pause": 0.5, **settings})
    app.event("ticked")(Ticked)
    app.event("dropped")(Dropped)
    mood.goes_on.set()

    @app.projection("seen")
    class Numbers(sl.SingleStream[Seen]):
        @sl.apply
        def ticked(self, seen: Seen, event: Ticked) -> None:
            mood.check()
            seen.versions.append(event.number)

    @app.subscription("told")
    async def told(batch: sl.EventBatch) -> None:
        await mood.goes_on.wait()

    return app
