"""Both ends of openings against strangers: stages that lie to an asker, askers that lie to a stage.

Each case is a whole conversation with one or two messages changed, lost, repeated or exchanged, run
under a mock clock: what one side waits for in vain costs nothing.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from random import Random
from typing import Any

import msgpack
import trio
from attrs import frozen
from trio.testing import MockClock

from p2pinfer.core import opening
from p2pinfer.core.errors import ChannelClosed, PeerError
from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.messages import Hop, Open, Refused
from p2pinfer.core.opening import BadOpening, OpenedTrace, check_roots, check_shown, check_signed
from p2pinfer.core.proving import (
    AskCells,
    AskLayers,
    AskSteps,
    CellRows,
    CellsAre,
    PledgeIs,
    StepsAre,
)
from p2pinfer.core.receipts import Signed, Terms, seal_of
from p2pinfer.core.regimes import Regime
from p2pinfer.core.shown_layers import ShownLayers
from p2pinfer.core.wire import decode, encode
from peers.receipts.openings import AskedRow, open_cells
from peers.receipts.prover import LAYERS_OPENINGS, OPENINGS, Prover
from peers.receipts.signer import ReceiptSigner, SessionRecord, terms_of
from peers.steps.history import Budget, History
from tests.fuzz.damage import damage, packed
from tests.support.fake_engines import ROW_BYTES, FakeStage, submit
from tests.support.swarm import hashing
from transports.base import Handler
from transports.identity import Identity, verify

STAGE, ASKER = Identity(b"s" * 32), Identity(b"a" * 32)
FIRST, END, COUNT = 1, 3, 9
POSITIONS = (2, 7)
SHOWN = (ShownLayers(1, 2, 1), ShownLayers(0, 1, 0))
"""In conversations that name layers."""
_WHOLE = ShownLayers(0, END - FIRST, END - FIRST)
ROWS = Random(1).randbytes(COUNT * ROW_BYTES).replace(b"\x7f", b"\x3f").replace(b"\xff", b"\xbf")
ANSWERS = (CellsAre, PledgeIs, CellRows, StepsAre, Refused)

_NAMING = 0.5
"""The share of conversations in which layers are named."""

SENT_BYTES_MAX = 100_000
"""By a stage of two layers, whatever it is asked: what it opens has 3,000."""


class _Scripted:
    """A channel whose other end says what was written down, and then leaves."""

    def __init__(self, remote: PeerId, script: Sequence[bytes]) -> None:
        self.remote, self._script = remote, list(script)
        self.sent: list[bytes] = []

    async def send(self, message: bytes) -> None:  # nobody else waits for a turn
        self.sent.append(message)

    async def receive(self) -> bytes:
        if not self._script:
            raise ChannelClosed(self.remote, "it has left")
        return self._script.pop(0)

    async def close(self) -> None:
        """End it."""

    def abort(self) -> None:
        """End it."""


class _ScriptedTransport:
    """A transport to one scripted peer."""

    def __init__(self, me: PeerId, channel: _Scripted) -> None:
        self.peer_id, self.channel = me, channel
        self.handlers: dict[str, Handler] = {}

    def handle(self, protocol: str, handler: Handler, *, outlives: bool = False) -> None:
        self.handlers[protocol] = handler

    async def open(self, *_: Any, first: bytes = b"", **__: Any) -> _Scripted:
        await self.channel.send(first)
        return self.channel


OPENED = Open(
    SessionId(b"i" * 16),
    ModelId("ab" * 32),
    ASKER.peer_id,
    ASKER.peer_id,
    FIRST,
    END,
    64,
    seal=seal_of(b"n" * 32),
)
TERMS: Terms = terms_of(OPENED)
HOP = Hop(STAGE.peer_id, (), FIRST, END)


async def _record(signer: ReceiptSigner, engine: FakeStage) -> SessionRecord:
    """Run a session, and keep its evidence."""
    cells = engine.open(END)
    record = signer.record(OPENED, engine, History(Budget()), cells)
    found = await submit(cells, 0, ROWS, regime=Regime.WIDE).wait()
    record.witness.add(0, COUNT, ROWS, found.rows, regime=Regime.WIDE)
    return record


def _row(position: int) -> bytes:
    return ROWS[position * ROW_BYTES : (position + 1) * ROW_BYTES]


async def _serve(
    script: Sequence[bytes], protocol: str = OPENINGS
) -> tuple[list[bytes], FakeStage]:
    """Have a stage answer; returns what it said."""
    channel = _Scripted(ASKER.peer_id, script)
    transport: Any = _ScriptedTransport(STAGE.peer_id, channel)
    signer, engine = ReceiptSigner(transport, STAGE.sign), FakeStage(FIRST, END)
    await _record(signer, engine)
    Prover(transport, signer, "x86_64", hashing).listen()
    await transport.handlers[protocol](channel)
    return channel.sent, engine


async def _receipt() -> Signed:
    transport: Any = _ScriptedTransport(STAGE.peer_id, _Scripted(ASKER.peer_id, ()))
    record = await _record(ReceiptSigner(transport, STAGE.sign), FakeStage(FIRST, END))
    return record.witness.sign(record.seat, COUNT)


async def _ask(
    script: Sequence[bytes], receipt: Signed, *, by_layers: bool = False
) -> list[OpenedTrace]:
    """Ask a stage that gives those answers."""
    transport: Any = _ScriptedTransport(ASKER.peer_id, _Scripted(STAGE.peer_id, script))
    async with open_cells(transport, HOP, TERMS, receipt, by_layers=by_layers) as cells:
        rows = {at: AskedRow(_row(at), Regime.WIDE) for at in POSITIONS}
        await cells.ask(rows, dict(zip(POSITIONS, SHOWN, strict=True)))
        return [await cells.next() for _ in POSITIONS]


def _run(function: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
    return trio.run(partial(function, *args, **named), clock=MockClock(autojump_threshold=0))


@frozen
class Honest:
    """What is said where nobody lies."""

    receipt: Signed
    questions: tuple[bytes, ...]
    answers: tuple[bytes, ...]
    openings: tuple[OpenedTrace, ...]


@cache
def honest(*, by_layers: bool = False) -> Honest:
    """Return a true conversation."""
    receipt = _run(_receipt)
    rows = b"".join(map(_row, POSITIONS))
    questions = [encode(AskCells(OPENED.session, receipt)), encode(AskSteps(POSITIONS, rows))]
    if by_layers:
        questions.append(encode(AskLayers(SHOWN)))
    answers, _ = _run(_serve, questions, LAYERS_OPENINGS if by_layers else OPENINGS)
    openings = _run(_ask, answers, receipt, by_layers=by_layers)
    for each in openings:
        check_signed(each, verify)
        check_roots(each)
    return Honest(receipt, tuple(questions), tuple(answers), tuple(openings))


def _changed(chance: Random, script: Sequence[bytes]) -> list[bytes]:
    """Change one or two messages of a conversation."""
    found = list(script)
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(found))
        match chance.randrange(8):
            case 0:
                del found[at]
            case 1:
                found.insert(chance.randrange(len(found) + 1), found[at])
            case 2:
                other = chance.randrange(len(found))
                found[at], found[other] = found[other], found[at]
            case 3:
                found[at] = damage(chance, found[at])
            case _:
                values = msgpack.unpackb(script[at % len(script)], use_list=False)
                found[at] = packed(chance, values)
        if not found:
            return [b""]
    return found


def make_questions(chance: Random) -> list[bytes]:
    """Make what a lying asker says."""
    return _changed(chance, honest(by_layers=chance.random() < _NAMING).questions)


def judge_questions(script: list[bytes]) -> None:
    """A stage answers what it was asked or refuses, and is as before."""
    for protocol in (OPENINGS, LAYERS_OPENINGS):
        _judge_questions(script, protocol)


def _judge_questions(script: list[bytes], protocol: str) -> None:
    sent, engine = _run(_serve, script, protocol)
    assert engine.machine.copies == 0
    assert sum(map(len, sent)) < SENT_BYTES_MAX
    for answer in sent:
        decode(answer, *ANSWERS)
    if len(sent) > 1:
        assert script[0] == honest().questions[0]


def make_answers(chance: Random) -> list[bytes]:
    """Make what a lying stage says."""
    return _changed(chance, honest(by_layers=chance.random() < _NAMING).answers)


def judge_answers(script: list[bytes]) -> None:
    """Nothing is accepted but what the stage signed; all else ends in one kind of error."""
    for by_layers in (False, True):
        try:
            found = _run(_ask, script, honest().receipt, by_layers=by_layers)
            for each in found:
                check_signed(each, verify)
                check_roots(each)
        except (PeerError, BadOpening):
            continue
        assert tuple(found) == honest(by_layers=by_layers).openings


_SIGNED: dict[tuple[PeerId, bytes], bytes] = {}
"""All that a stage has signed: a quicker check than Ed25519's, and as strict."""


