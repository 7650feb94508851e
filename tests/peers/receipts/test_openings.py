"""Openings between a requester and real stages, whose engines are fakes."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pinfer.core.errors import PeerError, PeerUnavailable, RemoteProtocolError
from p2pinfer.core.messages import Linked, Refusal
from p2pinfer.core.opening import (
    BadOpening,
    OpenedTrace,
    check_roots,
    check_shown,
    check_signed,
    decode,
    encode,
)
from p2pinfer.core.proving import CellRows, CellsAre, PledgeIs, StepsAre
from p2pinfer.core.receipts import Signed
from p2pinfer.core.regimes import Regime
from p2pinfer.core.shown_layers import ShownLayers
from p2pinfer.core.traced import Traced
from p2pinfer.engine.base import CannotCopy
from peers.asking.experience import INNOCENT
from peers.asking.session import Session
from peers.receipts import openings, prover
from peers.receipts.openings import CELLS_S_MAX, AskedRow, CommittedCells, open_cells
from peers.receipts.prover import (
    ASKED_S_MAX,
    CHANNEL_BYTES_MIN,
    OPENINGS,
    PEER_BYTES_MAX,
    PEER_BYTES_PER_S,
    RETRY_MS,
)
from peers.receipts.session_evidence import Evidence
from peers.steps.messaging import RefusedError, receive, send
from tests.support import fake_engines
from tests.support.fake_engines import CELL_BYTES, ROW_BYTES
from tests.support.swarm import (
    CHAINS,
    KEYS,
    PROMPT,
    Swarm,
    answer,
    swarm,
)
from transports.base import Channel
from transports.identity import verify


@dataclass
class Settled:
    """An answer whose stages have signed for it, in a session that is still open."""

    made: Swarm
    session: Session
    evidence: Evidence
    positions: int

    def receipt(self, index: int) -> Signed:
        """Return a stage's receipt for all positions."""
        return self.evidence.stages[index].signed(self.positions)[self.positions]

    def cells(
        self, index: int, *, by_layers: bool = False
    ) -> AbstractAsyncContextManager[CommittedCells]:
        """Ask a stage to sign for its cells."""
        hop, terms = self.made.route[index], self.evidence.terms
        return open_cells(self.made.me, hop, terms, self.receipt(index), by_layers=by_layers)

    async def rows(self, index: int, positions: Iterable[int]) -> dict[int, AskedRow]:
        """Return what came into a stage."""
        found = {}
        for at in positions:
            opened = await self.evidence.inputs(index, at, 1)
            found[at] = AskedRow(opened.rows, opened.regimes[0])
        return found

    async def open(self, index: int, *positions: int) -> list[OpenedTrace]:
        """Have rows opened, and check what needs no layers."""
        async with self.cells(index) as cells:
            found = await opened(cells, await self.rows(index, positions))
        await wait_all_tasks_blocked()  # until the stage has noticed
        return found


async def opened(cells: CommittedCells, rows: dict[int, AskedRow]) -> list[OpenedTrace]:
    """Have rows opened."""
    await cells.ask(rows)
    return [await cells.next() for _ in rows]


@asynccontextmanager
async def settled(count: int = 3) -> AsyncIterator[Settled]:
    """Answer once, through that many stages."""
    async with swarm(CHAINS[count], evidence=True) as made, made.open() as session:
        await answer(session, PROMPT[:100])
        evidence, positions = session.evidence, len(session.tokens)
        assert evidence
        assert await evidence.settle(positions) is None
        yield Settled(made, session, evidence, positions)


async def test_rows_of_every_stage_are_opened(autojump_clock: MockClock) -> None:
    """In all regimes: signed, on the receipt's roots, with all K and V rows up to there."""
    async with settled() as it:
        for index, hop in enumerate(it.made.route):
            found = await it.open(index, 0, 63, 64, 99, 100, it.positions - 1)
            assert {each.pledge.regime for each in found} == set(Regime)
            for each in found:
                assert decode(encode(each)) == each
                check_signed(each, verify)
                receipt = check_roots(each)
                assert (receipt.first, receipt.end) == (hop.first, hop.end)
                shown = each.pledge.position + 1
                assert [layer.layer for layer in each.layers] == [*range(hop.first, hop.end)]
                for layer in each.layers:
                    assert len(layer.keys) == len(layer.values) == shown * CELL_BYTES
                last = each.layers[-1].step(Traced.OUT).tobytes()
                assert last == each.row.sent
                assert each.layers[0].given == each.row.received


async def test_a_session_goes_on_beside_its_openings(autojump_clock: MockClock) -> None:
    """What is answered meanwhile is what would be answered without."""
    async with settled() as it, it.cells(1) as cells:
        rows = await it.rows(1, [5, 100])
        more = [*it.session.tokens, 3, 4, 5]
        tokens = await answer(it.session, more)
        found = await opened(cells, rows)
        assert [check_roots(each).position for each in found] == [it.positions] * 2
    async with swarm(CHAINS[3], evidence=True) as made, made.open() as session:
        await answer(session, PROMPT[:100])
        assert await answer(session, more) == tokens


