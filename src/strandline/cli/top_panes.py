"""How `strandline top` draws a picture: header, what needs attention, shards, nodes, queues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from strandline.cli import output
from strandline.cli.top_view import PANES, View, ordered, shares

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group
    from rich.segment import Segment
    from rich.text import Text

    from strandline.survey.facts import NodeFacts, QueueFacts, ShardFacts, Survey
    from strandline.survey.finding import Finding

STYLES = {
    **dict.fromkeys(("running", "active"), "green"),
    **dict.fromkeys(("rebuilding", "claiming", "held", "joining", "draining"), "yellow"),
    **dict.fromkeys(("paused", "unplaced", "silent", "orphaned", "stalled", "fail"), "red"),
    **dict.fromkeys(("unassigned", "never_started", "stopped", "warn"), "yellow"),
    **dict.fromkeys(("left", "dead"), "dim"),
}
HELP = "q quit   p pause   s sort: {sort}   1 shards   2 nodes   3 queues   4 attention   up/down scroll"
ALL = 1_000_000  # lines, where nobody counts them
FRAME = 2  # lines of a pane besides its rows: title and names of columns
NOTE = 12  # columns that notes have at least
LEAST = 2  # rows of a pane, else the last of them gives way
SOME = 5  # findings among the other panes


@dataclass(frozen=True, slots=True)
class Scene:
    """What is to be drawn.

    Attributes:
        place: Which database, for people.
        survey: The last picture; None before the first.
        troubles: What somebody should look at.
        events: Appended a second; None while that is not known.
        jobs: Ended a second; likewise.
        outage: Why there is no newer picture; empty if there is.
        interval: Seconds between pictures.
    """

    place: str
    survey: Survey | None
    troubles: Sequence[Finding] = ()
    events: float | None = None
    jobs: float | None = None
    outage: str = ""
    interval: float = 1.0


@dataclass(frozen=True, slots=True)
class _Pane:
    name: str
    title: str
    headers: tuple[str, ...]
    spare: tuple[str, ...]  # columns that are left out where there is no room, in this order
    rows: Sequence[Callable[[], Sequence[object]]]  # made only if they are shown


def drawn(scene: Scene, view: View, *, lines: int = ALL) -> Group:
    """The whole picture, in at most so many *lines* where the panes have to share them."""
    from rich.console import Group

    found: list[Any] = [*_header(scene, view)]
    if lines == ALL:
        found += _body(scene, scene.survey, view, ALL) if scene.survey is not None else []
        return Group(*found)
    room = lines - len(found) - 1
    if scene.survey is not None:
        found += _body(scene, scene.survey, view, room)
    foot = _text(HELP.format(sort=view.sort), "dim")
    return Group(_Cropped(Group(*found), lines - 1), foot)


@dataclass(frozen=True, slots=True)
class _Cropped:
    """Something of which only the first lines are drawn."""

    whole: Group
    lines: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """What Rich asks for."""
        from rich.segment import Segment

        for line in console.render_lines(self.whole, options, pad=False)[: self.lines]:
            yield from line
            yield Segment.line()


def _body(scene: Scene, survey: Survey, view: View, room: int) -> list[Any]:
    if view.pane == "attention":
        return _attention(scene.troubles, view.first)
    panes = _panes(survey, view)
    if view.pane:
        (pane,) = (one for one in panes if one.name == view.pane)
        return _drawn(pane, room - FRAME, view.first)
    is_live = room < ALL // 2
    most = min(SOME, max(1, room // 5)) if is_live else len(scene.troubles)
    found = _needs(scene.troubles, most)
    room -= len(found)
    panes = [one for one in panes if one.rows]
    while len(panes) > 1 and room < (FRAME + 1 + LEAST) * len(panes):
        panes.pop()
    gaps = (FRAME + 1) * len(panes)  # a blank line before each
    given = shares(room - gaps, [len(one.rows) for one in panes])
    for pane, rows in zip(panes, given, strict=True):
        if rows:
            found += [_text(""), *_drawn(pane, rows, 0)]
    if not panes:
        found += [_text(""), _text("no projection, no node and no queue is known here", "dim")]
    return found


# ---- header


def _header(scene: Scene, view: View) -> list[Text]:
    from rich.text import Text

    head = Text.assemble(("strandline top", "bold"), "  ")
    if view.is_paused:
        head.append("paused (p goes on)", "black on yellow")
        head.append("  ")
    if scene.survey is not None:
        head.append(f"{output.moment(scene.survey.taken_at)} UTC  ")
    head.append(output.plain(scene.place), "dim")
    head.no_wrap, head.overflow = True, "ellipsis"
    found = [head]
    if scene.outage:
        found.append(_text(f"no answer: {scene.outage}", "bold red"))
    if scene.survey is not None:
        found += [_cluster(scene.survey), _flow(scene, scene.survey)]
    return found


def _cluster(survey: Survey) -> Text:
    leader = survey.leader
    if survey.mode == "solo":
        said = "mode solo"
    elif leader is None:
        since = "" if survey.leaderless is None else f" for {output.duration(survey.leaderless)}"
        said = f"nobody leads{since}"
    else:
        said = f"{leader.name} leads, epoch {leader.epoch}, for {output.duration(leader.since)}"
    here = survey.nodes_here
    nodes = f"   {len(here)} node{'' if len(here) == 1 else 's'}" if survey.mode != "solo" else ""
    room = survey.server.room if survey.server is not None else None
    connections = f"   {room.connections}/{room.most} connections" if room is not None else ""
    style = "red" if survey.mode != "solo" and leader is None else ""
    return _text(f"{said}{nodes}{connections}", style)


def _flow(scene: Scene, survey: Survey) -> Text:
    mark = survey.mark
    behind = (
        f" ({mark.difference:,} behind, {output.duration(mark.age)})" if mark.difference else ""
    )
    words = [f"mark {mark.position:,}{behind}"]
    words += [f"{scene.events:,.0f} events/s"] if scene.events is not None else []
    words += [f"{scene.jobs:,.0f} jobs/s"] if scene.jobs is not None and survey.queues else []
    return _text("   ".join(words), "red" if mark.is_stale else "")


# ---- what needs attention


def _needs(troubles: Sequence[Finding], most: int) -> list[Any]:
    if not troubles:
        return [_text("nothing needs attention", "green")]
    shown = troubles if len(troubles) <= most else troubles[: max(1, most - 1)]
    found: list[Any] = [_line(one) for one in shown]
    if len(shown) < len(troubles):
        found.append(_text(f"{len(troubles) - len(shown)} more need attention: key 4", "yellow"))
    return found


def _line(one: Finding) -> Text:
    from rich.text import Text

    cure = f"  -> {output.plain(one.cure)}" if one.cure else ""
    found = Text.assemble(
        (f"{one.outcome:<5}", STYLES[one.outcome]),
        f"{one.name}: {output.plain(one.what)}",
        (cure, "bold"),
    )
    found.no_wrap, found.overflow = True, "ellipsis"
    return found


def _attention(troubles: Sequence[Finding], first: int) -> list[Any]:
    """Each with its reason and cure."""
    from rich.text import Text

    found: list[Any] = [_text(f"{len(troubles)} to look at", "bold")]
    for one in troubles[min(first, max(0, len(troubles) - 1)) :]:
        found.append(
            Text.assemble(
                (f"{one.outcome:<5}", STYLES[one.outcome]),
                f"{one.name}: {output.plain(one.what)}",
                overflow="fold",
            )
        )
        more = [(one.why, ""), (f"cure: {one.cure}" if one.cure else "", "bold")]
        found += [_text(f"     {line}", style, cut=False) for line, style in more if line]
    return found


# ---- tables


def _panes(survey: Survey, view: View) -> list[_Pane]:
    shards = ordered(survey.shards, view.sort)
    nodes = survey.nodes_here
    queues = sorted(survey.queues, key=lambda one: -(one.state.oldest or 0.0))
    return [
        _Pane(
            "shards",
            f"{len(shards):,} shards by {view.sort}",
            ("shard", "state", ">position", ">lag", ">behind", ">ev/s", "node", "notes"),
            ("notes", "ev/s", "node", "position", "behind"),
            [lambda one=one: _shard(one) for one in shards],  # type: ignore[misc]
        ),
        _Pane(
            "nodes",
            f"{len(nodes):,} nodes",
            ("node", "state", ">shards", ">beat", ">loop late", ">age", "host", "notes"),
            ("host", "notes", "age", "loop late", "shards"),
            [lambda one=one: _node(one) for one in nodes],  # type: ignore[misc]
        ),
        _Pane(
            "queues",
            f"{len(queues):,} queues of jobs",
            ("queue", "state", ">available", ">oldest", ">running", ">scheduled", ">dead", "notes"),
            ("notes", "scheduled", "running", "oldest"),
            [lambda one=one: _queue(one) for one in queues],  # type: ignore[misc]
        ),
    ]


def _shard(one: ShardFacts) -> tuple[object, ...]:
    return (
        one.name,
        output.styled(one.state.replace("_", " "), STYLES.get(one.state, "")),
        output.number(one.position),
        output.number(one.lag_events),
        output.short(one.lag_seconds) if one.lag_events else "",
        output.number(one.rate),
        one.node.rpartition("@")[2],
        one.reason,
    )


def _node(one: NodeFacts) -> tuple[object, ...]:
    notes = ["leads"] if one.is_leader else []
    notes += [f"drain: {one.drain_reason}"] if one.drain_reason is not None else []
    notes += [one.mode] if one.mode != "cluster" else []
    return (
        f"{one.number} {one.name}",
        output.styled(one.state, STYLES.get(one.state, "")),
        output.number(one.shards),
        output.short(one.beat_age),
        output.short(one.loop_lag) if one.loop_lag >= 0.1 else "",
        output.short(one.age),
        f"{one.host}/{one.pid}",
        ", ".join(notes),
    )


def _queue(one: QueueFacts) -> tuple[object, ...]:
    state = one.state
    word = "paused" if state.is_paused else "active"
    return (
        one.name,
        output.styled(word, "yellow" if state.is_paused else "green"),
        output.number(state.available),
        output.short(state.oldest),
        output.number(state.running),
        output.number(state.scheduled),
        output.styled(output.number(one.dead), "red" if one.dead else ""),
        state.paused_reason,
    )


def _drawn(pane: _Pane, rows: int, first: int) -> list[Any]:
    from rich.table import Table

    first = min(first, max(0, len(pane.rows) - rows))
    cells = [
        [output.cell(value) for value in row()] for row in pane.rows[first : first + max(0, rows)]
    ]
    title = pane.title
    if len(cells) < len(pane.rows):
        title += f", {first + 1} to {first + len(cells)}"
    made = Table(box=None, pad_edge=False, padding=(0, output.GAP, 0, 0), header_style="dim")
    kept = _fitting(pane, cells)
    for place in kept:
        header = pane.headers[place]
        made.add_column(
            header.removeprefix(">"),
            justify="right" if header.startswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in cells:
        made.add_row(*(row[place] for place in kept))
    key = next(key for key, name in PANES.items() if name == pane.name)
    return [_text(f"[{key}] {title}", "bold"), made]


def _fitting(pane: _Pane, cells: list[list[Text]]) -> list[int]:
    """The columns that there is room for; what matters least is left out first."""
    names = [one.removeprefix(">") for one in pane.headers]
    widths = [
        output.GAP + max([len(name), *(row[place].cell_len for row in cells)])
        for place, name in enumerate(names)
    ]
    widths[-1] = min(widths[-1], output.GAP + NOTE)  # notes may be cut
    kept = list(range(len(names)))
    for name in pane.spare:
        if sum(widths[place] for place in kept) <= output.console().width:
            break
        kept.remove(names.index(name))
    return kept


def _text(text: str, style: str = "", *, cut: bool = True) -> Text:
    """A line; one that is too long is cut, or folded."""
    found = output.styled(text, style)
    found.no_wrap = cut
    found.overflow = "ellipsis" if cut else "fold"
    return found
