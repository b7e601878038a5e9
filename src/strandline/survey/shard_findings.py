"""Findings about shards: which fail, rest, have nobody to run them, or fall behind."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from strandline.clock import in_words
from strandline.survey.case import Case, pattern, versioned, word
from strandline.survey.facts import ShardFacts
from strandline.survey.finding import FAIL, OK, WARN, Finding, counted, named

FINE = "fine"
LATE = ("held up", "stuck", "rising", "behind")
OF_EVENTS = ("apply", "undecodable", "unknown_type")  # failures that are one event's fault
DOWN = {
    "never_started": "never ran",
    "unassigned": "has no node yet",
    "unplaced": "has no node",
    "silent": "belongs to a node that does not beat",
    "stopped": "is stopped, and no node is there",
    "orphaned": "is in no living node's code",
    "old": "is of an old version, in no living node's code",
    "claiming": "was given to a node that has not begun it",
}


def shard_findings(case: Case) -> Iterator[Finding]:
    """What is wrong with shards, alike ones together, and how many are fine."""
    judged = sorted((*_judged(one, case), one.name, one) for one in case.survey.shards)
    fine = 0
    for (trouble, _), some in groupby(judged, key=lambda one: one[:2]):
        shards = [one[-1] for one in some]
        if trouble == FINE:
            fine += len(shards)
        elif trouble == "paused":
            yield _paused(shards, case)
        elif trouble == "held":
            yield _held(shards)
        elif trouble in LATE:
            yield _late(trouble, shards, case)
        else:
            yield _down(trouble, shards, case)
    if fine:
        yield Finding("shards", OK, f"{counted(fine, 'shard')} running and up to date")


def _judged(shard: ShardFacts, case: Case) -> tuple[str, str]:
    """The trouble with a shard, and its projection where each one's is told by itself."""
    if shard.state in ("paused", "held"):
        is_wanted = shard.paused_by == "rest"
        return (FINE, "") if is_wanted else (shard.state, shard.projection)
    if shard.state == "orphaned" and _has_heir(shard, case):
        return "old", shard.projection
    if shard.state in DOWN:
        return (FINE, "") if _is_excused(shard, case) else (shard.state, "")
    if shard.lag_events and shard.lag_seconds > case.limits.behind:
        return _lateness(shard, case), ""
    return FINE, ""


def _is_excused(shard: ShardFacts, case: Case) -> bool:
    """Whether it is just begun, or nothing waits for one that has ended."""
    if shard.state in ("claiming", "unassigned"):
        since = shard.lag_seconds if shard.since is None else shard.since
        return since <= case.limits.starting
    if shard.state == "unplaced":  # told as work
        return shard.name in case.unplaced
    return shard.state in ("stopped", "orphaned") and not shard.lag_events


def _has_heir(shard: ShardFacts, case: Case) -> bool:
    """Whether a later version of its projection is there."""
    name, version = versioned(shard.projection)
    return 0 < version < case.versions[name]


# ---- failing and resting


def _paused(shards: list[ShardFacts], case: Case) -> Finding:
    first = min(shards, key=lambda one: one.position or 0)
    text = f"{_many(shards)} paused: {first.reason}"
    place = _place(first)
    tries = f"{counted(first.attempts, 'try', 'tries')} failed, pause {first.pauses}"
    if first.next_at is not None:
        left = (first.next_at - case.survey.taken_at).total_seconds()
        tries += f", next try in {in_words(left)}" if left > 0 else ", the next try is due"
    why = "; ".join(one for one in (place, tries, _lag(shards)) if one)
    if first.category in OF_EVENTS:
        cure = (
            "correct the handler or the event's upcaster and start the nodes anew, or let such events"
            ' be put aside: on_error=ErrorPolicy(apply="park")'
        )
    elif first.category == "database":
        cure = "correct what the database refuses; the shard goes on by itself"
    else:
        cure = "correct the cause; the shard tries again by itself"
    return Finding("shards", FAIL, text, why, cure, "shard-paused")


def _place(shard: ShardFacts) -> str:
    """At which event it fails."""
    facts = shard.failure or {}
    if not facts.get("position"):
        return f"{shard.category} in {shard.phase}" if shard.category and shard.phase else ""
    found = f"event at position {facts['position']:,}"
    if facts.get("type"):
        found += f", type {facts['type']}"
    if facts.get("stream"):
        found += f", stream {facts['stream']} version {facts.get('version')}"
    return found + (f", handler {facts['handler']}" if facts.get("handler") else "")