async def test_nothing_is_opened_for_others(autojump_clock: MockClock) -> None:
    """Nor for a session that is over, or about a receipt that the stage did not sign."""
    async with settled() as it:
        hop, terms = it.made.route[1], it.evidence.terms
        async with it.made.network.join(KEYS[7].peer_id) as stranger:
            with pytest.raises(RefusedError, match="no such session"):
                async with open_cells(stranger, hop, terms, it.receipt(1)):
                    pass
        forged = evolve(it.receipt(1), signature=bytes(64))
        for receipt in (forged, it.receipt(0)):
            with pytest.raises(RefusedError, match="none of ours"):
                async with open_cells(it.made.me, hop, terms, receipt):
                    pass
    with pytest.raises(PeerUnavailable):
        await it.open(1, 0)


async def test_other_rows_are_refused(autojump_clock: MockClock) -> None:
    """A row that did not come in, or a position that the receipt does not cover."""
    async with settled() as it:
        true = (await it.rows(1, [7]))[7]
        false = AskedRow(bytes(ROW_BYTES), true.regime)
        for rows, why in (
            ({7: false}, "did not come in"),
            ({8: true}, "did not come in"),
            ({it.positions: true}, "does not cover"),
            ({7: AskedRow(true.row[4:], true.regime)}, "does not cover"),
        ):
            async with it.cells(1) as cells:
                with pytest.raises(RefusedError, match=why):
                    await cells.ask(rows)


async def test_a_session_that_went_back_is_not_opened(autojump_clock: MockClock) -> None:
    """The stage no longer has what it signed for, neither before nor after its statement."""
    async with settled() as it:
        rows = await it.rows(1, [3])
        async with it.cells(1) as cells:
            await answer(it.session, PROMPT[:50], 5)
            with pytest.raises(RefusedError, match="gone back"):
                await cells.ask(rows)
        with pytest.raises(RefusedError, match="gone back"):
            async with it.cells(1):
                pass


