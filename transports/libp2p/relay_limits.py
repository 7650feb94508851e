"""What a relay gives to each peer: reservations, circuits, rates; its clock is an argument.

A relay is a volunteer. It limits how fast it carries, not how much: over the rate it reads no
further, so that senders wait as they do for any slow peer.
"""

import ipaddress
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

P = TypeVar("P")
"""A peer's id."""
C = TypeVar("C")
"""A connection."""

MBIT_BYTES = 125_000

CIRCUIT_SHARE = 0.25
"""Of the rate, that one circuit may use one way."""


RESERVATIONS_MAX = 64
"""Each is a connection that stays."""

RESERVATIONS_PER_SITE_MAX = 8
"""Of one IPv4 address or IPv6 /56: a house full of peers, not a stranger's thousand keys."""

RESERVATION_S = 3600
"""Its peer renews it at half of that, and loses it with its connection."""

CIRCUITS_MAX = 128
"""Each keeps two windows of 256 KiB at most: 64 MiB in all."""

CIRCUITS_PER_PEER_MAX = 16
"""To one hidden peer, and of one caller: a session's chain needs one to each of its peers."""

OPENINGS_PER_MINUTE = 12
"""Of one caller, once it has opened as many as it may have: for circuits that break."""

RATE_MBIT = 16.0
"""Both ways, over all circuits: a home's upload often has it to spare."""

BURST_S = 2.0
"""Of its rate, which is 4 MB or a question's rows: 512 of 8 KB."""


@dataclass(frozen=True)
class RelayLimits:
    """What one relay gives."""

    reservations_max: int = RESERVATIONS_MAX
    reservations_per_site_max: int = RESERVATIONS_PER_SITE_MAX
    reservation_s: int = RESERVATION_S
    circuits_max: int = CIRCUITS_MAX
    circuits_per_peer_max: int = CIRCUITS_PER_PEER_MAX
    openings_per_minute: float = OPENINGS_PER_MINUTE
    bytes_per_s: float = RATE_MBIT * MBIT_BYTES
    burst_bytes: float = BURST_S * RATE_MBIT * MBIT_BYTES

    @classmethod
    def of(cls, mbit: float) -> "RelayLimits":
        """Return the limits of a relay that carries ``mbit`` megabits a second."""
        rate = mbit * MBIT_BYTES
        return cls(bytes_per_s=rate, burst_bytes=BURST_S * rate)

    @property
    def circuit_bytes_per_s(self) -> float:
        """One way of one circuit: of 16 Mbit/s 60 tokens a second of rows of 8 KB."""
        return CIRCUIT_SHARE * self.bytes_per_s


class Bucket:
    """A rate with a burst: how many bytes may pass now."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._level, self._at = burst, -float("inf")

    def level(self, now: float) -> float:
        """How much may pass now."""
        if now > self._at:
            earned = self._per_s * (now - self._at) if self._at > -float("inf") else self._burst
            self._level, self._at = min(self._burst, self._level + earned), now
        return self._level

    def wait_s(self, wanted: float, now: float) -> float:
        """How long until so much may pass."""
        lacking = min(wanted, self._burst) - self.level(now)
        return lacking / self._per_s if lacking > 0 else 0.0

    def spend(self, amount: float) -> None:
        """Count what passes."""
        self._level -= amount


CALLERS_MAX = 1024
"""Callers whose rate is remembered; the one longest unheard is forgotten first."""


class RelayTable(Generic[P, C]):
    """Who has a reservation, and which peers are connected."""

    def __init__(self, limits: RelayLimits) -> None:
        self.limits = limits
        self._held: dict[P, tuple[C, str, float]] = {}
        self._callers: Counter[P] = Counter()
        self._targets: Counter[P] = Counter()
        self._openings: dict[P, Bucket] = {}
        self.circuits = 0
        """Open now, or being opened."""

    @property
    def reservations(self) -> int:
        """How many are held."""
        return len(self._held)

    def reserve(self, peer: P, connection: C, site: str, now: float) -> bool:
        """Give a peer a reservation, or renew it; False if there is no room."""
        self._expire(now)
        if peer not in self._held:
            same = sum(1 for _, other, _ in self._held.values() if other == site)
            limits = self.limits
            if len(self._held) >= limits.reservations_max:
                return False
            if same >= limits.reservations_per_site_max:
                return False
        self._held[peer] = connection, site, now + self.limits.reservation_s
        return True

    def find(self, peer: P, now: float) -> C | None:
        """Return the connection of a peer that holds a reservation."""
        self._expire(now)
        held = self._held.get(peer)
        return held[0] if held else None

    def drop(self, peer: P, connection: C) -> None:
        """Forget the reservation that was made on a connection, which has ended."""
        held = self._held.get(peer)
        if held and held[0] is connection:
            del self._held[peer]

    def connect(self, caller: P, target: P, now: float) -> bool:
        """Count a circuit, which must be given back by ``ended``; False if it is one too many."""
        limits = self.limits
        if (
            self.circuits >= limits.circuits_max
            or self._callers[caller] >= limits.circuits_per_peer_max
            or self._targets[target] >= limits.circuits_per_peer_max
        ):
            return False
        rate = self._openings.pop(caller, None) or Bucket(
            limits.openings_per_minute / 60, limits.circuits_per_peer_max
        )
        self._openings[caller] = rate
        if len(self._openings) > CALLERS_MAX:
            del self._openings[next(iter(self._openings))]
        if rate.level(now) < 1:
            return False
        rate.spend(1)
        self.circuits += 1
        self._callers[caller] += 1
        self._targets[target] += 1
        return True

    def ended(self, caller: P, target: P) -> None:
        """A circuit is over."""
        self.circuits -= 1
        for counter, peer in ((self._callers, caller), (self._targets, target)):
            counter[peer] -= 1
            if not counter[peer]:
                del counter[peer]

    def _expire(self, now: float) -> None:
        self._held = {peer: held for peer, held in self._held.items() if held[2] > now}


LOOKED_AT_MAX = 16
"""Candidates whose distance a hidden peer looks up once it can be called: with 46 relays on its own
continent among 280, two or three of them are near."""

BETTER_RATIO, BETTER_S = 0.7, 0.02
"""A relay is exchanged for one that is this much nearer."""


def exchanges(held_s: Mapping[P, float], others_s: Mapping[P, float]) -> list[tuple[P, P]]:
    """Return which relays to give up for which others, given the round trips to them in seconds.

    What two peers say through a relay goes a detour of at most the round trip to it.
    """
    far = sorted(held_s, key=held_s.__getitem__, reverse=True)
    near = sorted(others_s, key=others_s.__getitem__)
    return [
        (old, new)
        for old, new in zip(far, near, strict=False)
        if others_s[new] < min(BETTER_RATIO * held_s[old], held_s[old] - BETTER_S)
    ]


def site_of(host: str) -> str:
    """Return what one household has: an IPv4 address, or an IPv6 network of 56 bits."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 56), strict=False))
    return str(found)
