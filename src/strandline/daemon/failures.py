"""What fails in an agent: where, of which kind, at which event; for tables, signals and policies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from strandline.daemon.checkpoint import Trouble
from strandline.daemon.described import handler_of, plain, root_of
from strandline.errors import (
    TO_THE_PROCESS,
    ApplyFailed,
    ConflictError,
    EventFailure,
    InvalidInput,
    NotFound,
    TransactionFailed,
    UnregisteredEvent,
    shown,
)
from strandline.projections.failure_policy import Category, category_of
from strandline.projections.fold import POSITION, STREAM, TYPE, VERSION, Row

# Errors of ours that answer what the user's code has passed or done: the event's failure then.
_OF_THE_USER = (InvalidInput, ConflictError, NotFound, TransactionFailed, UnregisteredEvent)


class Phase(StrEnum):
    """What an agent was doing when it failed."""

    START = "start"  # claiming its shard, or reading its checkpoint again
    FETCH = "fetch"
    APPLY = "apply"
    COMMIT = "commit"
    STOP = "stop"  # whatever it was doing: it was told to end, and does not try again


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure, ready to be told.

    Attributes:
        row: The event that failed, if it is known which.
    """

    phase: Phase
    category: Category
    error: BaseException
    row: Row | None = None

    @property
    def reason(self) -> str:
        """The error in one line."""
        return plain(f"{type(self.error).__name__}: {self.error}")

    def json(self) -> str:
        """Class, message, cause, handler, and the event's position, stream, version and type."""
        error = self.error
        facts: dict[str, Any] = {"class": type(error).__name__, "message": plain(str(error))}
        if error.__cause__ is not None:
            facts["cause"] = plain(shown(error.__cause__))
        if isinstance(error, EventFailure):
            facts["handler"] = handler_of(root_of(error)) or None
            facts["position"] = getattr(error, "position", 0) or None
            facts["type"] = getattr(error, "event_type", None)
        if self.row is not None:
            facts["position"] = self.row[POSITION]
            facts["stream"] = self.row[STREAM]
            facts["version"] = self.row[VERSION]
            facts["type"] = self.row[TYPE]
        return json.dumps(facts)


class Ledger:
    """What went wrong in an agent since the last batch that was committed.

    Errors are noted where they are raised: those of a commit under way and of the page after it
    may come in any order.

    Attributes:
        failing: The latest failure, until the agent gets over it.
        tries: Tries that failed since the last pause.
        pauses: Pauses so far.
    """

    def __init__(self, label: str) -> None:
        self.failing: Failure | None = None
        self.tries = 0
        self.pauses = 0
        self._label = label
        self._noted: list[Failure] = []

    @contextmanager
    def during(self, phase: Phase, rows: Sequence[Row] = ()) -> Iterator[None]:
        """Note what the block raises, while it works on *rows*.

        A cancellation that nobody has asked for comes from the user's code, and is its failure. So
        are our own errors about what that code has passed to us.
        """
        try:
            yield
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            raise self._note(phase, self._blamed(phase, error, rows), rows) from error
        except _OF_THE_USER as error:
            if phase not in (Phase.APPLY, Phase.COMMIT):
                self._note(phase, error, rows)
                raise
            raise self._note(phase, self._blamed(phase, error, rows), rows) from error
        except Exception as error:
            self._note(phase, error, rows)
            raise
        except (GeneratorExit, *TO_THE_PROCESS):  # the first one closes a coroutine
            raise
        except BaseException as error:  # e.g. a panic of an extension module
            raise self._note(phase, self._blamed(phase, error, rows), rows) from error

    def found(self, error: Exception) -> Failure:
        """The failure that *error* is; all that was noted is forgotten."""
        noted, self._noted = self._noted, []
        for one in reversed(noted):
            if one.error is error:
                return one
        return Failure(Phase.APPLY, category_of(error), error)

    def failed(
        self, error: Exception, *, stopping: bool, category: Category | None = None
    ) -> Failure:
        """Keep *error* as what the agent fails with."""
        found = self.found(error)
        if stopping:
            found = Failure(Phase.STOP, category or found.category, error, found.row)
        self.failing = found
        self.tries += 1
        return found

    def got_over(self) -> bool:
        """All is well; whether the agent had paused before."""
        had_paused = self.pauses > 0
        self.failing = None
        self.tries = self.pauses = 0
        return had_paused

    def trouble(self, seconds: float | None) -> Trouble | None:
        """What is to be written down; the next try is in *seconds*."""
        failing = self.failing
        if failing is None:
            return None
        return Trouble(
            reason=failing.reason,
            failure=failing.json(),
            category=failing.category.value,
            phase=failing.phase.value,
            attempts=self.tries,
            pauses=self.pauses,
            seconds=seconds,
        )

    def _blamed(self, phase: Phase, error: BaseException, rows: Sequence[Row]) -> Exception:
        if phase in (Phase.APPLY, Phase.COMMIT):
            position = rows[0][POSITION] if len(rows) == 1 else 0
            return ApplyFailed(self._label, plain(shown(error)), position=position)
        return RuntimeError(
            f"{phase.value} was ended by {shown(error)}, which nobody had asked for"
        )

    def _note(self, phase: Phase, error: Exception, rows: Sequence[Row]) -> Exception:
        self._noted.append(Failure(phase, category_of(error), error, _row(rows, error)))
        return error


def _row(rows: Sequence[Row], error: Exception) -> Row | None:
    """The event of *rows* that *error* is about."""
    if not isinstance(error, EventFailure):
        return None
    position = getattr(error, "position", 0)
    if not position:
        return rows[0] if len(rows) == 1 else None
    return next((row for row in rows if row[POSITION] == position), None)