def _is_signed(peer: PeerId, message: bytes, signature: bytes) -> bool:
    if not _SIGNED:
        for each in honest().openings:
            check_signed(each, _learn)
    return _SIGNED.get((peer, message)) == signature


def _learn(peer: PeerId, message: bytes, signature: bytes) -> bool:
    _SIGNED[peer, message] = signature
    return verify(peer, message, signature)


def make_trace(chance: Random) -> bytes:
    """Make a spoilt opening: in its bytes, or in its values, also by those of another one."""
    one, other = chance.sample(honest(by_layers=chance.random() < _NAMING).openings, 2)
    data = opening.encode(one)
    if chance.random() < 0.2:
        return damage(chance, data)
    values = msgpack.unpackb(data, use_list=False)
    if chance.random() < 0.3:
        others = msgpack.unpackb(opening.encode(other), use_list=False)
        at = chance.randrange(len(values))
        values = (*values[:at], others[at], *values[at + 1 :])
    return packed(chance, values)


def judge_trace(data: bytes) -> None:
    """What is accepted is what a stage signed for, and of the layers that it was asked for."""
    try:
        found = opening.decode(data)
        check_signed(found, _is_signed)
        check_roots(found)
    except BadOpening:
        return
    (true,) = (each for each in honest().openings if each.pledge == found.pledge)
    layers = {each.layer: each for each in true.layers}
    assert (found.row, found.leaves, found.cells) == (true.row, true.leaves, true.cells)
    for each in found.layers:
        ours = layers[each.layer]
        assert (each.given, each.steps) == (ours.given, ours.steps)
        if each.keys or each.values:
            assert each == ours
    for by_layers, of_row in ((False, [_WHOLE, _WHOLE]), (True, SHOWN)):
        position = POSITIONS.index(found.pledge.position)
        with suppress(BadOpening):
            check_shown(found, of_row[position].of(END - FIRST))
            assert found == honest(by_layers=by_layers).openings[position]
