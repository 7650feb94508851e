"""A month of a model that peers keep: they come, go, and leave for good, and repair what is lost.

Who keeps what, when a group is short, who rebuilds it and who then takes which row is decided by
the functions that real keepers call. Left out are messages: all peers know the same, at once. Each
time a peer leaves for good, its rows are gone and a newcomer takes its place. Beside the code,
copies are kept in the same churn, and made again under the same rule of who counts as gone.
"""

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.stripes import DATA_SHARES, PARITY_SHARES
from scheduler.keeping import (
    SHORT_S,
    Group,
    choose_copies,
    measured_up,
    present,
    ranked,
    wishes,
)

STEP_S = 900.0
"""Peers come and go, and look around, in steps of a quarter of an hour."""

UP_HOURS = 14.0
"""A session, in the mean; absences are as long as the share of time up demands."""

STAY_DAYS = 60.0
"""Until a peer leaves for good, in the mean: half of all do so within six weeks."""

GROUPS = 48
"""A model of 24 GiB."""

ROW_MB = 67.1
"""Of a whole group: 64 chunks of 1 MiB."""

COPIES = (2, 3)
"""Kept for comparison."""

PEERS_MIN, PEERS_MAX = 20, 2000

_MODEL = ModelId("0" * 64)


@dataclass
class _Peer:
    """One machine, in virtual time."""

    name: PeerId
    lent: int
    leaves_s: float
    turns_s: float
    is_up: bool
    seen_s: float = 0.0


@dataclass
class _Kept:
    """Groups kept in one way: by code, or in a number of copies."""

    group: Group
    copies: int
    holds: list[dict[PeerId, set[int]]] = field(default_factory=list)
    """Rows of those who have not left for good, group by group."""
    short_since: dict[int, float] = field(default_factory=dict)
    looked: dict[int, object] = field(default_factory=dict)
    """What each group was like when nothing was to be done."""
    lost_rows: int = 0
    moved_rows: int = 0
    lost_groups: set[int] = field(default_factory=set)
    stored: float = 0.0
    away_groups: int = 0
    away_rows: int = 0
    looks: int = 0

    @property
    def need(self) -> int:
        """How many different rows give all."""
        return self.group.data


