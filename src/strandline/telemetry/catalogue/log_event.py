"""One kind of log record, as the catalogue describes it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One thing that is told to the log.

    Attributes:
        name: Of the event, the same in all languages and versions.
        level: How loud.
        message: For people, with the fields as ``%(name)s``.
        meaning: What to think of it, and what to do; empty where the message says it all.
        fields: Further fields that the message does not show.
    """

    name: str
    level: Level
    message: str
    meaning: str = ""
    fields: tuple[str, ...] = ()

    @property
    def severity(self) -> int:
        """The level as a number."""
        return logging.getLevelNamesMapping()[self.level]
