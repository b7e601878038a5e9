"""Whom to harm: nodes by their part in the cluster, among those that nobody harms just now."""

from __future__ import annotations

import random

from chaos.field import Choice, Field, Node
from chaos.watch import Look


def free(field: Field, look: Look) -> list[Node]:
    """Active nodes that nobody is doing anything to, in a fixed order."""
    pids = {one.pid for one in look.nodes.values() if one.state == "active"}
    return sorted(
        (one for one in field.running() if one.pid in pids and not one.is_busy),
        key=lambda one: one.tag,
    )


def leader(field: Field) -> Choice:
    """Who leads."""

    def choose(look: Look) -> Node | None:
        node = field.node_of(look.leader, look)
        if field.mode == "solo":
            return next(iter(free(field, look) or field.running()), None)
        return node if node in free(field, look) else None

    return choose


def follower(field: Field, number: random.Random) -> Choice:
    """Somebody who does not lead; who owns work, if there is one."""

    def choose(look: Look) -> Node | None:
        if field.mode == "solo":
            return next((one for one in field.running() if not one.is_busy), None)
        others = [one for one in free(field, look) if one is not field.node_of(look.leader, look)]
        owning = [one for one in others if field.works_of(one, look)]
        return number.choice(owning or others) if others else None

    return choose


def owner(field: Field, number: random.Random) -> Choice:
    """Somebody who owns work."""

    def choose(look: Look) -> Node | None:
        if field.mode == "solo":
            return next((one for one in field.running() if not one.is_busy), None)
        owning = [one for one in free(field, look) if field.works_of(one, look)]
        return number.choice(owning) if owning else None

    return choose


def owner_of(field: Field, work: str) -> Choice:
    """Who owns *work*."""

    def choose(look: Look) -> Node | None:
        if field.mode == "solo":
            return next((one for one in field.running() if not one.is_busy), None)
        node = field.node_of(look.owners().get(work), look)
        return node if node in free(field, look) else None

    return choose


def with_side_process(field: Field, number: random.Random) -> Choice:
    """Somebody whose beats come from a side process."""

    def choose(look: Look) -> Node | None:
        found = [one for one in free(field, look) if one.process.find_side_process()]
        return number.choice(found) if found else None

    return choose