class StorageRun:
    """One run."""

    def __init__(self, peers: int, up: float, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 -- the same run for the same seed
        self._up, self.arrived, self.now_s = up, 0, 0.0
        self.peers: dict[PeerId, _Peer] = {}
        self._answered = self._asked = 0.0
        self.gone: dict[PeerId, _Peer] = {}
        """Those who left for good, as long as others may take them for being away."""
        for _ in range(peers):
            self._arrive()
        group = Group(0, DATA_SHARES, DATA_SHARES, PARITY_SHARES)
        self.code = _Kept(group, choose_copies(DATA_SHARES, PARITY_SHARES, peers, up))
        self.ways = [self.code, *(_Kept(group, copies) for copies in COPIES)]
        lent = {name: peer.lent for name, peer in self.peers.items()}
        for number in range(GROUPS):
            order = ranked(_MODEL, number, lent)
            for way in self.ways:
                due = way.group.slots(way.copies)
                holds: dict[PeerId, set[int]] = {}
                for peer, row in zip(order, due, strict=False):
                    holds.setdefault(peer, set()).add(row)
                way.holds.append(holds)

    def _arrive(self) -> None:
        self.arrived += 1
        chance = self._chance
        is_up = chance.random() < self._up
        name = PeerId(f"12D3KooW{self.arrived:044}")
        self.peers[name] = _Peer(
            name,
            round(20 * chance.lognormvariate(0, 0.7)) + 1,
            self.now_s + chance.expovariate(1 / (STAY_DAYS * 86_400)),
            self.now_s + chance.expovariate(1 / self._mean_s(is_up=is_up)),
            is_up,
            self.now_s,
        )

    def _mean_s(self, *, is_up: bool) -> float:
        up_s = UP_HOURS * 3600
        return up_s if is_up else up_s * (1 - self._up) / self._up

    def step(self) -> None:
        """Let peers come and go, and keep what there is."""
        self.now_s += STEP_S
        for name, peer in [*self.peers.items()]:
            if peer.leaves_s <= self.now_s:
                del self.peers[name]
                self.gone[name] = peer
                for way in self.ways:
                    for holds in way.holds:
                        way.lost_rows += len(holds.get(name, ()))
                self._arrive()
                continue
            while peer.turns_s <= self.now_s:
                peer.is_up = not peer.is_up
                peer.turns_s += self._chance.expovariate(1 / self._mean_s(is_up=peer.is_up))
            if peer.is_up:
                peer.seen_s = self.now_s
        up = {name for name, peer in self.peers.items() if peer.is_up}
        self._asked += len(self.peers)
        self._answered += len(up)
        available = measured_up(self._answered, self._asked)
        known = self.peers | self.gone
        silent = {n: self.now_s - each.seen_s if n not in up else 0.0 for n, each in known.items()}
        here = present(silent, available)
        lent = {name: known[name].lent for name in here}
        for name in [name for name in self.gone if name not in here]:
            del self.gone[name]
            for way in self.ways:
                for holds in way.holds:
                    holds.pop(name, None)
        for number in range(GROUPS):
            order: list[PeerId] = []
            for way in self.ways:
                order = self._keep(way, number, order, lent, silent, up, available)

    def _keep(
        self,
        way: _Kept,
        number: int,
        order: list[PeerId],
        lent: Mapping[PeerId, int],
        silent: Mapping[PeerId, float],
        up: Collection[PeerId],
        available: float,
    ) -> list[PeerId]:
        """Do for one group what its keepers would; return the order, computed if it was needed."""
        holds = way.holds[number]
        real = [rows for name, rows in holds.items() if name in self.peers]
        way.looks += 1
        way.stored += sum(map(len, real))
        reached = set[int]().union(*(rows for name, rows in holds.items() if name in up))
        # Data rows that are up are read as they are, whether or not the others can be computed.
        is_whole = len(reached) >= way.need and not way.copies
        away = 0 if is_whole else way.need - len(reached & set(range(way.need)))
        way.away_rows += away
        way.away_groups += away > 0
        if len(set[int]().union(*real)) < way.need:
            way.lost_groups.add(number)
        counted = present({name: silent[name] for name in holds}, available)
        state = frozenset(counted)
        if way.looked.get(number) == state:
            return order
        order = order or ranked(_MODEL, number, lent)
        told = {name: rows for name, rows in holds.items() if name in counted}
        is_done = True
        owners = [name for name in order if name in up]
        for me in (owners[0], *(name for name in told if name in up), *owners[: len(told) + 8]):
            wanted = wishes(way.group, me, order, told, up, way.copies)
            if me == owners[0]:
                is_done &= self._rebuild(way, number, me, wanted.is_short, wanted.lost, reached)
            for row in wanted.take:
                holds.setdefault(me, set()).add(row)
                way.moved_rows += 1
                is_done = False
            if wanted.release:
                holds[me] -= wanted.release
                is_done = False
            if wanted.take or wanted.release:
                told = {name: rows for name, rows in holds.items() if name in counted | {me}}
        if is_done:
            way.looked[number] = state
        else:
            way.looked.pop(number, None)
        return order

    def _rebuild(
        self,
        way: _Kept,
        number: int,
        me: PeerId,
        is_short: bool,
        lost: Collection[int],
        reached: Collection[int],
    ) -> bool:
        """Rebuild a group that has been short for long; return whether nothing is pending."""
        if not (is_short and lost):
            way.short_since.pop(number, None)
            return True
        since = way.short_since.setdefault(number, self.now_s)
        if self.now_s - since < SHORT_S or len(reached) < way.need:
            return False
        own = way.holds[number].setdefault(me, set())
        way.moved_rows += way.need - min(len(own), way.need)  # what it reads of others
        own |= set(lost)
        del way.short_since[number]
        return False


def _report(way: _Kept) -> dict[str, Any]:
    rows = GROUPS * way.need
    looks = way.looks
    return {
        "storage_times": round(way.stored / (looks / GROUPS) / rows, 3),
        "groups_lost": len(way.lost_groups),
        "groups_out_of_reach": round(way.away_groups / looks, 5),
        "rows_out_of_reach": round(way.away_rows / (looks * way.need), 5),
        "lost_gb": round(way.lost_rows * ROW_MB / 1e3, 1),
        "moved_gb": round(way.moved_rows * ROW_MB / 1e3, 1),
        "moved_per_lost": round(way.moved_rows / way.lost_rows, 2) if way.lost_rows else None,
    }


def storage(
    peers: int, days: float, up: float, seed: int, on_share: Callable[[float], None]
) -> dict[str, Any]:
    """Simulate and return what ``p2pinfer sim storage`` prints.

    Args:
        peers: how many lend space at any time.
        days: virtual days.
        up: the share of time that each is up.
        seed: of the random numbers.
        on_share: told the finished share.

    Returns:
        For the way that ``scheduler.keeping`` chooses, and for 2 and 3 copies: ``storage_times``
        the model's size on disks, groups lost for good, the share of time in which not all of a
        group could be had and in which a single row of it could not, what was lost with peers that
        left and what was moved to repair it.
    """
    run = StorageRun(peers, up, seed)
    steps = round(days * 86_400 / STEP_S)
    for step in range(steps):
        run.step()
        on_share((step + 1) / steps)
    way = f"{run.code.copies} copies" if run.code.copies else "code"
    ways = {way: run.code} | {f"copies_{each.copies}": each for each in run.ways[1:]}
    return {
        "peers": peers,
        "days": days,
        "up": up,
        "seed": seed,
        "left_for_good": run.arrived - peers,
        "model_gb": round(GROUPS * DATA_SHARES * ROW_MB / 1e3, 1),
        "chosen": way,
        **{name: _report(each) for name, each in ways.items()},
    }
