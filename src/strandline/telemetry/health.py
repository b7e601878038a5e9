"""How a node is doing, as a list of checks: for probes, for people, and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from strandline.telemetry.ops_server import Request, Response

Outcome = Literal["ok", "warn", "fail"]
Probe = Literal["live", "ready"]

JSON = "application/json"
OUTCOMES: tuple[Outcome, ...] = ("ok", "warn", "fail")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: Of the check, always the same.
        outcome: ``ok``; ``warn``, somebody should look today; ``fail``, it does not do its work.
        reason: The facts, in words.
        cure: A command to type, or what to do; empty where nothing is to be done.
        runbook: Stem of the page under ``docs/operate/runbooks`` that says more.
        blocks: The probes that do not pass because of it, whatever the outcome: a node that is
            stopping in good order is not ready.
    """

    name: str
    outcome: Outcome
    reason: str
    cure: str = ""
    runbook: str = ""
    blocks: tuple[Probe, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """All checks of a node.

    Attributes:
        node: Its name.
        checks: In the order in which one should read them.
    """

    node: str
    checks: tuple[Check, ...]

    @property
    def status(self) -> Outcome:
        """The worst outcome."""
        return max((one.outcome for one in self.checks), key=OUTCOMES.index, default="ok")

    @property
    def live(self) -> bool:
        """Whether a restart would help nothing: the process gets on."""
        return not any("live" in one.blocks for one in self.checks)

    @property
    def ready(self) -> bool:
        """Whether the node does its part."""
        return not any(one.blocks for one in self.checks)

    def __getitem__(self, name: str) -> Check:
        """The check *name*.

        Raises:
            KeyError: There is none: not every node has every part.
        """
        return {one.name: one for one in self.checks}[name]

    def text(self, headline: str = "") -> str:
        """For people: what is wrong first, each with its cure."""
        lines = [f"{self.node}: {headline or self.status}"]
        for one in sorted(self.checks, key=lambda one: -OUTCOMES.index(one.outcome)):
            lines.append(f"{one.outcome:<5}{one.name}: {one.reason}")
            lines += [f"     -> {one.cure}"] if one.cure else []
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """For programs."""
        facts = {
            "node": self.node,
            "status": self.status,
            "live": self.live,
            "ready": self.ready,
            "checks": [asdict(one) for one in self.checks],
        }
        return json.dumps(facts)


def whole(health: Health, request: Request) -> Response:
    """Answer every check: 200 unless one fails."""
    return _answer(health, request, health.status, is_good=health.status != "fail")


def probe(health: Health, request: Request, which: Probe) -> Response:
    """Answer whether *which* passes, and if not, why: 200 or 503."""
    if health.live if which == "live" else health.ready:
        return _answer(health, request, which, is_good=True)
    stops = [one for one in health.checks if which in one.blocks or "live" in one.blocks]
    return _answer(Health(health.node, tuple(stops)), request, f"not {which}", is_good=False)


def _answer(health: Health, request: Request, headline: str, *, is_good: bool) -> Response:
    status = 200 if is_good else 503
    if _wants_json(request):
        return Response(health.json() + "\n", status, JSON)
    return Response(health.text(headline), status)


def _wants_json(request: Request) -> bool:
    chosen = request.query.get("format", "")
    return chosen == "json" if chosen else "json" in request.accept
