"""One peer process of ``p2pinfer bench discovery``: a transport, a directory, and their cost.

Its arguments are its bootstrap addresses. It reads orders, a JSON list per line, and answers each
with a line.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import trio

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.ids import ModelId, PeerId
from peers.discovery.directory import Directory
from transports.identity import ephemeral_identity
from transports.libp2p.noise_records import NoiseWire
from transports.libp2p.transport import open_libp2p

MODEL = ModelId("d15c" * 16)
LAYERS = 64
HERE = "/ip4/127.0.0.1/tcp/0"
NETWORK = "bench"


class _Peer:
    """A peer that keeps counts, and that can be cut off from others."""

    def __init__(self, transport: Any, directory: Directory) -> None:
        self._transport, self._directory = transport, directory
        self._blocked: frozenset[PeerId] = frozenset()
        self._began_s = trio.current_time()
        self._knew_s: float | None = None
        self._expected = 0
        self._oldest_s = 0.0
        self._bytes = count_bytes()
        reach: Callable[..., Any] = transport._reach

        async def reach_unless_blocked(peer: PeerId, addresses: object, *, own: bool) -> object:
            if peer in self._blocked:
                raise PeerUnavailable(peer, "blocked")
            return await reach(peer, addresses, own=own)

        transport._reach = reach_unless_blocked

    def others(self) -> list[Any]:
        """Return what is known of others."""
        me = self._transport.peer_id
        return [entry for peer, entry in self._entries().items() if peer != me]

    def _entries(self) -> dict[PeerId, Any]:
        self._directory.holding(MODEL)  # forgets peers that have been silent for too long
        return self._directory.view.indexes[MODEL].entries

    async def watch(self) -> None:
        """Record the greatest age of the oldest advertisement, and when all peers were known."""
        while True:
            now = trio.current_time()
            others = self.others()
            self._oldest_s = max([self._oldest_s, *(now - each.made_at for each in others)])
            if self._knew_s is None and 0 < self._expected <= len(others):
                self._knew_s = now - self._began_s
            await trio.sleep(0.05 if self._knew_s is None else 1.0)

    def obey(self, order: str, arguments: list[Any]) -> dict[str, Any]:
        """Carry out an order and return the state."""
        if order == "reset":
            self._oldest_s = 0.0
        if order == "block":
            self._blocked = frozenset(arguments)
            for peer in self._blocked:
                for connection in self._transport._connections(peer):
                    connection.abort("blocked")
        if order == "expect":
            (self._expected,) = arguments
        found = self.others()
        connections = self._transport._host.get_network().get_connections()
        connected = {connection.muxed_conn.peer_id for connection in connections}
        return {
            "known": len(found),
            "knew_s": self._knew_s,
            "oldest_s": self._oldest_s,
            "period_s": self._directory.view.period_s(MODEL),
            "connections": len(connected),
            "cpu_s": time.process_time(),
            "at_s": trio.current_time(),
            **self._bytes,
        }


def count_bytes() -> dict[str, int]:
    """Count bytes of all connections from now on: sent as encrypted, received as plain."""
    counts = {"sent": 0, "received": 0}
    seal, receive = NoiseWire.seal, NoiseWire.receive

    def counted_seal(self: NoiseWire, frames: list[bytes]) -> bytes:
        sealed = seal(self, frames)
        counts["sent"] += len(sealed)
        return sealed

    async def counted_receive(self: NoiseWire) -> bytes:
        plain = await receive(self)
        counts["received"] += len(plain)
        return plain

    replaced: Any = NoiseWire
    replaced.seal, replaced.receive = counted_seal, counted_receive
    return counts


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


async def main(ways_in: list[str]) -> None:
    """Run a peer until standard input ends."""
    chance = random.Random()  # noqa: S311 - picks peers to ask, and layers to claim
    identity = ephemeral_identity()
    async with open_libp2p(identity, [HERE], NETWORK) as transport, trio.open_nursery() as nursery:
        directory = Directory(transport, identity, chance, clock_ms=_clock_ms)
        directory.listen()
        peer = _Peer(transport, directory)
        first = chance.randrange(LAYERS - 8)
        directory.advertise(
            Advertisement(
                peer=transport.peer_id,
                addresses=tuple(transport.addresses),
                model=MODEL,
                model_name="nothing",
                layers=LAYERS,
                first=first,
                end=first + 8,
                context=4096,
                numerics_class="0" * 32,
                sequence=0,
            )
        )
        nursery.start_soon(directory.run, ways_in)
        nursery.start_soon(peer.watch)
        _say({"peer": transport.peer_id, "addresses": list(transport.addresses)})
        async with trio.lowlevel.FdStream(sys.stdin.fileno()) as orders:
            line = bytearray()
            async for data in orders:
                line += data
                while b"\n" in line:
                    text, _, rest = line.partition(b"\n")
                    line = bytearray(rest)
                    order, *arguments = json.loads(text)
                    _say(peer.obey(order, arguments))
        nursery.cancel_scope.cancel()


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
