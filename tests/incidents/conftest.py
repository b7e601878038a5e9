"""Fixtures of the incidents."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from incidents.promtool import program
from incidents.stage import Stage, staged


@pytest.fixture
def play(database_url: str, tmp_path: Path) -> Callable[[str], AbstractAsyncContextManager[Stage]]:
    """``async with play("a held mark") as stage``."""
    program("promtool")
    return partial(staged, url=database_url, folder=tmp_path)
