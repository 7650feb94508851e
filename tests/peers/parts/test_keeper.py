"""Peers that lend space share a model out among themselves, and rebuild what is lost."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.ids import PeerId
from p2pinfer.core.manifest import CHUNK_BYTES
from p2pinfer.engine.store.store import Store
from peers.parts.keep_server import KeepServer
from peers.parts.keeper import Keeper, KeptState, Lending
from peers.parts.protocol import Tally, in_place
from peers.parts.server import PartsServer
from tests.peers.parts.test_mend import HostileStorer
from tests.support.coded import Coded, coded_model
from tests.support.parts_swarm import Swarm, swarm
from tests.support.swarm import peer
from transports.memory.network import MemoryTransport

GIB = 1 << 30
HOUR_S = 3600.0


class Counted(Tally):
    """Remembers what a keeper had of others."""

    def __init__(self) -> None:
        self.bytes_had: Counter[PeerId] = Counter()
        self.byte_s_kept: Counter[PeerId] = Counter()

    def had(self, peer: PeerId, count: int) -> None:
        """Note bytes."""
        self.bytes_had[peer] += count

    def kept(self, peer: PeerId, byte_s: int) -> None:
        """Note bytes times seconds."""
        self.byte_s_kept[peer] += byte_s


class Storers:
    """Keepers in one memory network, with what each said last."""

    def __init__(self, made: Swarm, coded: Coded) -> None:
        self.made, self.coded = made, coded
        self.stores: dict[PeerId, Store] = {}
        self.keepers: dict[PeerId, Keeper] = {}
        self.kept: dict[PeerId, KeptState] = {}
        self.saved: dict[PeerId, bytes] = {}
        self.tallies: dict[PeerId, Counted] = {}

    async def add(self, name: str, space_bytes: int = GIB, store: Store | None = None) -> PeerId:
        """Start a keeper; one of a former name goes on where it was."""
        me = peer(name)
        store = self.stores.setdefault(me, store or Store(self.made.root / name))
        store.add_manifest(self.coded.model.manifest.encode(), self.coded.model.id)

        def save(data: bytes) -> None:
            self.saved[me] = data

        def watch(kept: KeptState) -> None:
            self.kept[me] = kept

        def listen(transport: MemoryTransport) -> None:
            PartsServer(transport, store, in_place).listen()
            server = KeepServer(transport, store, in_place)
            server.listen()
            layout = self.coded.layout
            lending = Lending(space_bytes, layout.k, layout.m, lambda: self.saved.get(me), save)
            self.keepers[me] = Keeper(
                transport,
                self.made.holders,
                store,
                self.coded.model.manifest,
                lending,
                server,
                random.Random(name),
                watch=watch,
                blame=self.made.blamed.append,
                run=in_place,
                tally=self.tallies.setdefault(me, Counted()),
            )

        await self.made.join(name, listen)
        await self.made.nursery.start(self._run, me)
        return me

    async def _run(self, me: PeerId, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as scope:
            leave = self.made.leave[me]

            def stop() -> None:
                leave()
                scope.cancel()

            self.made.leave[me] = stop
            task_status.started()
            await self.keepers[me].run()

    def kill(self, who: PeerId) -> None:
        """End a peer; others notice at once that it is away."""
        self.made.leave[who]()
        del self.made.known[who]
        self.kept.pop(who, None)

    async def until(self, is_so: Callable[[], bool], hours: float = 6) -> None:
        """Wait until something is so, by the virtual clock."""
        end_s = trio.current_time() + hours * HOUR_S
        while not (is_done := is_so()) and trio.current_time() < end_s:  # noqa: ASYNC110
            await trio.sleep(60)
        assert is_done, self.kept

    async def until_safe(self, losses: int, hours: float = 6) -> None:
        """Wait until every peer that is there says how many may be lost."""
        await self.until(lambda: {k.may_lose for k in self.kept.values()} == {losses}, hours)

    def rows(self, who: PeerId) -> int:
        """Return how many rows a keeper holds."""
        return len(self.keepers[who]._held)


async def test_sixteen_keep_a_model_and_any_eight_give_it_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """They take rows from one that has it all; it and seven die, and a newcomer gets it all."""
    coded = coded_model(layers=4)
    async with swarm(tmp_path, coded.model) as made:
        storers = Storers(made, coded)
        names = [await storers.add("k0", store=coded.model.fill(Store(tmp_path / "k0")))]
        names += [await storers.add(f"k{n}") for n in range(1, 16)]
        await storers.until_safe(8)
        plans = {store.plan(coded.model.manifest) for store in storers.stores.values()}
        assert plans == {coded.plan}
        await trio.sleep(HOUR_S)
        groups = len(coded.layout.grouped())
        assert {storers.kept[who].rows for who in names[1:]} == {groups}
        for who in (names[0], *random.Random(3).sample(names[1:], 7)):
            storers.kill(who)
        with trio.fail_after(HOUR_S):
            await made.fetch()
        assert made.is_whole()
        assert made.blamed == []


async def test_what_others_keep_counts_between_two_checks_of_them(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Bytes times the time, at most what each lends; and nothing while one is away."""
    coded = coded_model(layers=4)
    async with swarm(tmp_path, coded.model) as made:
        storers = Storers(made, coded)
        size = coded.model.manifest.size
        first = await storers.add("k0", store=coded.model.fill(Store(tmp_path / "k0")))
        others = [await storers.add(name, size // 2) for name in ("k1", "k2")]
        await trio.sleep(3 * HOUR_S)
        counted, known = storers.tallies[first], storers.keepers[first].census.known
        sizes = storers.keepers[first]._rows.size
        before = Counter(counted.byte_s_kept)
        await trio.sleep(12 * HOUR_S)
        for who in others:
            held = min(sum(sizes[row] for row in known[who].rows), size // 2)
            mean = (counted.byte_s_kept[who] - before[who]) / (12 * HOUR_S)
            assert mean == pytest.approx(held, rel=0.05)
        assert all(storers.tallies[who].bytes_had for who in others)
        storers.kill(others[1])
        before = Counter(counted.byte_s_kept)
        await trio.sleep(2 * HOUR_S)
        assert counted.byte_s_kept[others[1]] == before[others[1]]
        assert counted.byte_s_kept[others[0]] > before[others[0]]


async def test_a_night_off_moves_nothing(autojump_clock: MockClock, tmp_path: Path) -> None:
    """One that is away for eight hours comes back to its rows; nobody else took them."""
    coded = coded_model(3, 2, layers=2)
    async with swarm(tmp_path, coded.model) as made:
        storers = Storers(made, coded)
        names = [await storers.add("k0", store=coded.model.fill(Store(tmp_path / "k0")))]
        names += [await storers.add(f"k{n}") for n in range(1, 6)]
        await storers.until_safe(2)
        await trio.sleep(HOUR_S)
        before = {who: storers.rows(who) for who in names}
        sleeper = next(who for who in names[1:] if before[who])
        storers.kill(sleeper)
        await trio.sleep(8 * HOUR_S)
        assert {storers.rows(who) for who in names if who != sleeper and not before[who]} == {0}
        await storers.add(next(f"k{n}" for n in range(1, 6) if peer(f"k{n}") == sleeper))
        await trio.sleep(HOUR_S)
        assert {who: storers.rows(who) for who in names} == before
        await storers.until_safe(2)


async def test_who_stays_away_is_replaced(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while two that are silent count as gone, and others rebuild their rows."""
    gone_s = 6 * HOUR_S
    monkeypatch.setattr("scheduler.keeping.GONE_S", gone_s)
    coded = coded_model(3, 2, layers=2)
    async with swarm(tmp_path, coded.model) as made:
        storers = Storers(made, coded)
        names = [await storers.add("k0", store=coded.fill(tmp_path / "k0", {0, 1, 2}))]
        names += [await storers.add(f"k{n}") for n in range(1, 7)]
        await storers.until_safe(2)
        having = [who for who in names if storers.rows(who)]
        storers.kill(having[0])
        await trio.sleep(gone_s / 2)
        storers.kill(having[1])
        names = [who for who in names if who not in having[:2]]
        await storers.until_safe(2, 12)


async def test_no_more_is_kept_than_there_is_space_for(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Rows that do not fit stay where they are; the peer says what it lends."""
    coded = coded_model(3, 2, layers=2)
    async with swarm(tmp_path, coded.model) as made:
        await made.add("seeder")
        storers = Storers(made, coded)
        space = 3 * CHUNK_BYTES
        (me,) = [await storers.add("small", space)]
        await trio.sleep(2 * HOUR_S)
        assert 0 < storers.kept[me].kept_bytes <= space
        assert storers.kept[me].copies == 1


@pytest.mark.parametrize("kind", ["lies", "vanishes", "is silent"])
async def test_storers_that_have_nothing_are_found_out(
    autojump_clock: MockClock, tmp_path: Path, kind: str
) -> None:
    """Spot checks tell who lies, refuses, or vanishes; the model is kept without them."""
    coded = coded_model(3, 2, layers=2)
    async with swarm(tmp_path, coded.model) as made:
        seeder = await made.add("seeder")
        liar = await made.join("liar", HostileStorer(coded, kind).listen)
        storers = Storers(made, coded)
        for n in range(5):
            await storers.add(f"k{n}")
        await storers.until(
            lambda: all(
                liar in k.census.known and not k.census.known[liar].rows
                for k in storers.keepers.values()
            ),
            24,
        )
        assert {error.peer for error in made.blamed} == {liar}
        storers.kill(liar)
        await storers.until(lambda: min(k.may_lose for k in storers.kept.values()) > 0)
        storers.kill(seeder)
        with trio.fail_after(HOUR_S):
            await made.fetch()
        assert made.is_whole()


async def test_a_wrong_plan_is_not_adopted(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Peers that offer parity of nonsense are blamed, and a true plan is made."""
    coded, spoilt = coded_model(3, 2, layers=2), coded_model(3, 2, layers=2, spoil=True)
    async with swarm(tmp_path, coded.model) as made:
        await made.add("seeder")
        liars = {
            await made.serve(f"liar-{n}", spoilt.fill(tmp_path / f"liar-{n}", {3, 4}))
            for n in range(3)
        }
        storers = Storers(made, coded)
        names = [await storers.add(f"k{n}") for n in range(5)]
        await storers.until_safe(2, 24)
        assert {storers.stores[who].plan(coded.model.manifest) for who in names} == {coded.plan}
        assert {error.peer for error in made.blamed} == liars
