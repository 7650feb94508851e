"""The machines, peers and requesters of a virtual network."""

from dataclasses import dataclass, field

import trio

from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from peers.asking.client import SwarmClient
from peers.audits.auditor import Auditor
from peers.discovery.directory import Directory
from peers.serving.server import Server
from sim.engine import VirtualCheat, VirtualEnds, VirtualSpeed, VirtualStage
from sim.links import AccessLink
from transports.identity import Identity


@dataclass(frozen=True)
class VirtualMachine:
    """What a virtual peer's machine is capable of."""

    number: int
    access: AccessLink
    speed: VirtualSpeed
    layers: int
    sessions: int
    join_s: float
    serves: LayerRange | None = None
    """Whatever others do; None chooses."""
    numerics: int = 0
    cheat: VirtualCheat | None = None


@dataclass(eq=False)
class VirtualPeer:
    """A peer while it runs."""

    machine: VirtualMachine
    identity: Identity
    joined_s: float
    leaving: trio.Event = field(default_factory=trio.Event)
    life: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    engines: list[VirtualStage] = field(default_factory=list)
    directory: Directory | None = None
    server: Server | None = None

    @property
    def id(self) -> PeerId:
        """Its peer id."""
        return self.identity.peer_id

    @property
    def held(self) -> LayerRange | None:
        """What it serves new sessions with."""
        return self.server.held.layers if self.server and self.server.held else None

    def kill(self) -> None:
        """End it without notice."""
        self.life.cancel()


@dataclass(eq=False)
class VirtualRequester:
    """A machine that asks."""

    number: int
    id: PeerId
    client: SwarmClient
    directory: Directory
    ends: VirtualEnds
    auditor: Auditor
    blamed: set[PeerId] = field(default_factory=set)
    """Peers that it considers cheats, because most replays said so."""
