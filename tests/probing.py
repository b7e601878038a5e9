"""Asks the ops port of a node, as a probe does."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answered:
    """What a probe got; status 0 if nobody answered."""

    status: int
    text: str

    @property
    def checks(self) -> dict[str, dict[str, Any]]:
        """By name, of an answer in JSON."""
        return {one["name"]: one for one in json.loads(self.text)["checks"]}


def probed(url: str, path: str, *, timeout: float = 10.0) -> Answered:
    """Ask *path* of the ops port at *url*; blocks."""
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.hostname or "", split.port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return Answered(response.status, response.read().decode())
    except (OSError, http.client.HTTPException) as error:
        return Answered(0, repr(error))
    finally:
        connection.close()


def probed_until(
    url: str, path: str, holds: Callable[[Answered], bool], into: list[Answered]
) -> None:
    """Ask again and again, until *holds* of an answer; for a thread beside a blocked loop."""
    end = time.monotonic() + 30.0
    while time.monotonic() < end:
        into.append(probed(url, path))
        if holds(into[-1]):
            return
        time.sleep(0.02)
