"""The high-water algorithm against a small world of transactions, in every interleaving."""

from __future__ import annotations

import random
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline.events.generations import MOST, Generation, Generations, all_keys

Script = list[tuple[str, int]]
STEPS = ["append", "append", "begin", "draw", "commit", "commit", "rollback", "recover"]
STEPS += ["detect", "detect", "detect"]
ACTS = st.tuples(st.sampled_from(STEPS), st.integers(0, 7))
SCRIPTS = st.lists(ACTS, max_size=60)
LONG = st.lists(ACTS, min_size=25, max_size=60)  # without a minimum most have five steps


class World:
    """A sequence, transactions that hold the lock from their begin on, and the mark."""

    def __init__(self) -> None:
        self.last = 0
        self.begun = 0
        self.mark = 0
        self.visible: set[int] = set()
        self.open: dict[int, tuple[frozenset[str], set[int]]] = {}
        self.lost: list[int] = []

    def act(self, step: str, number: int) -> None:
        """One step of a writer; a step that makes no sense does nothing."""
        if step in {"begin", "append"}:
            self.begun += 1
            keys = frozenset({f"3/{self.begun}", f"{700 + self.begun}"})
            self.last += step == "append"
            self.open[self.begun] = (keys, {self.last} if step == "append" else set())
            return
        if not self.open:
            return
        name = sorted(self.open)[number % len(self.open)]
        keys, drawn = self.open[name]
        if step == "draw":
            self.last += 1
            drawn.add(self.last)
        elif step == "recover":  # prepared, then recovered after a crash: a new virtual transaction
            self.open[name] = (frozenset({f"-1/{700 + name}", f"{700 + name}"}), drawn)
        elif step == "commit":
            self.visible |= drawn  # visible first, the lock goes afterwards
            self.lost += [one for one in drawn if one <= self.mark]
            del self.open[name]
        elif step == "rollback":
            del self.open[name]

    def holders(self) -> list[frozenset[str]]:
        """What pg_locks tells."""
        return [keys for keys, _ in self.open.values()]


class Detector:
    """The loop of ``HighWater``, one statement at a time, on the real ``Generations``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.generations = Generations()
        self.proved: Generation | None = None
        self.highest = 0
        self.phase = 0

    def step(self) -> None:
        """Run the next statement."""
        (self.advance, self.probe, self.settle)[self.phase]()
        self.phase = (self.phase + 1) % 3

    def advance(self) -> None:
        """Move over the contiguous prefix; see the highest."""
        world = self.world
        while world.mark + 1 in world.visible:
            world.mark += 1
        self.highest = max((one for one in world.visible if one > world.mark), default=0)
        self.generations.passed(world.mark, self.highest)

    def probe(self) -> None:
        """Read the holders; queue and decide."""
        present = self.present()
        if self.highest:
            head = UUID(int=self.highest)
            self.generations.add(Generation(self.highest, head, present, len(present), 0.0))
        self.proved = self.generations.settled(present)

    def settle(self) -> None:
        """Move the mark to the proved head."""
        if self.proved is not None:
            self.world.mark = max(self.world.mark, self.proved.highest)

    def present(self) -> frozenset[str]:
        """Keys of the holders."""
        return all_keys(self.world.holders())


class HoldersFirst(Detector):
    """Wrong: the holders are read before the rows."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.early: frozenset[str] = frozenset()

    def advance(self) -> None:
        """Read the holders where the rows belong."""
        self.early = super().present()

    def probe(self) -> None:
        """Read the rows where the holders belong."""
        super().advance()
        super().probe()

    def present(self) -> frozenset[str]:
        """Answer what was read before."""
        return self.early


class VirtualOnly(Detector):
    """Wrong: a holder is known by its virtual transaction only."""

    def present(self) -> frozenset[str]:
        """Leave the transaction ids out."""
        return frozenset(key for key in all_keys(self.world.holders()) if "/" in key)


class AnyGone(Detector):
    """Wrong: a generation counts as proved once one of its holders has ended."""

    def probe(self) -> None:
        """Compare by inclusion instead of disjointness."""
        super().probe()
        oldest, present = self.generations.oldest, self.present()
        if self.proved is None and oldest is not None and not oldest.holders <= present:
            self.proved = oldest


def play(script: Script, kind: type[Detector] = Detector, rivals: int = 2) -> World:
    """Play *script* with *rivals* detectors on one world."""
    world = World()
    detectors = [kind(world) for _ in range(rivals)]
    for step, number in script:
        before = world.mark
        if step == "detect":
            detectors[number % rivals].step()
        else:
            world.act(step, number)
        assert world.mark >= before, "the mark moved back"
    for name in range(len(world.open)):
        world.act("commit" if name % 2 else "rollback", 0)
    for _ in range(6):  # two whole looks each, wherever they stood
        for detector in detectors:
            detector.step()
    return world


@settings(max_examples=500, deadline=None)
@given(LONG)
def test_no_position_below_the_mark_becomes_visible_later(script: Script) -> None:
    assert play(script).lost == []


@settings(max_examples=300, deadline=None)
@given(SCRIPTS)
def test_the_mark_reaches_the_head_once_every_writer_has_ended(script: Script) -> None:
    world = play(script)

    assert world.mark == max(world.visible, default=0)


def random_scripts(count: int) -> list[Script]:
    """The same scripts in every run; a hundred times cheaper than drawn ones."""
    dice = random.Random(5)  # noqa: S311
    return [
        [(dice.choice(STEPS), dice.randrange(8)) for _ in range(dice.randint(25, 60))]
        for _ in range(count)
    ]


def test_twenty_thousand_random_interleavings_lose_nothing() -> None:
    assert not [one for one in random_scripts(20_000) if play(one).lost]


@pytest.mark.parametrize("wrong", [HoldersFirst, VirtualOnly, AnyGone])
def test_the_model_catches_a_wrong_rule(wrong: type[Detector]) -> None:
    assert [one for one in random_scripts(10_000) if play(one, wrong, rivals=1).lost]


def test_a_full_queue_is_thinned_in_the_middle_only() -> None:
    queue = Generations()
    for n in range(1, 5 * MOST):
        queue.add(Generation(n, UUID(int=n), frozenset({str(n)}), 1, float(n)))

    assert len(queue) <= MOST
    assert queue.oldest is not None
    assert queue.oldest.highest == 1
    newest = queue.settled(frozenset())
    assert newest is not None
    assert newest.highest == 5 * MOST - 1
    before = queue.taken_before(100.5)
    assert before is not None
    assert before.highest <= 100


def test_a_head_that_is_queued_keeps_its_first_holders() -> None:
    queue = Generations()
    queue.add(Generation(5, UUID(int=5), frozenset({"1"}), 1, 0.0))
    queue.add(Generation(5, UUID(int=5), frozenset({"1", "2"}), 2, 1.0))

    assert len(queue) == 1
    assert queue.settled(frozenset({"2"})) is not None
    assert queue.settled(frozenset({"1"})) is None
    queue.passed(5, 9)
    assert len(queue) == 0


def test_a_head_above_what_is_visible_is_forgotten() -> None:
    queue = Generations()
    queue.add(Generation(5, UUID(int=5), frozenset(), 0, 0.0))
    queue.passed(1, 4)

    assert queue.settled(frozenset()) is None
