"""What a node thinks of the peers that it has seen at work: how far they keep their promises.

A standing is a number from 0 to 1. It rises with work done as claimed, falls with failures, with
refusals by peers that advertised room, and with work that took much longer than claimed;
time brings it back to a newcomer's. A proven cheat's is 0, for good. Routing and placement read
it through an `Experience`. The clock is an argument, in seconds.
"""

from collections.abc import Mapping
from typing import Self

from attrs import evolve, frozen

from p2pinfer.core.ids import PeerId
from scheduler.offer_table import LIE_FACTOR, STANDING_NEW, Experience

PEERS_MAX = 4096
"""Peers remembered; the least remarkable is forgotten first."""

KEPT_WORD_GAIN = 0.1
"""Share of the way to a full standing gained by each session or measurement that is as claimed."""

REFUSAL_FACTOR = 0.9
"""A place may be taken while the advertisement is on its way, so a refusal weighs little."""

FAILURE_FACTOR = 0.5
"""A session broken off, or no answer at all."""

LIE_STANDING_FACTOR = 0.8
"""For each time that work took more than LIE_FACTOR times what was claimed."""

RECOVERY_S = 3600.0
"""The time in which half of a loss is recovered; a liar should not gain by waiting."""

FADING_S = 7 * 24 * 3600.0
"""The time in which half of a good standing fades if nothing new supports it."""

NEWEST_WEIGHT = 0.3
"""Weight of the newest measurement in the smoothed one."""

SEEN_S_MAX = 600.0
"""Older measurements are dropped: the machine may be idle again, or busy."""


@frozen
class Standing:
    """The standing of one peer, as of a moment."""

    value: float = STANDING_NEW
    at_s: float = 0.0
    row_us: float = 0.0
    """Smoothed time per row and layer; 0 if not yet observed."""
    row_at_s: float = 0.0
    cheat: bool = False

    def at(self, now_s: float) -> Self:
        """Return it as of now: losses heal, and gains fade."""
        half_s = RECOVERY_S if self.value < STANDING_NEW else FADING_S
        left: float = 0.5 ** (max(now_s - self.at_s, 0.0) / half_s)
        value = 0.0 if self.cheat else STANDING_NEW + (self.value - STANDING_NEW) * left
        return evolve(self, value=value, at_s=max(now_s, self.at_s))

    def worked(self, now_s: float, row_us: float, claimed_us: float) -> Self:
        """Record the time a row took per layer; ``claimed_us`` is 0 if nothing was claimed."""
        now = self.at(now_s)
        fresh = now.row_us and now_s - now.row_at_s <= SEEN_S_MAX
        smoothed = now.row_us + NEWEST_WEIGHT * (row_us - now.row_us) if fresh else row_us
        now = evolve(now, row_us=smoothed, row_at_s=now_s)
        if claimed_us and smoothed > LIE_FACTOR * claimed_us:
            return evolve(now, value=now.value * LIE_STANDING_FACTOR)
        if now.cheat:
            return now
        return evolve(now, value=now.value + KEPT_WORD_GAIN * (1 - now.value))

    def refused(self, now_s: float) -> Self:
        """Record a refusal, though the peer had advertised room."""
        now = self.at(now_s)
        return evolve(now, value=now.value * REFUSAL_FACTOR)

    def failed(self, now_s: float) -> Self:
        """Record that it broke off, or did not answer."""
        now = self.at(now_s)
        return evolve(now, value=now.value * FAILURE_FACTOR)

    def cheated(self, now_s: float) -> Self:
        """Record a proof that it cheated."""
        return evolve(self, value=0.0, at_s=now_s, cheat=True)


class Standings:
    """The standing of each peer that was seen; any other peer has a newcomer's."""

    def __init__(self, known: Mapping[PeerId, Standing] | None = None) -> None:
        self._known = dict(known or {})

    def __len__(self) -> int:
        return len(self._known)

    @property
    def known(self) -> Mapping[PeerId, Standing]:
        """The standing of each peer that was seen, as of then."""
        return self._known

    def of(self, peer: PeerId, now_s: float) -> Standing:
        """Return a peer's standing now."""
        return self._known.get(peer, Standing(at_s=now_s)).at(now_s)

    def put(self, peer: PeerId, standing: Standing) -> None:
        """Remember a peer's standing; forget another peer's if they are too many."""
        self._known[peer] = standing
        if len(self._known) > PEERS_MAX:
            del self._known[min(self._known, key=self._remarkable)]

    def experience(self, now_s: float, round_trip_s: Mapping[PeerId, float]) -> Experience:
        """Return what routing and placement need to know."""
        now = {peer: standing.at(now_s) for peer, standing in self._known.items()}
        fresh = {p: s.row_us for p, s in now.items() if now_s - s.row_at_s <= SEEN_S_MAX}
        return Experience(
            round_trip_s=round_trip_s,
            standing={peer: standing.value for peer, standing in now.items()},
            row_us={peer: row_us for peer, row_us in fresh.items() if row_us},
        )

    def _remarkable(self, peer: PeerId) -> tuple[bool, float, float]:
        """Order peers by what would be lost with them: a proof, a judgement, a fresh memory."""
        known = self._known[peer]
        return known.cheat, abs(known.value - STANDING_NEW), known.at_s
