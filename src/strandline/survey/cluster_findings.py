"""Findings about nodes, who leads them, how they stopped, and work that has no node."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from strandline.clock import in_words
from strandline.cluster.work_control import WorkRow
from strandline.survey.case import Case, pattern, projection_of, word
from strandline.survey.facts import NodeFacts
from strandline.survey.finding import FAIL, OK, WARN, Finding, counted, named

SILENT = "no beat for"  # how the reason begins when a leader declares a node dead


def cluster_findings(case: Case) -> Iterator[Finding]:
    """Leader, nodes, stops, work; nothing in mode solo."""
    if not case.is_cluster:
        return
    if not case.survey.nodes_here:
        yield _nobody(case)
    else:
        yield _leader(case)
        yield from _nodes(case)
    yield from _stops(case)
    yield from _unplaced(case)


def _nobody(case: Case) -> Finding:
    is_needed = bool(case.survey.work.rows or case.survey.shards)
    gone = len(case.survey.nodes)
    return Finding(
        "nodes",
        FAIL if is_needed else WARN,
        "no node is here" + (f": the last {counted(gone, 'node')} left or died" if gone else ""),
        "nothing is projected, and no job runs",
        case.node,
        "node-down",
    )


# ---- who leads


def _leader(case: Case) -> Finding:
    leader = case.survey.leader
    if leader is None:
        return _leaderless(case)
    where = leader.name or f"node {leader.id}"
    node = next((one for one in case.survey.nodes if one.id == leader.id), None)
    text = f"{where} leads, epoch {leader.epoch}, for {in_words(leader.since)}"
    if node is not None and node.state == "silent":
        return Finding(
            "leader",
            WARN,
            f"{where} leads and has not beaten for {in_words(node.beat_age)}",
            f"its lease ends in {in_words(leader.expires_in)}; then another node leads",
            f"strandline nodes evict {node.number}",
            "node-silent",
        )
    if node is not None and node.state == "stalled":
        return Finding(
            "leader",
            WARN,
            f"{where} leads, and its event loop is blocked",
            "no work is given out until it resigns",
            "strandline nodes resign",
            "event-loop-blocked",
        )
    changes = case.survey.leader_changes
    if changes > case.limits.terms:
        return Finding(
            "leader",
            WARN,
            f"{text}; the leader has changed {changes} times within the last hour",
            "beats fail now and then: the network, the database or the nodes' processes are too slow",
            "strandline nodes log",
            "leadership-churn",
        )
    return Finding("leader", OK, text)


def _leaderless(case: Case) -> Finding:
    able = case.survey.candidates
    since = case.survey.leaderless
    text = "nobody leads" if since is None else f"nobody leads, for {in_words(since)}"
    if able:
        return Finding(
            "leader",
            WARN if since is not None and since <= case.limits.starting else FAIL,
            f"{text}, though {counted(len(able), 'node')} may ({named(one.name for one in able)})",
            "elections fail or time out, or one is just under way; work stays where it is meanwhile",
            "strandline nodes log",
            "no-leader",
        )
    active = [one for one in case.survey.nodes_here if one.state == "active"]
    if active:
        why = "the active nodes are followers or never lead"
    else:
        states = sorted({one.state for one in case.survey.nodes_here})
        why = f"no node is active: those that are here are {' or '.join(states)}"
    return Finding(
        "leader",
        FAIL,
        f"{text}, and none of {counted(len(case.survey.nodes_here), 'node')} may",
        f"{why}; work stays where it is",
        f"{case.node} --mode cluster",
        "no-leader",
    )


# ---- nodes that are there


def _nodes(case: Case) -> Iterator[Finding]:
    here = case.survey.nodes_here
    bad = [found for one in here if (found := _node(one, case)) is not None]
    yield from bad
    yield from _namesakes(here)
    if here and all(one.state == "draining" for one in here):
        yield Finding(
            "nodes",
            FAIL,
            f"{counted(len(here), 'node')} here, and all of them drain",
            "a node that drains takes no work again, until its process is started anew",
            case.node,
            "unplaced-work",
        )
    elif not bad:
        yield Finding("nodes", OK, f"{counted(len(here), 'node')} here, all of them beat")


def _node(node: NodeFacts, case: Case) -> Finding | None:
    owns = f", and owns {node.work} of the work" if node.work else ""
    if node.state == "silent":
        return Finding(
            "nodes",
            WARN,
            f"node {node.name} has not beaten for {in_words(node.beat_age)}{owns}",
            f"process {node.pid} on {node.host} was killed, is frozen, or cannot reach the database",
            f"strandline nodes evict {node.number}",
            "node-silent",
        )
    if node.state == "stalled" or node.loop_lag >= case.limits.loop:
        is_stalled = node.state == "stalled"
        plain = "make what computes, sleeps or blocks a plain function: these run in threads"
        return Finding(
            "nodes",
            FAIL if is_stalled else WARN,
            f"the event loop of node {node.name} is {in_words(node.loop_lag)} late{owns}",
            "an async handler blocks it" + (f"; {plain}" if is_stalled else ""),
            f"strandline nodes evict {node.number}" if is_stalled else plain,
            "event-loop-blocked",
        )
    return None


def _namesakes(here: tuple[NodeFacts, ...]) -> Iterator[Finding]:
    awake = [one for one in here if one.state != "silent" and one.drain_reason is None]
    awake.sort(key=lambda one: one.name)
    for name, some in groupby(awake, key=lambda one: one.name):
        alike = list(some)
        if len(alike) > 1:
            yield Finding(
                "nodes",
                WARN,
                f"{len(alike)} nodes are named {name!r}",
                "work returns to a node by its name, and pins and logs name it: each node needs its own",
                f"strandline nodes drain {alike[-1].number}",
            )


# ---- nodes that are gone


def _stops(case: Case) -> Iterator[Finding]:
    """How the last node of each name has stopped, if that is not long ago."""
    here = {one.name for one in case.survey.nodes_here}
    seen: set[str] = set()
    for node in case.survey.nodes:
        if node.is_here or node.name in seen:
            continue
        seen.add(node.name)
        if (node.gone_for or 0.0) > case.limits.recent:
            continue
        found = _stop(node, case, is_back=node.name in here)
        if found is not None:
            yield found


def _stop(node: NodeFacts, case: Case, *, is_back: bool) -> Finding | None:
    show = f"strandline nodes show {node.number}"
    ago = "" if node.gone_for is None else f" {in_words(node.gone_for)} ago"
    report = node.report or {}
    seconds = float(report.get("seconds") or 0.0)
    is_fallen = node.left_reason.startswith(SILENT)  # nobody has said so, as by `nodes evict`
    if node.result == "dead" and is_fallen and not is_back:
        text = f"node {node.name} died{ago}: {node.left_reason}"
        return Finding("stops", WARN, text, "it did not stop by itself", show, "node-died")
    if node.result == "forced":
        text = f"node {node.name} was stopped by force{ago}, after {in_words(seconds)}"
        return Finding("stops", WARN, text, _steps(node), show, "shutdown-forced")
    if node.result == "degraded":
        text = f"the stop of node {node.name}{ago} was not clean"
        return Finding("stops", WARN, text, _steps(node), show, "shutdown-forced")
    if seconds > case.limits.stop:
        text = f"node {node.name} took {in_words(seconds)} to stop{ago}"
        return Finding("stops", WARN, text, _slowest(node), show, "shutdown-slow")
    return None


def _steps(node: NodeFacts) -> str:
    """What went wrong in its stop."""
    steps = (node.report or {}).get("steps") or []
    bad = [one for one in steps if one.get("status") not in ("ok", "running")]
    told = [f"{one.get('name')}: {one.get('error') or one.get('status')}" for one in bad]
    left = int((node.report or {}).get("abandoned_count") or 0)
    return "; ".join(told + ([f"{left} of its work was abandoned"] if left else []))


def _slowest(node: NodeFacts) -> str:
    steps = (node.report or {}).get("steps") or []
    slowest = max(steps, key=lambda one: float(one.get("seconds") or 0.0), default=None)
    if slowest is None:
        return ""
    return f"the step {slowest.get('name')!r} took {in_words(float(slowest.get('seconds') or 0.0))}"


# ---- work without a node


def _unplaced(case: Case) -> Iterator[Finding]:
    orphans = {one.name for one in case.survey.shards if one.state == "orphaned"}  # told as such
    rows = sorted((one for one in case.survey.work.unplaced if one.name not in orphans), key=_why)
    for (reason, pin, _), some in groupby(rows, key=_why):
        alike = list(some)
        names = [one.name for one in alike]
        if pin:
            cure = f"strandline work unpin {word(pattern(names))}"
        else:
            cure = " ".join([case.node, *_labels(alike[0], case)])
        yield Finding(
            "work",
            FAIL,
            f"{counted(len(names), 'piece')} of work without a node: {named(names)}",
            reason,
            cure,
            "unplaced-work",
        )


def _why(row: WorkRow) -> tuple[str, str, str]:
    """What work without a node is told together by: the reason; of pinned work also the projection."""
    pin = row.pinned_to or ""
    return row.unplaced or "", pin, projection_of(row.name) if pin else ""


def _labels(row: WorkRow, case: Case) -> list[str]:
    """Options of `strandline node` with which it could run this: what its code does not bring itself."""
    here = {label for one in case.survey.nodes_here for label in one.labels}
    own = projection_of(row.name)
    return [f"--label {word(one)}" for one in row.needs if one not in here and one != own]
