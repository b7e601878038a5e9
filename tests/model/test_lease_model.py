"""The real statements of the lease answer as the model does, whatever nodes do to each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lease_model import ACTS, RULES, SKEWS, ModelLease, Time, World, assert_terms_are_sound, script

from strandline.cluster import beat
from strandline.cluster.beat import Beat, Terms
from strandline.cluster.election import Acquire, Adopt, Move, Resign, Seen, TakeOver
from strandline.cluster.node import Identity, NodeState
from strandline.postgres.operations import BlockingSession

SLOW = 1000.0  # seconds of the server for one of the model: what a test takes is nothing then
TERMS = Terms(node_ttl=1e6, leader_ttl=RULES.ttl * SLOW, channel="strandline.cluster")
RESET = """
    TRUNCATE strandline.nodes, strandline.node_log;
    UPDATE strandline.leases
       SET epoch = 0, holder = NULL, renewals = 0, expires_at = '-infinity', renewed_at = NULL
"""


class BothLeases:
    """Asks the model and the database the same, and compares."""

    def __init__(self, session: BlockingSession) -> None:
        self.time = Time()
        self.model = ModelLease(self.time)
        self.terms = self.model.terms
        self._session = session
        self._shown = self.time.server
        self._joined: set[UUID] = set()
        session.connection.execute(RESET)

    def tick(self, node: UUID, epoch: int | None) -> tuple[Seen, bool]:
        seen, renewed = self.model.tick(node, epoch)
        found = self._ticked(node, epoch)
        assert found.state == NodeState.ACTIVE
        assert (found.holder, found.epoch) == (seen.holder, seen.epoch)
        assert (found.renewals, found.is_renewed) == (seen.renewals, renewed)
        assert abs(found.expires_in / SLOW - seen.expires_in) < 0.05
        assert abs(found.lease_ttl / SLOW - seen.ttl) < 0.001 + abs(self.time.skew) * SLOW
        return seen, renewed

    def _ticked(self, node: UUID, epoch: int | None) -> Beat:
        found = self._asked(
            beat.tick(
                self._identity(node),
                NodeState.ACTIVE,
                TERMS,
                loop_lag=0.0,
                progress=0,
                epoch=epoch,
            )
        )
        assert isinstance(found, Beat)
        return found

    def make(self, node: UUID, move: Move) -> int | None:
        expected = self.model.make(node, move)
        assert self._asked(beat.made(move, node, TERMS)) == expected
        return expected

    def end(self, node: UUID) -> None:
        """It dies: what it holds is free, and it can do nothing any more."""
        if self.model.holder == node:
            self.model.holder, self.model.expires_at = None, float("-inf")
            self.model.renewals += 1
        assert self._asked(beat.end(node, NodeState.DEAD, "killed", TERMS))
        for move in (Acquire(), TakeOver(self.model.epoch, self.model.renewals)):
            assert self._asked(beat.made(move, node, TERMS)) is None
        found = self._ticked(node, self.model.epoch)
        assert (found.state, found.end_reason, found.is_renewed) == (None, "killed", False)

    def _identity(self, node: UUID) -> Identity:
        identity = Identity(node, f"n{node.int}")
        if node not in self._joined:
            self._joined.add(node)
            self._session.run(beat.join(identity, "loop", TERMS))
        return identity

    def _asked(self, op: Any) -> Any:
        """Let the time that has passed in the model pass in the lease's row, then ask."""
        passed, self._shown = self.time.server - self._shown, self.time.server
        self._session.connection.execute(
            """UPDATE strandline.leases SET renewed_at = renewed_at - make_interval(secs => %s),
                      expires_at = expires_at - make_interval(secs => %s)""",
            (passed * SLOW, passed * SLOW),
        )
        return self._session.run(op)


@pytest.fixture
def session(database_url: str) -> Iterator[BlockingSession]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield BlockingSession(connection, "strandline")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_statements_do_what_the_model_says(session: BlockingSession, seed: int) -> None:
    """Two to four contenders, lost and late messages, crashes, and a server clock that jumps."""
    world = World(2 + seed % 3, seed, BothLeases(session))

    for act in script(seed, ACTS | SKEWS, 250):
        world.act(*act)

        leaders = world.leaders()
        assert len(set(leaders)) == len(leaders)
    assert_terms_are_sound(world)
    assert_the_log_tells_every_term(session, world)


OPS = ["tick", "tick", "acquire", "acquire", "take over", "renew", "resign", "wait", "wait", "end"]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    acts=st.lists(
        st.tuples(st.sampled_from(OPS), st.integers(0, 2), st.integers(0, 1), st.integers(0, 1)),
        min_size=40,
        max_size=80,
    )
)
def test_a_statement_is_refused_to_who_names_another_term(session: BlockingSession, acts) -> None:
    """Any node asks for anything, with numbers that are right or a little wrong."""
    both = BothLeases(session)
    model = both.model
    nodes = [UUID(int=number + 1) for number in range(3)]
    for kind, number, off, other in acts:
        node = nodes[number]
        both.tick(node, None)
        match kind:
            case "tick":
                both.tick(node, model.epoch - off)
            case "acquire":
                both.make(node, Acquire())
            case "take over":
                both.make(node, TakeOver(model.epoch - off, model.renewals - other))
            case "renew":
                both.make(node, Adopt(model.epoch - off))
            case "resign":
                both.make(node, Resign(model.epoch - off, "asked to"))
            case "wait":
                both.time.now += 7.0
            case "end":
                both.end(node)
                nodes[number] = UUID(int=node.int + 3)


def assert_the_log_tells_every_term(session: BlockingSession, world: World) -> None:
    """Each epoch was acquired once and in order, and ended before the next began."""
    rows = session.connection.execute(
        "SELECT kind, epoch, node FROM strandline.node_log WHERE kind LIKE 'leader%%' ORDER BY id"
    ).fetchall()
    terms = world.lease.terms
    acquired = [(epoch, node) for kind, epoch, node in rows if kind == "leader_acquired"]
    assert acquired == sorted(terms.items())
    ended = [epoch for kind, epoch, _ in rows if kind in {"leader_lost", "leader_resigned"}]
    assert ended == sorted(set(ended))
    assert set(ended) >= set(list(terms)[:-1]), "a term ended without a word"
