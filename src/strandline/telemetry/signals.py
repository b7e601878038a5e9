"""In-process notices: components tell, tests and metrics listen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened: its name and its facts."""

    name: str
    facts: dict[str, Any]


Listener = Callable[[Notice], None]


@dataclass(slots=True)
class Signals:
    """A switchboard for notices of one app. Listeners are called at once and must not block."""

    listeners: list[Listener] = field(default_factory=list)

    def tell(self, name: str, /, **facts: Any) -> None:
        """Tell every listener that *name* happened."""
        if self.listeners:
            notice = Notice(name, facts)
            for listener in list(self.listeners):
                listener(notice)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call *listener* for every notice from now on; the answer ends that."""
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    async def wait_for(
        self, name: str, *, timeout: float, where: Callable[[Notice], bool] = lambda _: True
    ) -> Notice:
        """Wait until *name* is told and *where* holds.

        Raises:
            TimeoutError: It was not told within *timeout* seconds.
        """
        came: asyncio.Future[Notice] = asyncio.get_running_loop().create_future()

        def check(notice: Notice) -> None:
            if notice.name == name and not came.done() and where(notice):
                came.set_result(notice)

        end = self.listen(check)
        try:
            return await asyncio.wait_for(came, timeout)
        finally:
            end()
