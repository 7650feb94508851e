"""Two peers behind NATs and a relay: one calls the other, and what came of it.

Each is a transport in a thread of its own, which is on its host; they run in this process.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from p2pinfer.core.ids import PeerId
from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.transport_contract import echo
from transports.base import Channel, Reach, Reachability, Relaying
from transports.identity import Identity
from transports.libp2p.circuit import circuit_address
from transports.libp2p.punching_rules import PunchStatistics
from transports.libp2p.transport import Libp2pTransport, open_libp2p

RELAY, RELAY6 = "5.5.5.5", "2600:5::5"
ROWS = "rows"
"""A protocol whose channels wait for a direct connection."""

TALK = "talk"
"""One whose channels do not."""

WAIT_S_MAX = 20.0
LISTEN = ("/ip4/0.0.0.0/tcp/4100", "/ip6/::/tcp/4100")


def identity(name: str) -> Identity:
    """Return the key of a peer of this name."""
    return Identity(name.encode().ljust(32, b"."))


def relay_address(host: Host | None = None) -> str:
    """Return where the relay is: by IPv6 for a host that has it."""
    at = f"/ip6/{RELAY6}" if host and host.address6 else f"/ip4/{RELAY}"
    return f"{at}/tcp/4001/p2p/{identity('relay').peer_id}"


@dataclass
class Peer:
    """A transport on a host; started at once, ended by `close`."""

    host: Host
    name: str
    listen: tuple[str, ...] = ()
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
        listen = self.listen or (LISTEN if self.host.address6 else LISTEN[:1])
        async with open_libp2p(identity(self.name), listen, reach) as self.transport:
            for protocol in (ROWS, TALK):
                self.transport.handle(protocol, echo)
            self.transport.punches.patient = {ROWS}
            self._up.set()
            await self._over.wait()

    def run(self, function: Callable[..., Any], *given: Any) -> Any:
        """Run an async function where the transport lives; return what it returns."""

        async def limited() -> Any:
            with trio.fail_after(WAIT_S_MAX):
                return await function(*given)

        return trio.from_thread.run(limited, trio_token=self._token)

    def close(self) -> None:
        """Leave, and wait for that."""
        with suppress(trio.RunFinishedError):  # it has failed, as `result` then says
            trio.from_thread.run_sync(self._over.set, trio_token=self._token)
        self._call.result()


@contextmanager
def relaying(internet: Internet) -> Iterator[Peer]:
    """Run a relay that nothing but relays."""
    host = internet.host("relay", RELAY, address6=RELAY6, delay_ms=5)
    listen = ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001")
    with closing(Peer(host, "relay", listen, Relaying.ALWAYS)) as relay:
        yield relay


async def be_hidden(transport: Libp2pTransport, host: Host | None = None) -> str:
    """Reserve with the relay, as seen from a host; return where this peer is called."""
    await transport.connect(relay_address(host))
    transport.relays.look()
    while not any("p2p-circuit" in each for each in transport.addresses):
        await transport.wait_moved()
    return circuit_address(relay_address(), transport.peer_id)


async def said_back(channel: Channel, count: int = 1) -> None:
    """Send 10 KB a number of times, and wait for each to come back."""
    for _ in range(count):
        await channel.send(bytes(10_000))
        assert await channel.receive() == bytes(10_000)


async def open_rows(transport: Libp2pTransport, peer: str, addresses: Sequence[str]) -> Channel:
    """Open a channel that waits for a direct connection."""
    channel = await transport.open(PeerId(peer), ROWS, addresses)
    await said_back(channel)
    return channel


@dataclass(frozen=True)
class Attempt:
    """What came of a call."""

    is_direct: bool
    waited_s: float
    """From the circuit to an echo on a channel that waits for a direct connection."""
    bytes_relayed: int
    """While 100 KB were echoed on that channel."""
    bytes_relayed_before: int
    """While 100 KB were echoed on a channel that was opened at once."""
    statistics: PunchStatistics
    """Of the called peer."""
    called_is_client: bool
    """Whether the called peer was the client of the direct connection's handshakes."""
    was_dialled: bool
    """Whether the called peer takes itself for one that others can dial."""


async def call(transport: Libp2pTransport, at: str, relayed: Callable[[], int]) -> tuple[Any, ...]:
    """Call a hidden peer, and echo on a channel that waits for a direct connection."""
    peer = identity("b").peer_id
    await transport.circuits.dial(at, peer)
    began = trio.current_time()
    early = await transport.open(peer, TALK, [at])
    rows = await open_rows(transport, peer, [at])
    waited_s = trio.current_time() - began
    is_direct = any(each.relay is None for each in transport._connections(peer))
    counts = []
    for channel in (rows, early):
        before = relayed()
        await said_back(channel, 10)
        counts.append(relayed() - before)
    return is_direct, waited_s, *counts


def attempt(internet: Internet, a: Host, b: Host) -> Attempt:
    """Let ``a`` call ``b`` through a relay that is made for it."""
    with relaying(internet) as relay, closing(Peer(b, "b")) as called, closing(Peer(a, "a")) as one:

        def relayed() -> int:
            return relay.transport.relay.statistics().bytes

        at = called.run(be_hidden, called.transport, b)
        one.run(one.transport.connect, relay_address(a))
        found: tuple[Any, ...] = one.run(call, one.transport, at, relayed)
        is_direct, waited_s, bytes_after, bytes_before = found
        transport = called.transport
        return Attempt(
            is_direct,
            waited_s,
            bytes_after,
            bytes_before,
            transport.punches.statistics,
            any(
                each.is_initiator and each.relay is None
                for each in transport._connections(one.transport.peer_id)
            ),
            transport.was_dialled or transport.reachability is Reachability.PUBLIC,
        )
