"""Which chunk to request from which holder: none twice, none forgotten, bounds kept, to the end."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.ids import ChunkId, PartHash, PeerId
from p2pinfer.core.manifest import CHUNK_BYTES
from scheduler.fetching import (
    CHUNK_S_MIN,
    DEFAULT_REST_S,
    DEFAULTS_MAX,
    FIRST_CHUNK_S_MAX,
    HOLDERS_MAX,
    IN_FLIGHT_MAX,
    IN_FLIGHT_PER_HOLDER_MAX,
    REST_S_MAX,
    REST_S_MIN,
    SLOW_FACTOR,
    Fetching,
)

PEERS = [PeerId(name) for name in "abcdefghij"]
A, B = PEERS[:2]


def chunks(count: int) -> list[ChunkId]:
    """Make chunks of two parts."""
    return [ChunkId(PartHash("xy"[n % 2] * 64), n // 2) for n in range(count)]


def plan(count: int, claims: dict[PeerId, Iterable[ChunkId]], start: float = 0.0) -> Fetching:
    """Make a plan for ``count`` chunks whose holders have claimed theirs."""
    made = Fetching(dict.fromkeys(chunks(count), CHUNK_BYTES), start)
    assert made.link(claims, 0.0) == list(claims)
    for peer, claimed in claims.items():
        made.claim(peer, claimed)
    return made


class World:
    """Holders that react in any way to requests, and what the plan must never do."""

    def __init__(self, count: int, chance: random.Random) -> None:
        self.chance, self.now = chance, 0.0
        self.all = chunks(count)
        self.plan = Fetching(dict.fromkeys(self.all, CHUNK_BYTES), chance.random())
        self.asked: dict[ChunkId, PeerId] = {}
        self.storing: dict[ChunkId, PeerId] = {}
        self.stored: set[ChunkId] = set()
        self.liars: set[PeerId] = set()
        self.honest = PEERS[0]  # holds everything, and does not lie
        self.claims = {p: set(chance.sample(self.all, chance.randint(0, count))) for p in PEERS}
        self.claims[self.honest] = set(self.all)

    def ask(self) -> None:
        """Let the plan make requests, and check its promises."""
        for peer, chunk in self.plan.ask(self.now):
            assert peer in self.plan.linked
            assert peer not in self.liars
            assert chunk in self.claims[peer]
            assert chunk not in self.asked.keys() | self.storing.keys() | self.stored
            self.asked[chunk] = peer
        both = [*self.asked.values(), *self.storing.values()]
        assert self.plan.in_flight == len(both) <= IN_FLIGHT_MAX
        assert all(both.count(peer) <= IN_FLIGHT_PER_HOLDER_MAX for peer in PEERS)
        assert len(self.plan.linked) <= HOLDERS_MAX
        assert set(self.plan.missing) == set(self.all) - self.stored

    def lose(self, peer: PeerId) -> None:
        """A holder is gone."""
        self.plan.lost(peer, self.now)
        self.asked = {chunk: other for chunk, other in self.asked.items() if other != peer}

    def step(self, *, kind: bool) -> None:
        """Let something happen; only what advances the transfer, if ``kind``."""
        self.now += 40.0 if kind else self.chance.choice((0.0, 0.01, 1.0, 40.0))
        known = self.chance.sample(PEERS, len(PEERS))
        for peer in self.plan.link(known if not kind else [self.honest], self.now):
            self.plan.claim(peer, self.claims[peer])
        event = (0 if self.asked else 1) if kind else self.chance.randrange(8)
        if event == 0 and self.asked:
            chunk = self.chance.choice(list(self.asked))
            self.storing[chunk] = peer = self.asked.pop(chunk)
            self.plan.arrived(peer, chunk, self.now)
        elif event == 1 and self.storing:
            chunk = self.chance.choice(list(self.storing))
            self.plan.stored(self.storing.pop(chunk), chunk)
            self.stored.add(chunk)
        elif event == 2 and self.plan.linked:
            self.lose(self.chance.choice(self.plan.linked))
        elif event == 3 and self.asked:
            chunk = self.chance.choice(list(self.asked))
            if (peer := self.asked[chunk]) != self.honest:
                self.plan.denied(peer, chunk)
                self.claims[peer].discard(chunk)
                del self.asked[chunk]
        elif event == 4 and self.storing:
            chunk = self.chance.choice(list(self.storing))
            if (peer := self.storing[chunk]) != self.honest:
                del self.storing[chunk]
                self.liars.add(peer)
                self.plan.spoilt(peer, chunk)
                if peer in self.plan.linked:
                    self.lose(peer)
        elif event == 5:
            for peer in self.plan.slow(self.now):
                self.lose(peer)
        elif event == 6 and self.plan.linked:
            peer = self.chance.choice(self.plan.linked)
            if peer != self.honest:
                self.claims[peer] |= set(self.chance.sample(self.all, len(self.all) // 2))
            self.plan.claim(peer, self.claims[peer])
        elif event == 7:
            for peer in self.plan.useless():
                self.lose(peer)
        self.ask()


@settings(max_examples=200)
@given(st.integers(1, 90), st.integers(0, 300), st.integers(0, 1 << 32))
def test_whatever_holders_do(count: int, events: int, seed: int) -> None:
    """No chunk is requested twice at once, bounds hold, and with one good holder it ends."""
    world = World(count, random.Random(seed))
    for _ in range(events):
        world.step(kind=False)
    for peer in world.plan.linked:  # then all but one leave
        if peer != world.honest:
            world.lose(peer)
    for _ in range(2 * count + 200):
        if world.plan.done:
            break
        world.step(kind=True)
    assert world.plan.done
    assert world.stored == set(world.all)
    assert (world.plan.in_flight, world.plan.bytes_left) == (0, 0)


def test_the_rarest_first() -> None:
    """Chunks with a single holder are requested before those that both have."""
    every = chunks(20)
    made = plan(20, {A: every[:3] + every[10:], B: every[3:]})
    asked = made.ask(0.0)
    assert [c for p, c in asked if p == A][:3] == every[:3]
    assert [c for p, c in asked if p == B][:6] == every[3:9]


@pytest.mark.parametrize("start", [0.0, 0.5, 0.99])
def test_each_begins_elsewhere(start: float) -> None:
    """Among equals the order begins where it is told to, and wraps around."""
    every = chunks(20)
    asked = [chunk for _, chunk in plan(20, {A: every}, start).ask(0.0)]
    first = int(20 * start)
    assert asked == (every[first:] + every[:first])[:IN_FLIGHT_PER_HOLDER_MAX]


def bring(made: Fetching, peer: PeerId, chunk: ChunkId, now: float) -> None:
    """Let a chunk arrive and be stored."""
    made.arrived(peer, chunk, now)
    made.stored(peer, chunk)


def test_a_slow_one_is_not_given_the_last_chunks() -> None:
    """What the fast holder brings sooner is left to it, unless it goes."""
    made = plan(14, dict.fromkeys((A, B), chunks(14)))
    asked = made.ask(0.0)
    for n, (_, chunk) in enumerate([each for each in asked if each[0] == A], 1):
        bring(made, A, chunk, 0.1 * n)
    for n, (_, chunk) in enumerate([each for each in asked if each[0] == B], 1):
        bring(made, B, chunk, 10.0 * n)
    assert [peer for peer, _ in made.ask(61.0)] == [A, A]
    made.lost(A, 61.0)
    assert [peer for peer, _ in made.ask(61.0)] == [B, B]


def test_when_a_holder_is_slow() -> None:
    """Patience is long at first, and then a multiple of what its chunks took."""
    made = plan(10, {A: chunks(10)})
    asked = made.ask(5.0)
    assert made.slow(5.0 + FIRST_CHUNK_S_MAX) == []
    assert made.slow(5.1 + FIRST_CHUNK_S_MAX) == [A]
    bring(made, A, asked[0][1], 9.0)  # 4 s a chunk
    assert made.slow(9.0 + SLOW_FACTOR * 4.0) == []
    assert made.slow(9.1 + SLOW_FACTOR * 4.0) == [A]
    for _, chunk in asked[1:]:
        bring(made, A, chunk, 9.0)
    assert made.slow(1000.0) == []  # it owes nothing
    made.ask(1000.0)
    assert made.slow(1000.0 + CHUNK_S_MIN) == []


def test_a_small_chunk_says_nothing_of_the_rate() -> None:
    """A thousand bytes in 15 ms are no reason to wait a minute for a whole chunk."""
    small, whole = chunks(2)
    made = Fetching({small: 1000, whole: CHUNK_BYTES}, 0.0)
    made.link([A], 0.0)
    made.claim(A, [small, whole])
    made.ask(0.0)
    bring(made, A, small, 0.015)
    assert made.slow(0.1 + FIRST_CHUNK_S_MAX) == [A]


def test_a_failing_holder_rests_longer_each_time() -> None:
    """A holder that keeps failing is tried less and less often, until it brings a chunk."""
    made = plan(10, {A: chunks(10)})
    now, rest_s = 0.0, REST_S_MIN
    for _ in range(12):
        made.lost(A, now)
        assert made.link([A], now + rest_s - 0.01) == []
        now += rest_s
        assert made.link([A], now) == [A]
        rest_s = min(REST_S_MAX, 2 * rest_s)
    made.claim(A, chunks(10))
    bring(made, A, made.ask(now)[0][1], now)
    made.lost(A, now)
    assert made.link([A], now + REST_S_MIN) == [A]


def test_useless_holders_make_room() -> None:
    """When all places are taken, holders without anything for us give theirs up."""
    useful = {peer: chunks(4) for peer in PEERS[: HOLDERS_MAX - 1]}
    made = plan(4, {**useful, PEERS[-1]: []})
    assert made.link([PEERS[-2]], 0.0) == []
    assert made.useless() == [PEERS[-1]]
    made.lost(PEERS[-1], 0.0)
    assert made.useless() == []
    assert made.link([PEERS[-2]], 0.0) == [PEERS[-2]]


def test_parts_without_a_holder_are_named() -> None:
    """A part counts while one chunk of it cannot be requested from any holder."""
    every = chunks(6)
    made = plan(6, {A: every[:4]})
    assert made.nobody_holds() == {every[4].part, every[5].part}
    made.claim(A, every[:5])
    assert made.nobody_holds() == {every[5].part}
    made.lost(A, 0.0)
    assert made.nobody_holds() == {every[4].part, every[5].part}


def test_a_chunk_made_elsewhere_is_no_longer_missing() -> None:
    """Unless it was requested meanwhile: then it comes."""
    every = chunks(3)
    made = plan(3, {A: every[:1]})
    assert made.unheld() == sorted(every[1:])
    assert made.made(every[1])
    assert not made.made(every[1])
    made.ask(0.0)
    assert not made.made(every[0])
    assert set(made.missing) == {every[0], every[2]}
    bring(made, A, every[0], 1.0)
    assert made.made(every[2])
    assert made.done


def test_a_holder_that_brings_nothing_is_doubted() -> None:
    """Twice in a row, while chunks were due; one chunk that it brings clears it."""
    every = chunks(2)
    made = plan(2, {A: every})
    now = 0.0
    for _ in range(DEFAULTS_MAX):
        assert made.doubted == set()
        made.link([A], now)
        made.claim(A, every)
        made.ask(now)
        made.lost(A, now)
        now += REST_S_MAX
    assert made.doubted == {A}
    assert made.link([A], now) == []
    assert made.unheld() == sorted(every)
    now += DEFAULT_REST_S
    assert made.link([A], now) == [A]
    made.claim(A, every)
    made.ask(now)
    bring(made, A, every[0], now)
    assert made.doubted == set()
    made.ban(A)
    assert made.doubted == {A}
