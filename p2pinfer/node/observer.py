"""Observing a swarm without being part of it: its peers' advertisements and round trips."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.errors import PeerError, UserError, lone_errors
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.model_names import readable_name
from p2pinfer.node.checks_db import ProvedRows, open_checks
from p2pinfer.node.reach_words import way_to
from p2pinfer.node.reputation_file import load_standings
from p2pinfer.node.swarm_connection import (
    SwarmConnection,
    open_swarm_connection,
)
from transports.base import Reach

REACH_S_MAX = 3.0
"""For dialling a peer and getting its answer to a ping."""

REACHED_MAX = 64
"""Peers that are dialled, so that observing a large swarm is not a crawl."""

LOOK_S = 0.05


@dataclass(frozen=True)
class ObservedPeer:
    """A peer, as it advertises itself and as it is seen from here."""

    said: Advertisement
    reached: bool | None
    """Whether it could be dialled; None if that was not tried."""
    round_trip_s: float | None
    clock_ahead_s: float = 0.0
    """How far its clock is ahead of this machine's; negative if behind."""
    standing: float | None = None
    """Its standing with this machine, from 0 to 1, if it has worked for it."""
    way: str = ""
    """How it is reached from here, in words."""
    proved: ProvedRows | None = None
    """What was checked of rows that it opened to this machine."""

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        said = self.said
        return {
            "peer": said.peer,
            "addresses": said.addresses,
            "model": said.model,
            "model_name": readable_name(said.model_name),
            "layers": f"{said.first}:{said.end}",
            "layers_of_model": said.layers,
            "state": said.state.value,
            "layers_max": said.layers_max,
            "ms_per_layer_row": said.row_us / 1000,
            "ms_per_layer_chunk": said.chunk_us / 1000,
            "sessions_free": said.sessions_free,
            "sessions_max": said.sessions_max,
            "queued_rows": said.queued_rows,
            "context": said.context,
            "numerics_class": said.numerics_class,
            "reached": self.reached,
            "way": self.way,
            "round_trip_ms": None if self.round_trip_s is None else 1000 * self.round_trip_s,
            "standing": self.standing,
            "proved": self.proved and self.proved.as_dict(),
            "clock_ahead_s": round(self.clock_ahead_s, 1),
        }


class Observer:
    """A view of a swarm."""

    def __init__(
        self,
        swarm: SwarmConnection,
    ) -> None:
        self._find_anybody = swarm.find_anybody
        self.transport, self.directory, self.chance = swarm.transport, swarm.directory, swarm.chance
        self.ways_in, self._faults, self._alone = swarm.bootstrap, swarm.faults, swarm.alone
        self._standings = load_standings()
        self.failures: list[PeerError] = []
        """Bootstrap addresses that did not answer the last time."""

    async def renew(self) -> None:
        """Ask the bootstrap peers again what they know; raises UserError if one is no address."""
        self.failures = await self.directory.enter(self.ways_in)
        if len(self.failures) == len(self.ways_in):
            await self._find_anybody()
        for model in self.directory.models():  # otherwise only a few peers of each model are known
            self.directory.follow(model)
        await self.directory.enter(self.ways_in)

    @property
    def is_connected(self) -> bool:
        """Whether a bootstrap peer answered, or a peer was found without one."""
        return len(self.failures) < len(self.ways_in) or bool(self.directory.peers())

    def why_nobody(self) -> str:
        """Return why no peer answered, as a sentence."""
        reasons = "; ".join([*self._faults, *map(str, self.failures)])
        return f"no peer answers: {reasons}" if reasons else self._alone()

    def said(self) -> list[Advertisement]:
        """Return all peers' advertisements, sorted by model and layer."""
        return sorted(self.directory.peers(), key=lambda a: (a.model, a.first, a.end, a.peer))

    async def rows(self) -> list[ObservedPeer]:
        """Dial peers, and return all of them, sorted by model and layer."""
        said = self.said()
        reached: dict[PeerId, float | None] = {}

        async def call(a: Advertisement) -> None:
            with trio.move_on_after(REACH_S_MAX):
                for address in a.addresses:
                    try:
                        await self.transport.connect(address)
                    except (PeerError, UserError):  # a peer may advertise nonsense
                        continue
                    reached[a.peer] = None
                    reached[a.peer] = await self._round_trip_s(a.peer)
                    return

        with lone_errors():
            async with trio.open_nursery() as nursery:
                for each in said[:REACHED_MAX]:
                    nursery.start_soon(call, each)
        called = {a.peer for a in said[:REACHED_MAX]}
        proved = await trio.to_thread.run_sync(open_checks().by_peer)
        return [
            ObservedPeer(
                a,
                a.peer in reached if a.peer in called else None,
                reached.get(a.peer),
                self._clock_ahead_s(a),
                self._standing(a.peer),
                way_to(
                    a.addresses,
                    self.transport.relay_to(a.peer),
                    is_connected=a.peer in reached,
                ),
                proved.get(a.peer),
            )
            for a in said
        ]

    def _clock_ahead_s(self, said: Advertisement) -> float:
        """Compare clocks: an advertisement's sequence number is the peer's time in ms."""
        entry = self.directory.view.get(said.peer)
        made_at = entry.made_at if entry else trio.current_time()
        here_s = time.time_ns() / 1e9 - (trio.current_time() - made_at)
        return said.sequence / 1000 - here_s

    def _standing(self, peer: PeerId) -> float | None:
        if peer not in self._standings.known:
            return None
        return self._standings.of(peer, trio.current_time()).value

    async def _round_trip_s(self, peer: PeerId) -> float:
        """Wait until the transport has measured it."""
        while (found := self.transport.round_trip_s(peer)) is None:  # noqa: ASYNC110 -- no event
            await trio.sleep(LOOK_S)
        return found


@asynccontextmanager
async def open_look(ways_in: Sequence[str], network: str | Reach) -> AsyncIterator[Observer]:
    """Observe a swarm while the block lasts."""
    async with open_swarm_connection(ways_in, network) as swarm:
        look = Observer(swarm)
        await look.renew()
        yield look


def holders(said: Sequence[Advertisement], model: ModelId, layers: int) -> list[list[PeerId]]:
    """Return, for each of a model's layers, the peers that serve it."""
    found: list[list[PeerId]] = [[] for _ in range(layers)]
    for a in said:
        if a.model == model and a.state is State.SERVING:
            for layer in range(a.first, min(a.end, layers)):
                found[layer].append(a.peer)
    return found
