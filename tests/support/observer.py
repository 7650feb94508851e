"""A stage that guesses who vouches, by all that its logs hold: what it is shown, and who is there.

Peers come and go; each learns of it a while later than others, so that views differ. All that are
up ask now and then, for requesters with fresh ids, with real vouchers in the ring that their own
view gives. The observer notes when, by which requester and with which bytes, what it knew of each
peer, and all that went before; then it guesses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from p2pinfer.core.edwards import scalar_of
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ring_signature import CHANCE_BYTES
from p2pinfer.core.voucher import EPOCH_S, RingVoucher, ring_of, vouch
from transports.identity import Identity, public_key

PEERS = 40
UP_S, AWAY_S = 20_000.0, 6_000.0
"""In the mean: 31 of 40 are up."""
LAG_S = 20.0
"""Until a peer hears that another came or left, in the mean."""
EVERY_S = 97.0
"""Between two sessions."""

STAGE = Identity(b"s" * 32).peer_id


@dataclass(frozen=True)
class Logged:
    """What a stage has of one session, and, for the judge, who it was."""

    at_s: float
    requester: PeerId
    voucher: RingVoucher
    up: frozenset[bytes]
    """The keys of those that the stage knew to be up then."""
    since_s: dict[bytes, float]
    """When it heard that each of them had come."""
    signer: bytes


Guess = Callable[[Logged, Sequence[Logged], Random], bytes]
"""Returns a key of the ring, from a session's log and those before it."""

Vouch = Callable[[bytes, list[bytes], int, PeerId, PeerId, str, bytes], RingVoucher]


class _Turns:
    """When one peer came and went."""

    def __init__(self, chance: Random, until_s: float) -> None:
        self.turns = [-chance.expovariate(1 / UP_S)]  # comes, leaves, comes ...
        while self.turns[-1] < until_s:
            mean_s = AWAY_S if len(self.turns) % 2 == 0 else UP_S
            self.turns.append(self.turns[-1] + chance.expovariate(1 / mean_s))

    def came(self, at_s: float) -> float | None:
        """Return since when it is up, or None where it is away."""
        before = [turn for turn in self.turns if turn <= at_s]
        return before[-1] if len(before) % 2 else None


def logs(sessions: int, seed: int, make: Vouch = vouch) -> list[Logged]:
    """Simulate, and return one stage's logs."""
    chance = Random(seed)
    peers = [Identity(bytes([number, seed]) * 16) for number in range(1, PEERS + 1)]
    keys = [public_key(each.peer_id) for each in peers]
    turns = [_Turns(chance, sessions * EVERY_S) for _ in peers]
    lags = [[chance.expovariate(1 / LAG_S) for _ in peers] for _ in range(PEERS + 1)]

    def seen(by: int, at_s: float) -> dict[bytes, float]:
        came = ((n, each.came(at_s - lags[by][n])) for n, each in enumerate(turns))
        return {keys[n]: since for n, since in came if since is not None}

    found = []
    for number in range(sessions):
        at_s = number * EVERY_S
        is_up = [n for n, each in enumerate(turns) if each.came(at_s) is not None]
        signer = chance.choice(is_up)
        ring = ring_of(keys[signer], [*seen(signer, at_s)])
        requester = Identity(chance.randbytes(32)).peer_id
        random = chance.randbytes(CHANCE_BYTES * len(ring))
        epoch = int(at_s) // EPOCH_S
        said = make(scalar_of(peers[signer].seed), ring, epoch, requester, STAGE, "main", random)
        known = seen(PEERS, at_s)
        found.append(Logged(at_s, requester, said, frozenset(known), known, keys[signer]))
    return found


def _answers(log: Logged) -> list[int]:
    data = log.voucher.answers
    return [int.from_bytes(data[at : at + 32], "little") for at in range(0, len(data), 32)]


def _at(log: Logged, place: int) -> bytes:
    return log.voucher.ring[place % len(log.voucher.ring)]


def _there(log: Logged) -> list[bytes]:
    """Return the members that the stage knew to be up, if any."""
    return [key for key in log.voucher.ring if key in log.up] or log.voucher.ring


def _consistent(log: Logged) -> list[bytes]:
    """Return the members that would have chosen this ring with the stage's own view."""
    ring = log.voucher.ring
    return [key for key in _there(log) if ring_of(key, [*log.up]) == ring] or _there(log)


def _least_seen(log: Logged, before: Sequence[Logged]) -> bytes:
    """Return the member that the fewest other rings of this epoch hold: each vouches once."""
    now = [each for each in before[-10:] if each.voucher.epoch == log.voucher.epoch]
    counts = {key: sum(key in each.voucher.ring for each in now) for key in log.voucher.ring}
    return min(_there(log), key=lambda key: counts[key])


def _most_seen(log: Logged, before: Sequence[Logged]) -> bytes:
    recent = [set(each.voucher.ring) for each in before[-200:]]
    counts = {key: sum(key in ring for ring in recent) for key in _there(log)}
    return max(counts, key=lambda key: counts[key])


def _nearest(log: Logged, before: Sequence[Logged], _: Random) -> bytes:
    """Guess the member whose key is nearest to the tag, as if that were no random point."""
    tag = int.from_bytes(log.voucher.tag, "little")
    return min(log.voucher.ring, key=lambda key: abs(int.from_bytes(key, "little") - tag))


GUESSES: dict[str, Guess] = {
    "anyone there": lambda log, _, chance: chance.choice(_there(log)),
    "anyone whose view fits": lambda log, _, chance: chance.choice(_consistent(log)),
    "the first": lambda log, *_: _at(log, 0),
    "the last": lambda log, *_: _at(log, -1),
    "the largest answer": lambda log, *_: _at(log, _answers(log).index(max(_answers(log)))),
    "the smallest answer": lambda log, *_: _at(log, _answers(log).index(min(_answers(log)))),
    "by the challenge": lambda log, *_: _at(log, log.voucher.challenge[0]),
    "nearest to the tag": _nearest,
    "who came last": lambda log, *_: max(_there(log), key=lambda key: log.since_s.get(key, 0.0)),
    "who came first": lambda log, *_: min(_there(log), key=lambda key: log.since_s.get(key, 0.0)),
    "least seen in this epoch": lambda log, before, _: _least_seen(log, before),
    "most seen so far": lambda log, before, _: _most_seen(log, before),
}


def hits(logged: Sequence[Logged], guess: Guess, seed: int) -> float:
    """Return in which share of sessions a guess is right."""
    chance = Random(seed)
    right = (guess(log, logged[:n], chance) == log.signer for n, log in enumerate(logged))
    return sum(right) / len(logged)


def by_chance(logged: Sequence[Logged]) -> float:
    """Return in which share a guess among a ring's members is right."""
    return sum(1 / len(log.voucher.ring) for log in logged) / len(logged)
