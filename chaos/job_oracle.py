"""Says what is wrong with what became of the jobs, by SQL and rules of its own.

What was enqueued, and what became of that, stands in the journal of the process that enqueues
(``enqueuer.py``); what ran, and what was recorded, stands in the database.

Invariant I8, as in the design: a job whose transaction rolled back never runs; one that was
committed runs at least once, and is completed once; what it does by ``completing()`` happens once.
Besides: jobs of one key run in the order in which they were enqueued, and jobs that a subscription enqueues
are as many as its events, whatever it was hit by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from chaos.oracle import Violation, Wrong

QUEUE = "chaos"
EVERY = 7  # events of a stream whose number it divides make the subscription enqueue a job

TABLES = """
    CREATE TABLE chaos.runs (token text NOT NULL, job bigint NOT NULL, attempt integer NOT NULL, tag text NOT NULL);
    CREATE TABLE chaos.effects (token text NOT NULL, job bigint NOT NULL);
    CREATE TABLE chaos.steps (seq bigint GENERATED ALWAYS AS IDENTITY, key text NOT NULL, number bigint NOT NULL);
    CREATE TABLE chaos.paid (stream text NOT NULL, number bigint NOT NULL);
"""
ENDED = "SELECT id, args::json->>'token', outcome FROM strandline.job_history WHERE kind IN ('settle', 'book')"
LIVE = "SELECT count(*) FROM strandline.jobs WHERE queue = $1"
DEAD = "SELECT id, kind, errors->-1->>'message' FROM strandline.dead_jobs"
PAYABLE = """
    SELECT stream, (data->>'number')::bigint FROM strandline.events
     WHERE type IN ('deposited', 'withdrawn') AND (data->>'number')::bigint % $1 = 0
"""


class Fate(NamedTuple):
    """What an enqueuer knows of one job: *fate* is committed, unknown or never."""

    kind: str
    token: str
    fate: str


@dataclass
class JobEvidence:
    """What a check has found; jobs and events must have come to an end.

    Attributes:
        fates: By the journals.
        ended: Rows of the history: id, token, outcome.
        runs: How often a token's job ran to its end.
        effects: How often what must happen once has happened.
        steps: Numbers of each key, in the order in which they were done.
        paid: (stream, number).
        wanted: What should be paid.
        live: Jobs that have not ended.
        dead: Dead letters, in words.
    """

    fates: Sequence[Fate] = ()
    ended: Sequence[tuple[int, str, str]] = ()
    runs: Mapping[str, int] = field(default_factory=dict)
    effects: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, Sequence[int]] = field(default_factory=dict)
    paid: Sequence[tuple[str, int]] = ()
    wanted: Sequence[tuple[str, int]] = ()
    live: int = 0
    dead: Sequence[str] = ()


async def collect(connection: Any, journals: Iterable[Path]) -> JobEvidence:
    """What there is now; enqueuers must rest."""
    steps: dict[str, list[int]] = {}
    for key, number in await connection.fetch("SELECT key, number FROM chaos.steps ORDER BY seq"):
        steps.setdefault(key, []).append(number)
    return JobEvidence(
        fates=[
            Fate(*line.split())
            for path in journals
            if path.exists()
            for line in path.read_text().splitlines()
        ],
        ended=[tuple(row) for row in await connection.fetch(ENDED)],
        runs=Counter(row[0] for row in await connection.fetch("SELECT token FROM chaos.runs")),
        effects=Counter(
            row[0] for row in await connection.fetch("SELECT token FROM chaos.effects")
        ),
        steps=steps,
        paid=[
            tuple(row) for row in await connection.fetch("SELECT stream, number FROM chaos.paid")
        ],
        wanted=[tuple(row) for row in await connection.fetch(PAYABLE, EVERY)],
        live=await connection.fetchval(LIVE, QUEUE),
        dead=[f"{row[0]} ({row[1]}): {row[2]}" for row in await connection.fetch(DEAD)],
    )


def judge(found: JobEvidence) -> list[Violation]:
    """What is wrong."""
    wrong = Wrong("I8", "job")
    if found.live:
        wrong.add(f"{found.live} have not ended")
    for words in found.dead:
        wrong.add(f"{words} is a dead letter")
    _once(found, wrong)
    _in_order(found, wrong)
    paid, payable = Counter(found.paid), set(found.wanted)
    for one in sorted(payable | paid.keys()):
        wanted = int(one in payable)
        if paid[one] != wanted:
            wrong.add(f"{one} was paid {paid[one]} times, not {wanted}")
    return wrong.told()


def _once(found: JobEvidence, wrong: Wrong) -> None:
    for job, count in Counter(one[0] for one in found.ended).items():
        if count != 1:
            wrong.add(f"{job} is recorded {count} times")
    completed = Counter(token for _, token, outcome in found.ended if outcome == "completed")
    known = {one.token: one for one in found.fates}
    for one in found.fates:
        if one.kind == "step":
            continue
        done, ran = completed[one.token], found.runs.get(one.token, 0)
        happened = found.effects.get(one.token, 0)
        words = f"{one.token} ({one.kind}, {one.fate}) was completed {done} times"
        if one.fate == "never" and (done or ran or happened):
            wrong.add(f"{words}, and its transaction was rolled back")
        elif one.fate == "committed" and done != 1 or done > 1:
            wrong.add(words)
        elif one.kind == "book" and happened != done:
            wrong.add(f"{words}, and its effect is there {happened} times")
        elif one.kind == "settle" and ran < done:
            wrong.add(f"{words}, and ran {ran} times")
    for token in completed.keys() - known.keys():
        wrong.add(f"{token} was completed, and nobody enqueued it")


def _in_order(found: JobEvidence, wrong: Wrong) -> None:
    wanted: dict[str, list[int]] = {}
    for one in found.fates:
        if one.kind == "step":
            key, _, number = one.token.partition("#")
            wanted.setdefault(key, []).append(int(number))
    for key in sorted(wanted.keys() | found.steps.keys()):
        done = list(found.steps.get(key, ()))
        if done != wanted.get(key, []):
            at = next(
                (
                    i
                    for i, (a, b) in enumerate(zip(done, wanted.get(key, []), strict=False))
                    if a != b
                ),
                min(len(done), len(wanted.get(key, []))),
            )
            wrong.add(
                f"{key} did {done[at : at + 3]} as its {at + 1}th, not {wanted.get(key, [])[at : at + 3]}"
            )
