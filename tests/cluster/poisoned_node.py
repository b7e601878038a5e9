"""The App of a node on what fails at the same events: ``poisoned_node:app``."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from poisoned import poisoned_app

from strandline.daemon.document_batch import DocumentProcessor

app = poisoned_app(None, page_events=5_000)
_commit = DocumentProcessor.commit


async def slowly(self: Any, batch: Any, checkpoint: Any) -> None:
    """So that a kill finds it in the middle, on a machine of any speed."""
    await asyncio.sleep(0.005)
    await _commit(self, batch, checkpoint)


if os.environ.get("POISONED") == "slowly":  # a process of its own: nobody else meets this
    DocumentProcessor.commit = slowly  # type: ignore[method-assign]
