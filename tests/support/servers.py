"""Peers that choose their layers, with a board of advertisements that all of them read."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import cast

import trio

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.messages import Hop
from peers.discovery.directory import Directory
from peers.serving.server import HeldLayers, Server, ServingPlan
from scheduler.placement import Choice
from tests.support.fake_engines import FakeStage
from tests.support.swarm import CONTEXT, MODEL, peer
from transports.memory.network import MemoryNetwork, MemoryTransport

BOUNDS = LayerRange(1, 29)
LOAD_S = 3.0
SETTLE_S = 60.0


class Board:
    """All peers' advertisements, known to all at once."""

    def __init__(self) -> None:
        self.said: dict[PeerId, Advertisement] = {}
        self.states: list[tuple[PeerId, State, LayerRange]] = []
        """Everything ever advertised, in order."""
        self.counts = 0
        """How often ``fewest_holders`` was called."""

    def serving(self) -> list[Advertisement]:
        """Return the serving peers."""
        return [a for a in self.said.values() if a.state is State.SERVING]

    def covered(self) -> bool:
        """Whether all layers are served."""
        served = {layer for a in self.serving() for layer in range(a.first, a.end)}
        return served >= set(BOUNDS.each())


class View:
    """One peer's access to the board."""

    def __init__(self, board: Board, me: PeerId) -> None:
        self.board, self.me = board, me
        self.is_hidden = self.is_sample = False

    def advertise(self, advertisement: Advertisement) -> None:
        """Put it on the board."""
        self.board.said[self.me] = advertisement
        layers = LayerRange(advertisement.first, advertisement.end)
        self.board.states.append((self.me, advertisement.state, layers))

    def holding(self, model: ModelId) -> list[Advertisement]:
        """Return the other peers' advertisements."""
        return [a for a in self.board.said.values() if a.peer != self.me and a.model == model]

    def missing(self, model: ModelId, layers: LayerRange) -> list[int]:
        """Return the layers that no peer holds; this peer counts."""
        said = self.board.said.values()
        staying = [LayerRange(a.first, a.end) for a in said if a.state is not State.DRAINING]
        return layers.lacking(staying)

    def fewest_holders(self, model: ModelId, layers: LayerRange) -> int:
        """Count the holders of the rarest layer; this peer counts."""
        self.board.counts += 1
        staying = [a for a in self.board.said.values() if a.state is not State.DRAINING]
        return min(sum(a.first <= n < a.end for a in staying) for n in layers.each())


class Machine:
    """A peer's machine: engines that take a while to load."""

    def __init__(
        self, transport: MemoryTransport, board: Board, layers_max: int, seed: int
    ) -> None:
        self.transport, self.board = transport, board
        self.engines: list[FakeStage] = []
        self.served: list[LayerRange] = []
        self.told: list[str] = []
        self.leaving = trio.Event()
        self.fails: dict[LayerRange, P2pinferError] = {}
        self.trips: dict[PeerId, float] = {}
        me = Advertisement(
            peer=transport.peer_id,
            addresses=tuple(transport.addresses),
            model=MODEL,
            model_name="toy",
            layers=30,
            first=0,
            end=0,
            context=CONTEXT,
            numerics_class="0" * 32,
            sequence=0,
            layers_max=layers_max,
            sessions_max=4,
        )
        self.directory = View(board, transport.peer_id)
        self.server = Server(
            transport,
            cast("Directory", self.directory),
            self.open_engine,
            ServingPlan(me, BOUNDS),
            random.Random(seed),
            lambda: int(1000 * trio.current_time()),
            self.leaving,
            round_trip_s=self.trips.get,
            on_serving=self.note,
            tell=self.told.append,
        )

    def note(self, held: HeldLayers) -> None:
        """Remember what was served."""
        self.served.append(held.layers)

    @asynccontextmanager
    async def open_engine(self, first: int, end: int) -> AsyncIterator[FakeStage]:
        """Load an engine, and run it while the block lasts."""
        await trio.sleep(LOAD_S)
        if error := self.fails.get(LayerRange(first, end)):
            raise error
        engine = FakeStage(first, end, sessions=4, context=CONTEXT)
        engine.machine.decode_s = 0.01
        self.engines.append(engine)
        try:
            yield engine
        finally:
            self.engines.remove(engine)


class World:
    """Peers that come and go."""

    def __init__(self, nursery: trio.Nursery, network: MemoryNetwork, me: MemoryTransport) -> None:
        self.network, self.me, self.board = network, me, Board()
        self.nursery = nursery
        self._names = count()

    async def join(self, layers_max: int, resting: str = "") -> Machine:
        """Start a peer."""
        number = next(self._names)
        machine: Machine = await self.nursery.start(self._run, layers_max, number, resting)
        return machine

    async def _run(
        self,
        layers_max: int,
        number: int,
        resting: str,
        *,
        task_status: trio.TaskStatus[Machine],
    ) -> None:
        name = peer(f"server{number}")
        async with self.network.join(name) as transport:
            machine = Machine(transport, self.board, layers_max, number)
            machine.server.rest(resting)
            task_status.started(machine)
            await machine.server.run()
        self.board.said.pop(name, None)


def hops(route: Sequence[Advertisement]) -> list[Hop]:
    """Name the stages of a route."""
    return [Hop(a.peer, a.addresses, a.first, a.end) for a in route]


def decide(machine: Machine, layers: LayerRange) -> None:
    """Make a peer choose these layers."""

    def choose() -> Choice:
        said = machine.board.said[machine.transport.peer_id]
        moves = LayerRange(said.first, said.end) != layers
        return Choice(layers, moves, "for a test", False, 2.0)

    machine.server._choose = choose  # type: ignore[method-assign]