def _held(shards: list[ShardFacts]) -> Finding:
    first = shards[0]
    reason = f": {first.reason}" if first.reason else ""
    names = word(pattern([one.name for one in shards]))
    return Finding(
        "shards",
        WARN if any(one.lag_events for one in shards) else OK,
        f"{_many(shards)} paused by an operator{reason}",
        _lag(shards),
        f"strandline work resume {names}",
        "shard-held",
    )


# ---- nobody runs them


def _down(trouble: str, shards: list[ShardFacts], case: Case) -> Finding:
    reason = next((one.reason for one in shards if one.reason), "")
    first = shards[0]
    outcome, why, cure = FAIL, "", case.node
    if trouble == "never_started":
        outcome = WARN
    elif trouble == "old":
        outcome, why = WARN, "a later version is there, and this one lags since nobody runs it"
        cure = f"strandline projections retire {word(first.projection)} --app {word(case.app)}"
    elif trouble == "orphaned":
        why = "start a node with that code; `strandline work forget` if it is gone for good"
    elif trouble == "silent":
        outcome, why = WARN, "another node takes it once that one counts as dead"
        cure = _evict(first, case)
    elif trouble == "unplaced":
        why, cure = reason, "strandline work list --unplaced"
    elif trouble == "unassigned":
        leads = case.survey.leader is not None
        outcome = WARN if leads else FAIL
        why = "the leader has not given it out" if leads else "nobody leads, so nobody gives it out"
        cure = "strandline nodes resign" if leads and case.is_worked else case.node
    elif trouble == "claiming":
        outcome, why = WARN, f"since {in_words(first.since or 0.0)}; is that node's loop blocked?"
        cure = _evict(first, case)
    words = f"{_subject(shards)} {DOWN[trouble]}"
    page = "shard-orphaned" if trouble in ("orphaned", "old") else "shard-down"
    return Finding("shards", outcome, words, _joined(why, _lag(shards)), cure, page)


def _evict(shard: ShardFacts, case: Case) -> str:
    """The command that takes a shard from its node."""
    nodes = case.survey.nodes_here
    node = next((one for one in nodes if one.id == shard.owner or one.name == shard.node), None)
    return "strandline nodes list" if node is None else f"strandline nodes evict {node.number}"


# ---- too slow


def _lateness(shard: ShardFacts, case: Case) -> str:
    """What a shard that runs is behind for."""
    mark, before = case.survey.mark, case.shard_before(shard)
    if shard.position is not None and shard.position >= mark.position < mark.highest:
        return "held up"
    if before is not None and before.position == shard.position:
        return "stuck"
    if before is not None and before.lag_events < shard.lag_events:
        return "rising"
    return "behind"


def _late(trouble: str, shards: list[ShardFacts], case: Case) -> Finding:
    worst = max(shards, key=lambda one: one.lag_seconds)
    text = f"{_subject(shards)} {_lag(shards)}"
    look = f"strandline projections list {case.app}"
    if trouble == "held up":
        why = f"everything up to the high-water mark ({case.survey.mark.position:,}) is applied"
        return Finding("lag", WARN, text, why, "strandline gaps live", "high-water-stale")
    if trouble == "stuck":
        why = f"no batch was committed lately; node {worst.node or 'unknown'} runs it"
        return Finding("lag", FAIL, text, why, _evict(worst, case), "lag-rising")
    rate = f"at {worst.rate:,.0f} events a second" if worst.rate >= 1 else "slowly"
    if trouble == "rising":
        why = f"it goes on {rate}, and more are appended: cut it into more shards, or add nodes"
        return Finding("lag", WARN, text, why, look, "lag-rising")
    left = f", and needs {in_words(worst.lag_events / worst.rate)} more" if worst.rate >= 1 else ""
    return Finding("lag", WARN, text, f"it goes on {rate}{left}", look, "lag-high")


# ---- words


def _subject(shards: list[ShardFacts]) -> str:
    names = named(one.name for one in shards)
    return names if len(shards) == 1 else f"{counted(len(shards), 'shard')} ({names})"


def _many(shards: list[ShardFacts]) -> str:
    return f"{_subject(shards)} {'is' if len(shards) == 1 else 'are'}"


def _lag(shards: list[ShardFacts]) -> str:
    events = max(one.lag_events for one in shards)
    if not events:
        return "nothing waits for it"
    seconds = max(one.lag_seconds for one in shards)
    most = "" if len(shards) == 1 else "up to "
    return f"{most}{counted(events, 'event')}, {in_words(seconds)} behind"


def _joined(*parts: str) -> str:
    return "; ".join(one for one in parts if one)
