"""Peer processes to kill, each replaced by a new one that serves the same layers."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import trio

from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.python_process import python_command
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.node.local_swarm import READY_S_MAX, LocalPeer, run_peer, wait_ready
from p2pinfer.node.requester import Machine

NETWORK = "bench"


@dataclass(frozen=True)
class Victim:
    """A peer that serves, until it is killed."""

    place: int
    """Index of the range it serves."""
    local: LocalPeer


class Victims:
    """A swarm in which peers may be killed."""

    def __init__(
        self,
        nursery: trio.Nursery,
        model: PartsModel,
        machine: Machine,
        ranges: Sequence[LayerRange],
        home: Path,
        ready_s_max: float = READY_S_MAX,
    ) -> None:
        """Serve each range by one peer, once started; ``home`` is for keys and logs."""
        self._nursery, self._model, self._machine = nursery, model, machine
        self.ranges, self._home = ranges, home
        self._ready_s_max = ready_s_max
        self._numbers = count()
        self.serving: dict[PeerId, Victim] = {}
        self._empty: list[int] = []  # ranges whose peer was killed
        self._changed = trio.Event()

    async def start(self) -> None:
        """Start all peers, and wait until they serve."""
        with trio.fail_after(self._ready_s_max):
            await self._serve(0)
            async with trio.open_nursery() as starting:
                for place in range(1, len(self.ranges)):
                    starting.start_soon(self._serve, place)

    def ways_in(self) -> tuple[str, ...]:
        """Return addresses of the peers that serve."""
        return tuple(victim.local.addresses[0] for victim in self.serving.values())

    def kill(self, peer: PeerId) -> None:
        """Kill a peer; its place stays empty until ``wait_whole``."""
        self._empty.append(self.lose(peer, signal.SIGKILL).place)

    def lose(self, peer: PeerId, number: signal.Signals) -> Victim:
        """End a peer with a signal; its place stays empty until ``fill``."""
        victim = self.serving.pop(peer)
        victim.local.process.send_signal(number)
        return victim

    async def fill(self, place: int) -> None:
        """Start a new peer for a place, and wait until it serves."""
        with trio.fail_after(self._ready_s_max):
            await self._serve(place)

    async def wait_whole(self) -> None:
        """Replace the peers that were killed, and wait until the new ones serve."""
        while self._empty:
            self._nursery.start_soon(self._serve, self._empty.pop())
        with trio.fail_after(self._ready_s_max):
            while len(self.serving) < len(self.ranges):
                self._changed = trio.Event()
                await self._changed.wait()

    async def _serve(self, place: int) -> None:
        number = next(self._numbers)
        machine, ways_in = self._machine, self.ways_in()
        command = [
            *python_command("p2pinfer", "join", "--json", "--until-stdin-closes"),
            *["--model", self._model.id, "--layers", str(self.ranges[place])],
            *(["--bootstrap", *ways_in] if ways_in else []),
            *["--listen", "/ip4/127.0.0.1/tcp/0", "--network", NETWORK],
            *["--no-mdns", "--no-dht"],
            *["--identity", str(self._home / f"identity-{number}")],
            *["--sessions", str(machine.sessions), "--context", str(machine.context)],
            *["--threads", str(machine.threads or 1), "--gpu", "off"],
        ]
        log = self._home / f"log-{number}"
        process = await self._nursery.start(run_peer, command, log, None)
        local = await wait_ready(process, log)
        self.serving[PeerId(local.peer)] = Victim(place, local)
        self._changed.set()
