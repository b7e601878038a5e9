"""Runs the ledger: import, catch up, show, verify, with live progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

import strandline as sl
from examples.gitledger import history
from examples.gitledger.git import NoHistory
from examples.gitledger.ledger import (
    COMMITS,
    Activity,
    Authors,
    Directories,
    Files,
    app,
    events,
    tenant_of,
)
from examples.gitledger.verify import SHOWN, Verdict
from examples.gitledger.verify import verify as compare

console = Console(highlight=False, soft_wrap=True)


def main(repo: Path, *, verify: bool, database_url: str | None = None, next_steps: str = "") -> int:
    """Do all of it. 0: done and as git says; 1: a read model differs; 2: it could not be done."""
    if database_url:
        app.settings = replace(app.settings, database_url=database_url)
    try:
        return 0 if asyncio.run(run(repo, check=verify, next_steps=next_steps)) else 1
    except (NoHistory, sl.StrandlineError) as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False)
        return 2


async def run(repo: Path, *, check: bool, next_steps: str = "") -> bool:
    """Import, catch up, show, and verify if told so; whether all is as git says."""
    head = await asyncio.to_thread(history.head, repo)
    tenant = tenant_of(repo, head)
    began = time.perf_counter()
    async with app:
        with _progress() as progress:
            await _import(repo, head, tenant, progress)
            await _catch_up(progress)
        await _show(tenant)
        if next_steps:
            console.print(next_steps, markup=False)
        if not check:
            return True
        verdicts = await compare(repo, head)
        return _tell(verdicts, time.perf_counter() - began)


async def _import(repo: Path, head: str, tenant: str, progress: Progress) -> None:
    total = await asyncio.to_thread(history.commit_count, repo, at=head)
    state = await app.stream_state(COMMITS, tenant=tenant)
    if state is not None and state.version == total:
        console.print(f"{total:,} commits of {tenant} are in the ledger already")
        return
    task = progress.add_task("commits into events", total=total)

    def counted() -> Iterator[sl.ImportedEvent]:
        for event in events(repo, head):
            if event.stream == COMMITS:
                progress.advance(task)
            yield event

    done = await app.import_events(counted(), skip_existing=state is not None)
    progress.update(task, completed=total)
    console.print(f"{done.events:,} events from {total:,} commits of {tenant}")


async def _catch_up(progress: Progress) -> None:
    shards = app.registry.shards()
    await app.start()
    target = await app.highest_position()
    tasks = {
        name: progress.add_task(f"projection {name.split(':')[0]}", total=target) for name in shards
    }
    caught_up = asyncio.create_task(app.catch_up(timeout=3600))
    while not caught_up.done():
        await asyncio.wait({caught_up}, timeout=0.1)
        for one in await app.progress():
            progress.update(tasks[one.name], completed=min(target, one.position or 0))
    await caught_up
    await caught_up
    await app.stop()


async def _show(tenant: str) -> None:
    table = Table("read model", "documents", "for example", box=None, pad_edge=False)
    files = await app.query(Files, tenant=tenant, order_by="(data->>'changes')::int DESC", limit=1)
    people = await app.query(
        Authors, tenant=tenant, order_by="(data->>'commits')::int DESC", limit=1
    )
    folders = await app.query(
        Directories, tenant=tenant, order_by="(data->>'changes')::int DESC, id", limit=1
    )
    for model, found, text in (
        (Files, files, "most changed: {0.path} ({0.changes:,} changes)"),
        (Authors, people, "most commits: {0.name} ({0.commits:,})"),
        (Directories, folders, "most changed: {0.path} ({0.files:,} files)"),
    ):
        count = await app.count(model, tenant=tenant)
        example = text.format(found[0][1]) if found else ""
        table.add_row(model.__name__.lower(), f"{count:,}", example)
    weeks = await app.rows(Activity, tenant=tenant)
    busiest = max(weeks, key=lambda row: row.commits)
    example = f"most commits: week {busiest.week} ({busiest.commits:,})"
    table.add_row("activity", f"{len(weeks):,}", example)
    console.print(table)


def _tell(verdicts: list[Verdict], seconds: float) -> bool:
    wrong = [one for one in verdicts if one.differences]
    for one in wrong:
        console.print(f"[bold red]{one.model} differs from {one.command}:[/]")
        for difference in one.differences[:SHOWN]:
            console.print(f"  {difference}", markup=False)
        if len(one.differences) > SHOWN:
            console.print(f"  and {len(one.differences) - SHOWN} more")
    counts = ", ".join(f"{one.compared:,} {one.model}" for one in verdicts)
    if wrong:
        console.print(f"NOT verified: {counts}; {len(wrong)} of {len(verdicts)} read models differ")
        return False
    console.print(f"verified: {counts} agree with git ({seconds:.1f} s)")
    return True


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=not console.is_terminal,
    )
