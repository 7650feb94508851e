"""Two peers behind NATs and a relay: one calls the other, and what came of it.

Each is a transport in a thread of its own, which is on its host; they run in this process.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.transport_contract import echo
from transports.base import Reach, Relaying
from transports.identity import Identity
from transports.libp2p.circuit import circuit_address
from transports.libp2p.punching import PunchStatistics
from transports.libp2p.transport import Libp2pTransport, open_libp2p

RELAY = "5.5.5.5"
ROWS = "rows"
"""A protocol whose channels wait for a direct connection."""

WAIT_S_MAX = 20.0
LISTEN = ("/ip4/0.0.0.0/tcp/4100",)


def identity(name: str) -> Identity:
    """Return the key of a peer of this name."""
    return Identity(name.encode().ljust(32, b"."))


def relay_address() -> str:
    """Return where the relay is."""
    return f"/ip4/{RELAY}/tcp/4001/p2p/{identity('relay').peer_id}"


@dataclass
class Peer:
    """A transport on a host; started at once, ended by `end`."""

    host: Host
    name: str
    listen: tuple[str, ...] = LISTEN
    relaying: Relaying = Relaying.NEVER
    transport: Libp2pTransport = field(init=False)
    _up: threading.Event = field(default_factory=threading.Event)
    _token: trio.lowlevel.TrioToken = field(init=False)
    _over: trio.Event = field(init=False)

    def __post_init__(self) -> None:
        self._call = self.host.call(partial(trio.run, self._live))
        assert self._up.wait(WAIT_S_MAX), "it does not start"

    async def _live(self) -> None:
        self._over, self._token = trio.Event(), trio.lowlevel.current_trio_token()
        reach = Reach("main", relaying=self.relaying)
        async with open_libp2p(identity(self.name), self.listen, reach) as self.transport:
            self.transport.handle(ROWS, echo)
            self.transport.punches.patient = {ROWS}
            self._up.set()
            await self._over.wait()

    def run(self, function: Callable[..., Any], *given: Any) -> Any:
        """Run an async function where the transport lives; return what it returns."""

        async def limited() -> Any:
            with trio.fail_after(WAIT_S_MAX):
                return await function(*given)

        return trio.from_thread.run(limited, trio_token=self._token)

    def end(self) -> None:
        """Leave, and wait for that."""
        with suppress(trio.RunFinishedError):  # it has failed, as `result` then says
            trio.from_thread.run_sync(self._over.set, trio_token=self._token)
        self._call.result()


@dataclass(frozen=True)
class Attempt:
    """What came of a call."""

    is_direct: bool
    waited_s: float
    """From the circuit to an echo on a channel that waits for a direct connection."""
    bytes_relayed: int
    """While 100 KB were echoed on that channel."""
    statistics: PunchStatistics
    """Of the called peer."""


async def be_hidden(transport: Libp2pTransport) -> str:
    """Reserve with the relay; return where this peer is called."""
    await transport.connect(relay_address())
    transport.relays.look()
    while not any("p2p-circuit" in each for each in transport.addresses):
        await transport.wait_moved()
    return circuit_address(relay_address(), transport.peer_id)


async def call(
    transport: Libp2pTransport, at: str, relayed: Callable[[], int]
) -> tuple[bool, float, int]:
    """Call a hidden peer, and echo on a channel that waits for a direct connection."""
    peer = identity("b").peer_id
    await transport.circuits.dial(at, peer)
    began = trio.current_time()
    channel = await transport.open(peer, ROWS, [at])
    await channel.send(b"hello")
    await channel.receive()
    waited_s = trio.current_time() - began
    before = relayed()
    for _ in range(10):
        await channel.send(bytes(10_000))
        await channel.receive()
    is_direct = any(each.relay is None for each in transport._connections(peer))
    return is_direct, waited_s, relayed() - before


def attempt(internet: Internet, a: Host, b: Host) -> Attempt:
    """Let ``a`` call ``b`` through a relay that is made for it."""
    relay_host = internet.host("relay", RELAY, delay_ms=5)
    relay = Peer(relay_host, "relay", ("/ip4/0.0.0.0/tcp/4001",), Relaying.ALWAYS)
    peers = [relay]

    def relayed() -> int:
        return relay.transport.relay.statistics().bytes

    try:
        called, caller = Peer(b, "b"), Peer(a, "a")
        peers += [called, caller]
        at = called.run(be_hidden, called.transport)
        caller.run(caller.transport.connect, relay_address())
        found = caller.run(call, caller.transport, at, relayed)
        return Attempt(*found, called.transport.punches.statistics)
    finally:
        for peer in reversed(peers):
            peer.end()