async def test_a_flood_is_told_when_to_come_back(autojump_clock: MockClock) -> None:
    """Beyond its share a requester gets nothing but that, until time has passed."""
    async with settled() as it:
        for _ in range(PEER_BYTES_MAX // CHANNEL_BYTES_MIN):
            await it.open(1, 9)
        with pytest.raises(RefusedError, match="just now") as no:
            await it.open(1, 9)
        assert no.value.refused.code is Refusal.BUSY
        assert no.value.refused.retry_ms == RETRY_MS
        await trio.sleep(CHANNEL_BYTES_MIN / PEER_BYTES_PER_S)
        await it.open(1, 9)


async def test_who_stalls_holds_nobody_up_for_long(autojump_clock: MockClock) -> None:
    """One that asks and names no rows is dropped, and so is one that asks nothing."""
    async with settled() as it:
        machine = it.made.engines[1].machine
        async with it.cells(1):
            assert machine.copies == 1
            with pytest.raises(RefusedError, match="under way"):
                await it.open(1, 9)  # a second one of the same requester
            await trio.sleep(ASKED_S_MAX + 1)
            assert machine.copies == 0
        await it.open(1, 9)
        assert machine.copies == 0
        channel = await it.made.me.open(it.made.route[1].peer, OPENINGS)
        await trio.sleep(ASKED_S_MAX + 1)
        with pytest.raises(RefusedError, match="too long"):
            await receive(channel)


async def test_an_engine_that_fails_is_no_riddle(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Its refusal says so, and what it never can weighs little; the stage goes on."""
    async with settled() as it:
        engine = it.made.engines[1]
        rows = await it.rows(1, [9])
        async with it.cells(1) as cells:
            engine.machine.die()
            with pytest.raises(RefusedError, match="died") as no:
                await cells.ask(rows)
        assert no.value.refused.code is Refusal.ENGINE_FAILED
        assert engine.machine.copies == 0
        engine.machine.generation -= 1
        await it.open(1, 9)
        engine.machine.copies = 1  # another session's
        with pytest.raises(RefusedError, match="another session") as no:
            await it.open(1, 9)
        assert no.value.refused.code is Refusal.BUSY
        engine.machine.copies = 0

        async def cannot(_: object, positions: int) -> None:
            raise CannotCopy(f"{positions} positions are too many")

        monkeypatch.setattr(fake_engines._FakeStageSession, "copy", cannot)
        with pytest.raises(RefusedError, match="too many") as no:
            await it.open(1, 9)
        assert no.value.refused.code is Refusal.CONTEXT_FULL
        assert no.value.refused.code in INNOCENT


async def test_a_row_that_comes_out_otherwise_is_not_signed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """An honest stage whose engine gives other bits refuses, and does not sign against itself."""
    async with settled() as it:
        honest = fake_engines.row_of
        monkeypatch.setattr(fake_engines, "row_of", lambda digest: honest(digest[::-1]))
        with pytest.raises(RefusedError, match="otherwise"):
            await it.open(1, 9)
        assert it.made.engines[1].machine.copies == 0


Tamper = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("kind", "tamper", "why"),
    [
        (CellsAre, lambda said: evolve(said, layers=said.layers[1:]), "sign for its K and V"),
        (CellsAre, lambda said: evolve(said, layers=said.layers[::-1]), "sign for its K and V"),
        (
            CellsAre,
            lambda said: evolve(said, signed=evolve(said.signed, signature=bytes(64))),
            "sign for its K and V",
        ),
        (PledgeIs, lambda said: evolve(said, position=8), "something else"),
        (PledgeIs, lambda said: evolve(said, body=said.body[:-1]), "not a pledge"),
        (PledgeIs, lambda said: evolve(said, signature=bytes(64)), "did not sign its pledge"),
        (CellRows, lambda said: evolve(said, layer=said.layer + 1), "another layer"),
        (CellRows, lambda said: evolve(said, count=said.count + 1), "other K and V"),
        (CellRows, lambda said: evolve(said, keys=said.keys + b"k"), "other K and V"),
        (StepsAre, lambda said: evolve(said, layer=said.layer + 1), "another layer"),
        (StepsAre, lambda said: evolve(said, position=8), "another position"),
        (StepsAre, lambda said: evolve(said, given=said.given[:-1]), "row of float32"),
        (StepsAre, lambda said: Linked(), "not due"),
    ],
)
async def test_what_was_not_asked_for_is_the_stages_fault(
    kind: type, tamper: Tamper, why: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Whatever it sends instead, it is named, and nobody waits for it."""
    honest = send

    async def lie(channel: Channel, message: Any) -> None:
        await honest(channel, tamper(message) if isinstance(message, kind) else message)

    async with settled() as it:
        monkeypatch.setattr(prover, "send", lie)
        with pytest.raises(RemoteProtocolError, match=why) as fault:
            await it.open(1, 9)
        assert fault.value.peer == it.made.route[1].peer


async def test_more_bytes_than_allowed_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A stage cannot fill its requester's memory, and a silent one cannot keep it waiting."""
    monkeypatch.setattr(openings, "OPENED_BYTES_MAX", 5_000)
    async with settled() as it:
        with pytest.raises(RemoteProtocolError, match="more than 5000 bytes"):
            await it.open(1, 100)
        it.made.engines[1].machine.decode_s = 100.0
        begun = trio.current_time()
        with pytest.raises(PeerError):
            await it.open(1, 100)
        assert trio.current_time() - begun <= CELLS_S_MAX + 1


async def test_some_layers_are_opened(autojump_clock: MockClock) -> None:
    """Those that are named, of each row others, and K and V only of the first of them."""
    async with settled(1) as it:
        wanted = {9: ShownLayers(26, 5, 2), 64: ShownLayers(27, 3, 3), 100: ShownLayers(4, 1, 0)}
        async with it.cells(0, by_layers=True) as cells:
            assert cells.by_layers
            await cells.ask(await it.rows(0, wanted), wanted)
            found = [await cells.next() for _ in wanted]
        for each, shown in zip(found, wanted.values(), strict=True):
            assert decode(encode(each)) == each
            check_signed(each, verify)
            check_roots(each)
            check_shown(each, shown.of(28))
        with pytest.raises(BadOpening, match="not the layers"):
            check_shown(found[0], ShownLayers(26, 5, 3).of(28))
        async with it.cells(0, by_layers=True) as cells:  # all, unless others are named
            await cells.ask(await it.rows(0, [9]))
            check_shown(await cells.next(), dict.fromkeys(range(28), True))


async def test_layers_of_others_are_refused(autojump_clock: MockClock) -> None:
    """A stage opens what it has, for the rows that it was asked for, and waits for no one long."""
    async with settled() as it:
        rows = await it.rows(1, [9])
        for shown in (ShownLayers(10, 1, 1), ShownLayers(0, 11, 1)):
            async with it.cells(1, by_layers=True) as cells:
                await cells.ask(rows, {9: shown})
                with pytest.raises(RefusedError, match="not among 10"):
                    await receive(cells._channel, StepsAre)
        async with it.cells(1, by_layers=True) as cells:
            cells.by_layers = False  # so that it names none
            await cells.ask(rows)
            await trio.sleep(ASKED_S_MAX + 1)
            with pytest.raises(RefusedError, match="too long"):
                await cells.next()
        assert it.made.engines[1].machine.copies == 0


async def test_a_stage_that_hides_its_leaves_opens_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its signature under the steps is worth nothing without them."""
    honest = send

    async def hide(channel: Channel, message: Any) -> None:
        is_pledge = isinstance(message, PledgeIs)
        await honest(channel, evolve(message, leaves=()) if is_pledge else message)

    async with settled(1) as it:
        monkeypatch.setattr(prover, "send", hide)
        async with it.cells(0, by_layers=True) as cells:
            await cells.ask(await it.rows(0, [9]), {9: ShownLayers(3, 4, 2)})
            with pytest.raises(BadOpening, match="one for each layer"):
                check_roots(await cells.next())
