"""Who keeps which rows of a model, when lost ones are rebuilt, and whether a code is worth it.

A model's rows come in groups (`p2pinfer.core.stripes`). In each group every peer that lends space
has a rank by rendezvous hashing: all compute the same order without a word, and a peer that comes
or goes changes nobody else's rank. A row stays with a peer that holds it, as long as no peer has
more than its share; what nobody holds goes to the first in that order who has none yet. The time is
an argument, in seconds.
"""

import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from attrs import frozen
from blake3 import blake3

from p2pinfer.core.ids import ModelId, PeerId

COPIES_MIN, COPIES_MAX = 2, 4
"""Of each data row where no code is used: one more than one, and what a swarm will spare."""

COPY_LOSS_MAX = 0.03
"""Copies are added until a row is out of reach no more often than this; three where 7 in 10 are up,
which is what 8 of 16 shares give for two thirds of the space."""

WORTH_CHANGING = 2.0
"""Rows move when one way loses less than the other by this much, not at every measurement."""

GONE_S = 48 * 3600.0
"""Silent for longer, a peer counts as gone for good. Machines are off for a night, and some for a
weekend: with a day, a simulated month at 0.7 up moved 2.6 times what was really lost."""

LENT_TIMES_MAX = 10.0
"""No peer counts for more than this many times the median, whatever it says that it lends: saying
so costs nothing."""

CHANCE_MIN = 1e-3
"""Where more holders are silent at once than chance explains this often, those that
are silent count as gone at once: a provider, a building or a version has failed."""

SHORT_S = 15 * 60.0
"""How long a group is short of rows before they are rebuilt: restarts and moves take less."""

UP_ASKED, UP_ANSWERED = 10.0, 7.0
"""What is assumed to have been seen of a swarm before anything was: seven in ten up."""

UP_WEIGHT_MAX = 2000.0
"""Looks at peers that a measured availability remembers: about a week of 16 peers, hour by hour."""


class Row(NamedTuple):
    """A row of a group of bands."""

    group: int
    row: int


def out_of_reach(need: int, shares: int, up: float) -> float:
    """Return how likely fewer than ``need`` of these shares are up, each on its own."""
    return sum(math.comb(shares, n) * up**n * (1 - up) ** (shares - n) for n in range(need))


def copies_for(up: float) -> int:
    """Return how many copies of a row are kept where no code is used."""
    enough = (n for n in range(COPIES_MIN, COPIES_MAX) if (1 - up) ** n <= COPY_LOSS_MAX)
    return next(enough, COPIES_MAX)


