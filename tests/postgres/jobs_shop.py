"""An app with a job, for commands in processes of their own."""

from __future__ import annotations

import strandline as sl

app = sl.App("jobs-shop")


@app.job(queue="mail")
async def send(to: str) -> str:
    """Pretend."""
    return f"sent to {to}"
