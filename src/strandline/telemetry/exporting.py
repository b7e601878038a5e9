"""What sends telemetry away, with a limit to every wait.

A collector that is away costs memory up to the SDK's limits and nothing else: exporting is done by the
SDK's threads, none of them is waited for without a limit, and if the last export has failed or hangs,
hardly at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from strandline.telemetry.journal import Journal

log = Journal("strandline.telemetry")

T = TypeVar("T")

HANGING = 1.0  # seconds after which an export under way is not waited for any more
BRIEFLY = 0.2  # seconds for a last try where the collector seems to be away


class Watch:
    """Notes how the exports of one exporter go."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._failed = False

    @property
    def seems_away(self) -> bool:
        """Whether nobody answered last time, or an export has been under way for too long."""
        since = self._since
        return self._failed or (since is not None and time.monotonic() - since > HANGING)

    def over(self, export: Callable[[], T]) -> T:
        """What *export* answers; meanwhile it is watched."""
        self._since = time.monotonic()
        failed = True
        try:
            result = export()
            failed = getattr(result, "name", "") != "SUCCESS"
            return result
        finally:
            self._since, self._failed = None, failed


class Exporting:
    """The providers that were set up here."""

    def __init__(
        self, traces: Any | None, metrics: Any | None, watches: Mapping[str, Watch]
    ) -> None:
        self._providers = [one for one in (traces, metrics) if one is not None]
        self._watches = watches
        self.traces = traces
        self.metrics = metrics

    def flush(self, timeout: float) -> bool:
        """Send what there is, for *timeout* seconds at the most; whether all was sent."""
        return self._all("force_flush", timeout)

    def stop(self, timeout: float) -> bool:
        """``flush``, and export nothing more."""
        return self._all("shutdown", timeout)

    @property
    def seems_away(self) -> bool:
        """Whether it seems that nobody takes what is sent."""
        return any(one.seems_away for one in self._watches.values())

    def _all(self, what: str, timeout: float) -> bool:
        """Call *what* of each provider, in threads of their own: none ends by itself for certain."""
        timeout = min(timeout, BRIEFLY) if self.seems_away else timeout
        until = time.monotonic() + timeout
        answers: list[bool] = []

        def call(provider: Any) -> None:
            millis = max(1, int((until - time.monotonic()) * 1000))
            answers.append(_called(getattr(provider, what), millis))

        threads = [
            threading.Thread(target=call, args=(one,), name="strandline telemetry", daemon=True)
            for one in self._providers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and (left := until - time.monotonic()) > 0:
                thread.join(min(left, 0.1))
                if self.seems_away:
                    until = min(until, time.monotonic() + BRIEFLY)
        sent = len(answers) == len(threads) and all(answers) and not self.seems_away
        if not sent:
            log.tell("telemetry_not_sent", seconds=timeout)
        return sent


def _called(function: Callable[..., Any], millis: int) -> bool:
    """Whether *function* says that all went well. Some take a time-out, of some versions, others none."""
    try:
        try:
            return function(timeout_millis=millis) is not False
        except TypeError:
            return function() is not False
    except Exception as error:  # of an exporter: whatever it is, the node's end goes on
        log.tell("telemetry_not_flushed", error=error)
        return False