def choose_copies(k: int, m: int, keepers: int, up: float, now: int | None = None) -> int:
    """Return how many copies to keep of each data row; 0: the code, one of each row.

    The code needs as many peers as shares, and peers that are up often enough: at equal space it
    loses less than copies do from three in five on.

    Args:
        k: data shares of a stripe.
        m: parity shares.
        keepers: peers that lend space.
        up: the share of them that is up, as measured.
        now: what is kept at present.
    """
    if keepers < k + m:
        return max(1, min(keepers, copies_for(up)))
    coded = out_of_reach(k, k + m, up)
    copied = (1 - up) ** max(1, (k + m) // k)
    if now is not None:
        coded *= WORTH_CHANGING if now else 1 / WORTH_CHANGING
    return 0 if coded <= copied else copies_for(up)


@frozen
class Group:
    """Bands that the same peers keep: which rows there are."""

    number: int
    data: int
    """Data rows with anything in them, counted from row 0. Zeros stand for the others, up to k."""
    k: int
    m: int
    """Parity rows, which are numbered from k on."""

    @property
    def rows(self) -> list[int]:
        """All rows."""
        return [*range(self.data), *range(self.k, self.k + self.m)]

    def slots(self, copies: int) -> list[int]:
        """Return which rows are to be kept, each as often as it is to be; 0 copies: the code."""
        return [r for r in range(self.data) for _ in range(copies)] if copies else self.rows

    @property
    def rebuild_at(self) -> int:
        """How few rows are left when the others are rebuilt: a third of the parity, rounded up.

        Earlier reads more for each row, later leaves less to chance: in a simulated month at 0.7 up
        1.2 times what was lost was moved for 11 of 16 rows, and 1.9 times for 12, where a row was
        out of reach 6.7 % of the time in place of 9.2 %; at 10, a quarter more often than at 11.
        """
        return self.data + math.ceil(self.m / 3)


def ranked(model: ModelId, group: int, lent: Mapping[PeerId, int]) -> list[PeerId]:
    """Return the peers that lend space in the order in which they keep a group's rows.

    Weighted rendezvous hashing: who lends twice as much is first twice as often.
    """
    if not any(lent.values()):
        return []
    most = LENT_TIMES_MAX * statistics.median(n for n in lent.values() if n)

    def score(peer: PeerId) -> float:
        digest = blake3(f"{model} {group} {peer}".encode()).digest(8)
        drawn = ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52  # never quite 0 or 1
        return min(lent[peer], most) / -math.log(drawn)

    return sorted((peer for peer in lent if lent[peer] > 0), key=lambda p: (-score(p), p))


@frozen
class Deal:
    """Who is to keep which rows of a group."""

    owners: tuple[tuple[int, PeerId], ...]
    """Rows with their owners; a row of several copies has several."""
    kept: int
    """How many of them their owners hold."""
    each_max: int
    """Rows that one peer may own."""

    def of(self, peer: PeerId) -> set[int]:
        """Return a peer's rows."""
        return {row for row, owner in self.owners if owner == peer}


def deal(order: Sequence[PeerId], holds: Mapping[PeerId, Collection[int]], due: list[int]) -> Deal:
    """Deal a group's rows to peers.

    Args:
        order: peers that lend space, by rank; peers that are gone are left out.
        holds: which rows each present peer holds, those included that lend nothing.
        due: rows to keep, each as often as it is to be kept.
    """
    each_max = max(1, math.ceil(len(due) / len(order))) if order else len(due)
    rank = {peer: place for place, peer in enumerate(order)}
    have: dict[int, list[PeerId]] = {}
    for peer in sorted(holds, key=lambda p: (rank.get(p, len(rank)), p)):
        for row in holds[peer]:
            have.setdefault(row, []).append(peer)
    load: Counter[PeerId] = Counter()
    owned: set[tuple[int, PeerId]] = set()
    lacking: list[int] = []
    for row in sorted(due, key=lambda row: (len(have.get(row, ())), row)):
        able = (p for p in have.get(row, ()) if load[p] < each_max and (row, p) not in owned)
        owner = next(able, None)
        if owner is None:
            lacking.append(row)
            continue
        owned.add((row, owner))
        load[owner] += 1
    kept = len(owned)
    for row in sorted(lacking):
        free = [p for p in order if load[p] < each_max and (row, p) not in owned]
        if free:
            owner = min(free, key=lambda p: (load[p], rank[p]))
            owned.add((row, owner))
            load[owner] += 1
    return Deal(tuple(sorted(owned)), kept, each_max)


@frozen
class Wishes:
    """What one peer is to do for a group."""

    take: frozenset[int]
    """Rows that it is to fetch: others have them."""
    release: frozenset[int]
    """Rows that it holds and need not: their owner holds them too."""
    lost: frozenset[int]
    """Rows that nobody present holds."""
    is_short: bool
    """Few enough are left for the lost ones to be rebuilt."""
    is_first: bool
    """This peer is to rebuild them."""
    kept: int
    due: int


def wishes(
    group: Group,
    me: PeerId,
    order: Sequence[PeerId],
    holds: Mapping[PeerId, Collection[int]],
    up: Collection[PeerId],
    copies: int,
) -> Wishes:
    """Return what a peer is to do for a group.

    Args:
        group: its rows.
        me: the peer.
        order: peers that lend space and are not gone, by rank.
        holds: which rows each peer holds that is not gone.
        up: those that can be asked now.
        copies: how many of each data row, or 0 for the code.
    """
    due = group.slots(copies)
    found = deal(order, holds, due)
    own = set(holds.get(me, ()))
    mine = found.of(me)
    here = {row for peer in up for row in holds.get(peer, ())}
    at_owners = {row for row, owner in found.owners if owner in up and row in holds.get(owner, ())}
    held = set[int]().union(*holds.values())
    return Wishes(
        take=frozenset((mine - own) & here),
        release=frozenset((own - mine) & at_owners),
        lost=frozenset(set(due) - held),
        is_short=found.kept <= group.rebuild_at and not copies,
        is_first=me == next((peer for peer in order if peer in up or peer == me), None),
        kept=found.kept,
        due=len(due),
    )


def present(silent_s: Mapping[PeerId, float], up: float) -> set[PeerId]:
    """Return the peers of a group whose rows still count, by how long each has been silent.

    Those away for less than ``GONE_S`` do, unless more are away than chance explains.
    """
    here = {peer for peer, silent in silent_s.items() if silent <= 0}
    away = {peer for peer, silent in silent_s.items() if 0 < silent <= GONE_S}
    if away and out_of_reach(len(here) + 1, len(here) + len(away), up) < CHANCE_MIN:
        return here
    return here | away


def measured_up(answered: float, asked: float) -> float:
    """Return the share of peers that is up, of those that were looked for; never quite 0 or 1."""
    return (answered + UP_ANSWERED) / (asked + UP_ASKED)


def may_lose(groups: Iterable[tuple[Group, Mapping[PeerId, Collection[int]]]]) -> int:
    """Return how many peers may vanish at once, whichever they are, with nothing lost; -1: it is.

    Each group comes with the rows that each peer holds.
    """
    worst = math.inf
    for group, holds in groups:
        rows = set(group.rows)
        held = {peer: sorted(rows.intersection(each)) for peer, each in holds.items()}
        is_there = len(set[int]().union(*held.values())) >= group.data
        # A peer may hold many rows, but counts for one: then as many may go as there are too many.
        alone = _matched(held) - group.data
        copied = Counter(row for each in held.values() for row in each)
        copies = min((copied[row] for row in range(group.data)), default=0)
        worst = min(worst, max(alone, copies - 1, 0 if is_there else -1))
    return int(worst) if worst < math.inf else -1


def _matched(holds: Mapping[PeerId, Sequence[int]]) -> int:
    """Return how many peers could hold a row each that is no other's; augmenting paths find it."""
    owner: dict[int, PeerId] = {}

    def place(peer: PeerId, tried: set[int]) -> bool:
        for row in holds[peer]:
            if row not in tried:
                tried.add(row)
                if row not in owner or place(owner[row], tried):
                    owner[row] = peer
                    return True
        return False

    return sum(place(peer, set()) for peer in sorted(holds))


def in_words(name: str, losses: int, keepers: int) -> str:
    """Say how safe a model is, for a person."""
    if losses < 0:
        return f"not all of {name} can be had from the peers online now"
    if losses == 0:
        return f"{name} is all there, but the loss of one more peer may lose some of it"
    several = "any one peer" if losses == 1 else f"any {losses} peers at once"
    kept = f", kept by {keepers}" if keepers else ""
    return f"{name} would survive the loss of {several}{kept}"
