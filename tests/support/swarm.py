"""A chain of real stages with fake engines over the memory network, and a requester."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import trio
from attrs import evolve

from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.ledger import LedgerEntry
from p2pinfer.core.messages import (
    Attach,
    Attached,
    Connect,
    Connected,
    Dtype,
    Hop,
    Link,
    Linked,
    Open,
    Opened,
    Step,
)
from p2pinfer.core.regimes import Regime, split
from p2pinfer.core.sampling import Sampling
from peers.asking.session import Requester, Session
from peers.receipts.prover import Prover
from peers.receipts.session_evidence import Gatherer
from peers.receipts.signer import ReceiptSigner
from peers.serving.stage import Stage
from peers.steps.limits import OPEN_S_MAX
from peers.steps.messaging import SESSION, receive, send
from tests.support.fake_engines import WIDTH, FakeEnds, FakeStage, submit
from transports.base import Channel
from transports.identity import Identity
from transports.memory.network import MemoryNetwork, MemoryTransport

MODEL = ModelId("ab" * 32)
PROMPT = [3 + i * 7 % 40 for i in range(120)]
GREEDY = Sampling(temperature=0.0)
CONTEXT = 256

CHAINS = {1: (1, 29), 2: (1, 11, 29), 3: (1, 10, 20, 29), 5: (1, 2, 9, 10, 28, 29)}
"""Bounds between stages, by how many there are."""


def peer(name: str) -> PeerId:
    """Make a peer id out of a name."""
    return PeerId(name.ljust(46, "x"))


ME = peer("requester")
PEERS = [peer(f"stage{number}") for number in range(5)]
KEYS = [Identity(bytes([number]) * 32) for number in range(8)]


async def hashing(function: Callable[..., list[bytes]], *args: object) -> list[bytes]:
    """Hash in this thread: to a mock clock, another thread would look like idle time."""
    await trio.lowlevel.checkpoint()
    return function(*args)


def session_id(number: int = 0) -> SessionId:
    """Make a session id."""
    return SessionId(number.to_bytes(16, "little"))


class Swarm:
    """A memory network with a chain of stages and one requester."""

    def __init__(
        self,
        nursery: trio.Nursery,
        network: MemoryNetwork,
        me: MemoryTransport,
        ends: FakeEnds,
        gatherer: Gatherer | None = None,
        *,
        drafts: bool = False,
        draft_model: FakeEnds | None = None,
    ) -> None:
        self.network, self.me, self.ends = network, me, ends
        self.nursery = nursery
        self.requester = Requester(
            nursery, me, ends, MODEL, gatherer, drafts=drafts, draft_model=draft_model
        )
        self.stages: list[Stage] = []
        self.signers: list[ReceiptSigner] = []
        self.served: list[LedgerEntry] = []
        """The stages' ledger entries of finished sessions."""
        self.engines: list[FakeStage] = []
        self.route: list[Hop] = []
        self.leave: list[Callable[[], None]] = []
        """Makes a stage's peer leave the network."""

    async def add(
        self,
        name: PeerId,
        engine: FakeStage,
        identity: Identity | None = None,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Serve a stage, with receipts if it has a key, until ``leave`` is called."""
        with trio.CancelScope() as scope:
            async with self.network.join(name) as transport:
                signer = (
                    ReceiptSigner(transport, identity.sign, self.served.append)
                    if identity
                    else None
                )
                stage = Stage(transport, engine, MODEL, signer)
                stage.listen()
                if signer:
                    signer.listen()
                    Prover(transport, signer, "x86_64", hashing).listen()
                    self.signers.append(signer)
                self.stages.append(stage)
                self.engines.append(engine)
                self.route.append(Hop(name, tuple(transport.addresses), engine.first, engine.end))
                self.leave.append(scope.cancel)
                task_status.started()
                await trio.sleep_forever()

    def open(self, number: int = 0, context: int = CONTEXT) -> Any:
        """Open a session along the whole route."""
        return self.requester.open(self.route, session_id(number), context)

    def everything_is_free(self) -> bool:
        """Whether neither stages nor engines hold a session."""
        machines = [self.ends.machine, *(engine.machine for engine in self.engines)]
        return not any(machine.open for machine in machines) and not any(
            s.sessions for s in self.stages
        )


@asynccontextmanager
async def swarm(
    bounds: Sequence[int] = CHAINS[3],
    *,
    sessions: int = 4,
    ends: FakeEnds | None = None,
    evidence: bool = False,
    silent: int | None = None,
    drafts: bool = False,
    draft_model: FakeEnds | None = None,
) -> AsyncIterator[Swarm]:
    """Run a chain of stages, cut at the bounds, and check that they free everything.

    With evidence, every peer has a key, the requester the first of them, and every stage but
    ``silent`` signs receipts.
    """
    network = MemoryNetwork()
    me_id = KEYS[0].peer_id if evidence else ME
    async with network.join(me_id) as me, trio.open_nursery() as nursery:
        gatherer = Gatherer(nursery, me, lambda size: bytes(size)) if evidence else None
        made = Swarm(
            nursery,
            network,
            me,
            ends or FakeEnds(context=CONTEXT),
            gatherer,
            drafts=drafts,
            draft_model=draft_model,
        )
        for number, (first, end) in enumerate(pairwise(bounds)):
            engine = FakeStage(first, end, sessions=sessions, context=CONTEXT)
            key = KEYS[1 + number]
            name = key.peer_id if evidence else PEERS[number]
            signing = key if evidence and number != silent else None
            await nursery.start(made.add, name, engine, signing)
        yield made
        await trio.sleep(3 * OPEN_S_MAX)
        assert made.everything_is_free()
        nursery.cancel_scope.cancel()


async def answer(session: Session, prompt: Sequence[int], count: int = 20) -> list[int]:
    """Return the tokens of an answer."""
    return [token.id async for token in session.generate(prompt, GREEDY, count)]


async def expected(
    prompt: Sequence[int], count: int, bounds: Sequence[int], held: int = 0, *, blocks: bool = True
) -> list[int]:
    """Run the fakes without peers: the prompt as requesters split it, then token by token.

    Its first ``held`` tokens were read in a turn before.
    """
    ends = FakeEnds(context=CONTEXT)
    cells = ends.open()
    stages = [FakeStage(first, end, context=CONTEXT).open(end) for first, end in pairwise(bounds)]
    cells.start(GREEDY, [])

    async def through(position: int, rows: bytes, *, regime: Regime) -> bytes:
        for stage in stages:
            rows = (await submit(stage, position, rows, regime=regime).wait()).rows
        return rows

    turns = split(0, held, blocks=blocks) + split(held, len(prompt), blocks=blocks)
    for at, end, regime in turns:
        rows = (await cells.embed(at, list(prompt[at:end]), regime=regime)).rows
        made = await cells.next(at, await through(at, rows, regime=regime), regime=regime)
    tokens = [made.token]
    for position in range(len(prompt), len(prompt) + count - 1):
        made = await cells.next(
            position, await through(position, made.rows, regime=Regime.NARROW), regime=Regime.NARROW
        )
        tokens.append(made.token)
    return tokens


class Talk:
    """A hand-made requester, which may send what a real one never would."""

    def __init__(self, controls: list[Channel], entry: Channel, exit_: Channel) -> None:
        self.controls, self.entry, self.exit = controls, entry, exit_
        self.number = 0

    @classmethod
    async def open(
        cls, made: Swarm, number: int = 99, dtype: Dtype = Dtype.F32, *, blocks: bool = True
    ) -> "Talk":
        """Open a session properly."""
        controls = await open_by_hand(made, number, dtype, blocks=blocks)
        for control, hop in zip(controls, made.route[1:], strict=False):
            await send(control, Connect(1, hop.peer, hop.addresses, 0, 0))
            await receive(control, Connected)
        entry = await made.me.open(made.route[0].peer, SESSION)
        await send(entry, Link(session_id(number)))
        await receive(entry, Linked)
        exit_ = await made.me.open(made.route[-1].peer, SESSION)
        await send(exit_, Attach(session_id(number)))
        await receive(exit_, Attached)
        return cls(controls, entry, exit_)

    async def send_step(
        self, position: int, rows: bytes, count: int, *, regime: Regime = Regime.WIDE
    ) -> None:
        """Send any rows."""
        self.number += 1
        await send(self.entry, Step(self.number, position, count, regime, rows))

    async def close(self) -> None:
        """Close all channels."""
        for channel in (*self.controls, self.entry, self.exit):
            await channel.close()


def opening_of(
    made: Swarm, at: int, number: int = 99, dtype: Dtype = Dtype.F32, *, blocks: bool = True
) -> Open:
    """Return what opens a session at one of the stages."""
    me, hop = made.me.peer_id, made.route[at]
    previous = made.route[at - 1].peer if at else me
    opened = Open(session_id(number), MODEL, me, previous, hop.first, hop.end, CONTEXT, dtype)
    return evolve(opened, blocks=blocks)


async def open_by_hand(
    made: Swarm, number: int = 99, dtype: Dtype = Dtype.F32, *, blocks: bool = True
) -> list[Channel]:
    """Open a session at every stage without linking them; return the control channels."""
    controls: list[Channel] = []
    for at, hop in enumerate(made.route):
        control = await made.me.open(hop.peer, SESSION)
        await send(control, opening_of(made, at, number, dtype, blocks=blocks))
        await receive(control, Opened)
        controls.append(control)
    return controls


GOOD_ROW = np.ones(WIDTH, "<f4").tobytes()
