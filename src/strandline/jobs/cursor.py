"""Where the next claim begins to look: past index entries of jobs that are gone, when they cost.

While a transaction holds an old snapshot, VACUUM cannot remove what is dead, and every claim would
walk over the entries of all jobs completed since. So a slow claim engages a cursor: the next ones
begin behind the last job that was claimed. A job may become available behind the cursor, by a
transaction that drew its seq early and committed late, or with a higher priority; a full look
finds it: once a second, sooner after a wake-up, and whenever a cursored claim comes back short. A
full look rests for ten times its own cost.

Where a full look costs very much, or more than a statement may, what costs is as a rule not dead but
of kinds that are not known here. Then it is taken in pieces (``fetch.claim_piece``), each of which
brings the cursor forward whatever it finds.
"""

from __future__ import annotations

import math

SLOW = 0.02  # seconds of a claim, plus what its rows cost, from which the cursor is engaged
PER_ROW = 0.00002  # twice what a row costs; too low does little harm, too high makes every claim that slow
FULL_LOOK_EVERY = 1.0
REST = 10.0  # times the cost of a full look
START = (0, 0)
MUCH = 0.2  # seconds of a full look that found nothing, from which on it is taken in pieces
CALM = 0.1  # seconds of all pieces together, below which it is not any more


class Cursor:
    """The low-water cursor of one queue on one node. It looks at no clock and no database.

    Args:
        slow: Seconds of a full look, beyond what its rows cost, from which it is engaged.
    """

    def __init__(self, slow: float = SLOW) -> None:
        self._slow = slow
        self.is_engaged = False
        self.in_pieces = False
        self._is_walking = False  # a full look in pieces is under way
        self._walk_cost = 0.0
        self._place = START
        self._full_at = 0.0
        self._full_cost = 0.0
        self._woken = False

    def wake(self) -> None:
        """Something became available, maybe behind the cursor."""
        self._woken = True

    def start(self, now: float) -> tuple[int, int]:
        """Where the claim that begins at *now* looks from."""
        if not self.is_engaged:
            return START
        if self._is_walking:
            return self._place
        rest = REST * self._full_cost
        if not self._woken:
            rest = max(rest, FULL_LOOK_EVERY)
        return START if now - self._full_at >= rest else self._place

    def looked(
        self,
        start: tuple[int, int],
        began: float,
        cost: float,
        is_short: bool,
        count: int,
        last: tuple[int, int],
    ) -> float | None:
        """A claim from *start* took *cost* seconds; it claimed *count* jobs, the last one at *last*.

        Returns:
            Seconds after which a full look must follow, since this one may have missed something.
        """
        now = began + cost
        if start != START:
            if count:
                self._place = last
            if not is_short:
                return None
            self._woken = True
            return max(0.0, self._full_at + REST * self._full_cost - now)
        self._woken = False
        self._full_at, self._full_cost = now, cost
        self.is_engaged = cost > self._slow + PER_ROW * count
        if not count and cost > MUCH:
            self._take_pieces()
        if count:
            self._place = max(last, self._place) if is_short else last
        return None

    def missed(self, start: tuple[int, int], began: float, cost: float) -> None:
        """A claim from *start* had no answer after *cost* seconds."""
        if start == START and not self.in_pieces:
            self._take_pieces()
        else:  # what is dead in front of a piece can only be jumped over
            self._is_walking = False
            self._full_at, self._full_cost = began + cost, cost

    def pieced(
        self,
        start: tuple[int, int],
        began: float,
        cost: float,
        place: tuple[int, int],
        is_end: bool,
    ) -> float | None:
        """A piece from *start* took *cost* seconds, and ended at *place*, maybe the end of the line.

        Returns:
            Seconds after which to look again; None: at once, the line goes on.
        """
        now = began + cost
        if start == START:
            self._is_walking, self._woken, self._walk_cost = True, False, 0.0
        self._place = place
        if self._is_walking:
            self._walk_cost += cost
        if not is_end:
            return None
        if self._is_walking:
            self._is_walking = False
            self._full_at, self._full_cost = now, self._walk_cost
            self.in_pieces = self._walk_cost > CALM
            self.is_engaged = self.in_pieces
        return max(FULL_LOOK_EVERY, self._full_at + REST * self._full_cost - now)

    def _take_pieces(self) -> None:
        self.is_engaged = self.in_pieces = True
        self._is_walking = False
        self._full_at, self._full_cost = -math.inf, 0.0
