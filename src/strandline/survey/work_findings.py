"""Findings about what waits or has failed: dead letters, queues of jobs, builds."""

from __future__ import annotations

from collections.abc import Iterator

from strandline.clock import in_words
from strandline.jobs.queues import COUNTED
from strandline.survey.case import APP, Case, last_word, versioned, word
from strandline.survey.facts import BuildFacts, LetterFacts, QueueFacts
from strandline.survey.finding import FAIL, OK, WARN, Finding, counted, named


def work_findings(case: Case) -> Iterator[Finding]:
    """Letters, jobs, builds."""
    survey = case.survey
    if "letters" not in survey.missing:
        yield from (_letters(one, case) for one in survey.letters if one.count)
    if "queues" not in survey.missing:
        yield from _jobs(case)
    if "builds" not in survey.missing:
        yield from (found for one in survey.builds if (found := _build(one, case)) is not None)


# ---- events that could not be processed


def _letters(letters: LetterFacts, case: Case) -> Finding:
    behind = letters.count - letters.failed
    failed = counted(letters.failed, "event")
    waiting = f", and {counted(behind, 'event')} waiting behind them" if behind > 0 else ""
    app = "" if case.app == APP else f" --app {word(case.app)}"
    return Finding(
        "dead letters",
        WARN,
        f"{letters.projection} lacks {failed} that failed ({letters.status}){waiting}",
        f"the oldest for {in_words(letters.oldest)}; the last one: {letters.error}. Correct that first",
        f"strandline letters retry --projection {word(letters.projection)}{app}",
        "dead-letters",
    )


# ---- jobs


def _jobs(case: Case) -> Iterator[Finding]:
    known = case.survey.queues
    bad = [found for one in known for found in _queue(one, case)]
    yield from bad
    if not bad:
        counts = (
            sum(one.state.available for one in known),
            sum(one.state.running for one in known),
        )
        yield Finding("jobs", OK, "{:,} may run, {:,} run, none is dead".format(*counts))


def _queue(queue: QueueFacts, case: Case) -> Iterator[Finding]:
    state, name = queue.state, word(queue.name)
    many = f"{counted(state.available, 'job')} {'waits' if state.available == 1 else 'wait'}"
    if state.available >= COUNTED:  # it is counted no further
        many = f"{COUNTED:,} jobs or more wait"
    if queue.dead:
        since = (
            "" if queue.oldest_dead is None else f", the oldest for {in_words(queue.oldest_dead)}"
        )
        yield Finding(
            "jobs",
            WARN,
            f"{queue.dead:,} dead in queue {queue.name!r}{since}",
            f"`strandline jobs list --state dead --queue {name}` shows of what; correct that first",
            f"strandline jobs retry --state dead --queue {name}",
            "jobs-dead",
        )
    if state.is_paused:
        if state.available:
            reason = f" ({state.paused_reason})" if state.paused_reason else ""
            yield Finding(
                "jobs",
                WARN,
                f"queue {queue.name!r} is paused{reason}, and {many} in it",
                "",
                f"strandline queues resume {last_word(queue.name)}",
                "jobs-waiting",
            )
    elif (state.oldest or 0.0) > case.limits.waiting:
        text = f"{many} in queue {queue.name!r}, the next for {in_words(state.oldest or 0.0)}"
        yield _waiting(queue, text, case)


def _waiting(queue: QueueFacts, text: str, case: Case) -> Finding:
    state = queue.state
    if not case.is_worked:
        why, cure = "no node is here", case.node
    elif state.running and state.at_most is not None and state.running >= state.at_most:
        why = f"{state.running:,} run, as many as the queue lets at once"
        cure = f"strandline queues set --at-most {2 * state.at_most} {last_word(queue.name)}"
    elif state.running:
        why, cure = f"{state.running:,} run: more come than the nodes can do", case.node
    else:
        why = "none of it runs: no node works that queue or has the code of these jobs"
        cure = f"{case.node} --queues {word(queue.name)}"
    page = "jobs-waiting" if state.running else "queue-unworked"
    return Finding("jobs", WARN, text, why, cure, page)


# ---- builds


def _build(build: BuildFacts, case: Case) -> Finding | None:
    what = f"{build.purpose} {build.number} of {build.projection}"
    name, _ = versioned(build.projection)
    app = f" --app {word(case.app)}"
    cancel = f"strandline projections cancel {word(name)}{app}"
    if build.paused:
        return Finding(
            "rebuilds",
            FAIL,
            f"{what} rests at {build.done:.0%}: {counted(build.paused, 'shard')} of it failed",
            build.reason or "it tries again by itself; what serves goes on meanwhile",
            cancel,
            "rebuild-stuck",
        )
    if not build.known_by and case.is_cluster:
        return Finding(
            "rebuilds",
            WARN,
            f"{what} waits: no node has its code",
            build.reason or "what serves goes on meanwhile",
            case.node,
            "rebuild-stuck",
        )
    is_idle = build.idle is not None and build.idle > case.limits.long
    if is_idle or (build.state == "queued" and build.age > case.limits.long):
        since = build.age if build.idle is None else build.idle
        return Finding(
            "rebuilds",
            WARN,
            f"{what} is {build.state} at {build.done:.0%}, and nothing was told of it for"
            f" {in_words(since)}",
            build.reason or _turn(build, case),
            case.node if not case.is_worked else cancel,
            "rebuild-stuck",
        )
    return None


def _turn(build: BuildFacts, case: Case) -> str:
    """Whom a build that is queued waits for."""
    others = [one for one in case.survey.builds if one.state != "queued" and one is not build]
    if build.state != "queued" or not others:
        return "what serves goes on meanwhile"
    names = named(f"{one.purpose} {one.number} of {one.projection}" for one in others)
    return f"it waits for {names}: rebuilds_at_once"
