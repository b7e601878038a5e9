"""Nodes that contend for the lease over a bad wire, in many interleavings: I1, I2 and liveness."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from lease_model import ACTS, RULES, SKEWS, World, assert_terms_are_sound, script

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=300, deadline=None)
@given(seed=SEEDS)
def test_no_two_nodes_trust_that_they_lead(seed: int) -> None:
    """I2, as long as the server's clock does not jump; whatever is lost, late or withdrawn."""
    world = World(2 + seed % 3, seed)

    for act in script(seed, ACTS, 600):
        world.act(*act)

        assert len(world.leaders()) <= 1
    assert_terms_are_sound(world)


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS)
def test_a_server_clock_that_jumps_gives_no_epoch_twice(seed: int) -> None:
    """Two may believe in themselves then, but never under one epoch: the fences tell them apart."""
    world = World(2 + seed % 3, seed)

    for act in script(seed, ACTS | SKEWS, 600):
        world.act(*act)

        leaders = world.leaders()
        assert len(set(leaders)) == len(leaders)
    assert_terms_are_sound(world)


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS)
def test_somebody_leads_again_in_bounded_time_once_messages_arrive(seed: int) -> None:
    """I6: whatever happened before, also if the server's clock was set back by minutes."""
    world = World(1 + seed % 4, seed)
    for act in script(seed, ACTS | SKEWS, 200):
        world.act(*act)
    for node in world.nodes:
        node.stands = True
    if seed % 2:
        world.act("crash", seed % 7, 0.0)

    # who withdrew stays away for up to 7 s; then the longest way: a lease that seems good for long
    world.runs_well(7.0 + 1.5 * RULES.ttl + 3 * RULES.interval)

    assert len(world.leaders()) == 1
    epoch = world.lease.epoch
    world.runs_well(100.0)
    assert len(world.leaders()) == 1
    assert world.lease.epoch == epoch, "nobody was disturbed, so nobody changed"


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_a_node_that_won_unknowingly_leads_within_a_round(seed: int) -> None:
    """The answer to an acquire is lost: no ttl has to pass until somebody leads."""
    world = World(1 + seed % 3, seed)
    while world.lease.epoch == 0:
        for node in world.nodes:
            node.step("unanswered" if world.lease.epoch else "ok")
            if world.lease.epoch:
                node.step("unanswered")
                break
        world.wait(0.05)
    assert world.leaders() == []

    world.runs_well(2 * RULES.interval)

    assert world.leaders() == [1]
