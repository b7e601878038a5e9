"""Findings about the high-water mark: what holds it, who moves it, what was skipped."""

from __future__ import annotations

from collections.abc import Iterator

from strandline.clock import in_words
from strandline.daemon.daemon import HIGH_WATER
from strandline.events.gaps import Holder
from strandline.survey.case import Case
from strandline.survey.facts import MarkFacts
from strandline.survey.finding import FAIL, OK, WARN, Finding, counted

SHOWN = 3  # holders that are told one by one


def mark_findings(case: Case) -> Iterator[Finding]:
    """The mark, and what it has skipped."""
    yield from _mark(case)
    yield from _skipped(case.survey.mark, case)


def _mark(case: Case) -> Iterator[Finding]:
    mark = case.survey.mark
    where = (
        f"at {mark.position:,}, {counted(mark.difference, 'position')} behind the end of the log"
    )
    if not mark.difference:
        text = f"at the end of the log, position {mark.position:,}"
        yield Finding("high-water mark", OK, text)
    elif mark.holders:
        outcome = WARN if mark.is_stale else OK
        yield Finding(
            "high-water mark",
            outcome,
            f"{where}, for {in_words(mark.age)}",
            f"{counted(len(mark.holders), 'open transaction')} may still fill a gap: nothing beyond it"
            " is projected",
            cure_of(mark.holders[0]) if outcome == WARN else "",
            "high-water-stale",
        )
        if mark.is_stale:
            for holder in mark.holders[:SHOWN]:
                yield _holder(holder)
        return
    elif not case.is_worked:
        why = "no process with this database open moves it"
        yield Finding("high-water mark", WARN, where, why, case.node, "detector-missing")
        return
    elif not mark.is_stale and mark.detector_state != "missing":
        yield Finding("high-water mark", OK, where)
    if mark.detector_state != "alive":
        yield from _detector(mark, where, case)


def _detector(mark: MarkFacts, where: str, case: Case) -> Iterator[Finding]:
    """Nobody moves the mark, though somebody could."""
    needed = bool(mark.difference)
    if mark.detector_state == "missing":
        if not case.is_cluster or not case.is_worked:
            return
        why, cure = _no_detector(case)
        text = "nobody has the duty to move it"
        yield Finding(
            "high-water mark",
            FAIL if needed else WARN,
            f"{where}: {text}" if needed else text,
            f"{why}; nothing beyond the mark is projected meanwhile",
            cure,
            "detector-missing",
        )
        return
    if not needed:
        return
    owner = next((one for one in case.survey.nodes_here if one.name == mark.detector), None)
    who = f"node {mark.detector}" if mark.detector else "who moves it"
    yield Finding(
        "high-water mark",
        FAIL,
        f"{where} for {in_words(mark.age)}, and no transaction holds it",
        f"{who} is silent, though the mark could move",
        f"strandline nodes evict {owner.number}" if owner else case.node,
        "high-water-stalled",
    )


def _no_detector(case: Case) -> tuple[str, str]:
    """Why nobody has the duty, and what gives it to somebody."""
    duty = next((one for one in case.survey.work.rows if one.name == HIGH_WATER), None)
    if duty is not None and duty.paused_at is not None:
        return "an operator has paused it", f"strandline work resume {HIGH_WATER}"
    given = duty.target if duty is not None else None
    node = next((one for one in case.survey.nodes_here if one.name == given), None)
    if node is not None:
        why = f"node {node.name} is to do it, and has not begun"
        return why, f"strandline nodes evict {node.number}"
    return "the leader gives it to one node", case.node


def _holder(holder: Holder) -> Finding:
    return Finding(
        "open transaction",
        WARN,
        f"{holder.who} holds the mark",
        "it has drawn positions, or may, and has not ended",
        cure_of(holder),
        "high-water-stale",
    )


def cure_of(holder: Holder) -> str:
    """What ends the transaction of *holder*."""
    if holder.pid is None:
        return f"ROLLBACK PREPARED {_quoted(holder.prepared or '')}"
    return f"strandline gaps cancel {holder.pid}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _skipped(mark: MarkFacts, case: Case) -> Iterator[Finding]:
    late = mark.late_events if case.unhealed is None else case.unhealed
    if late:
        yield Finding(
            "skipped positions",
            WARN if case.unhealed is None else FAIL,
            f"{counted(late, 'event')} turned up in gaps that had been skipped by force",
            "what had passed them lacks those, unless it was healed"
            if case.unhealed is None
            else "what had passed them lacks those",
            f"strandline projections heal {case.app}",
            "late-events",
        )
    elif mark.forced_gaps:
        gaps = counted(mark.forced_gaps, "gap")
        yield Finding(
            "skipped positions",
            WARN,
            f"{gaps} with {counted(mark.forced_numbers, 'number')} skipped without proof",
            "force_after was set: if one of these transactions commits after all, its events come late",
            "strandline gaps list --forced",
            "events-skipped",
        )
