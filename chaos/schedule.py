"""What happens when: made from a seed alone, before anything runs.

A run is a row of *cycles*, a cycle a row of *rounds*. A round is one fault, mostly with one or two
quick ones shortly after it at other nodes; the next begins when everything has recovered. Whom a fault
hits is said by part (the leader, an owner); which of several is a number of the schedule too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos.faults import FAULTS

QUICK = (
    "kill_leader",
    "kill_follower",
    "kill_side_process",
    "terminate_pulse",
    "terminate_listen",
    "terminate_work",
    "cut",
    "lost_answer",
    "clock_jump",
    "evict_owner",
    "ask_to_resign",
)
SLOW = (
    "freeze_owner",
    "freeze_host",
    "freeze_in_transaction",
    "freeze_in_batch",
    "graceful_leave",
    "delay",
    "black_hole",
    "one_way",
    "pool_exhausted",
    "blocked_loop",
    "poison_event",
    "poison_parked",
    "rebuild",
    "rebuild_killed",
    "rebuild_cancelled",
    "verify",
)
WIDE = (
    "join_many",
    "leaving_storm",
    "outage",
    "server_restart",
    "server_crash",
    "backend_crash",
    "fail_over",
    "disk_full",
    "other_slices",
    "read_only",
)
EXTRA = ("fail_over_losing",)  # only when asked for: it loses what was acknowledged
FIRST, LAST = 0.1, 1.0  # seconds between the first fault of a round and those that follow


@dataclass(frozen=True)
class Planned:
    """A fault of a round: which, how long after the round's begin, and the seed of its choices."""

    fault: str
    after: float
    seed: int


Round = tuple[Planned, ...]


def cycle(seed: int, number: int, *, only: Sequence[str] = (), solo: bool = False) -> list[Round]:
    """The rounds of cycle *number* (from 0) of the run with *seed*."""
    chance = random.Random(f"{seed}/{number}")
    known = {name for name, fault in FAULTS.items() if fault.in_solo or not solo}
    wanted = known & set(only) if only else known
    wide = [name for name in (*WIDE, *(one for one in EXTRA if one in only)) if name in wanted]
    slow = [name for name in SLOW if name in wanted]
    quick = _endless([name for name in QUICK if name in wanted], chance)
    chance.shuffle(slow)
    chance.shuffle(wide)
    _come_before_going(wide)
    heads = _mixed(slow, wide)
    rounds = [_round(name, quick, chance) for name in heads]
    if not heads:  # only quick ones are wanted: one a round
        rounds = [(Planned(next(quick), 0.0, chance.getrandbits(32)),) for _ in QUICK]
    return rounds


def _come_before_going(wide: list[str]) -> None:
    """Many join right before the storm in which most leave, or there would be too few to leave."""
    if {"join_many", "leaving_storm"} <= set(wide):
        wide.remove("leaving_storm")
        wide.insert(wide.index("join_many") + 1, "leaving_storm")


def _mixed(slow: list[str], wide: list[str]) -> list[str]:
    """One list of both, spread evenly."""
    placed = [
        ((at + 0.5) / len(part), name) for part in (slow, wide) for at, name in enumerate(part)
    ]
    return [name for _, name in sorted(placed)]


def _round(name: str, quick: Iterator[str], chance: random.Random) -> Round:
    planned = [Planned(name, 0.0, chance.getrandbits(32))]
    if not FAULTS[name].alone:
        companions = 2 if name in SLOW else 1
        after = FIRST
        for _ in range(companions):
            found = next(quick, None)
            if found is None:
                break
            after += chance.uniform(0.0, LAST)
            planned.append(Planned(found, round(after, 2), chance.getrandbits(32)))
    return tuple(planned)


def _endless(names: list[str], chance: random.Random) -> Iterator[str]:
    """*names* in a new order again and again; nothing if there are none."""
    while names:
        chance.shuffle(names)
        yield from list(names)
