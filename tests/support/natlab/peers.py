"""Peers on hosts of the lab: the real transport alone, in processes that cost a fork each."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final, Self

import trio

from p2pinfer.core.errors import PeerError
from tests.support.natlab.hosts import Host, enter
from tests.support.natlab.internet import Internet
from tests.support.natlab.nats import Nat
from tests.support.natlab.routers import Igd
from transports.base import Reach, Relaying
from transports.identity import Identity
from transports.libp2p import autonat_server
from transports.libp2p.autonat_messages import DialStatus
from transports.libp2p.transport import Libp2pTransport, open_libp2p

PORT = 4001
LOOK_S = 0.05
CALL_S = 1.0
"""How often a peer calls those that it knows and is not connected to, as gossip has it do."""

END_S_MAX = 10.0

_forks: Final = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class State:
    """What a peer knows of its reach."""

    peer: str
    reach: str
    addresses: tuple[str, ...]
    words: str
    """What became of asking the router."""
    after_s: float = field(default=0.0, compare=False)
    """Since the peer began."""


@dataclass(frozen=True)
class Options:
    """How a peer runs."""

    knows: tuple[str, ...] = ()
    """Addresses that it calls."""
    listen: str = f"/ip4/0.0.0.0/tcp/{PORT}"
    announce: tuple[str, ...] = ()
    maps_port: bool = False
    lies: bool = False
    """It says of each address that it has dialled it, and does not."""
    seed: bytes = b""
    """Of its key; empty: a new one."""


class LabPeer:
    """A peer on a host, from now on; ``with`` ends it."""

    def __init__(self, host: Host, options: Options | None = None) -> None:
        self.host = host
        self._ours, theirs = _forks.Pipe()
        self._process = _forks.Process(
            target=_run, args=(theirs, host.namespace, options or Options()), daemon=True
        )
        self._process.start()
        theirs.close()
        self.states: list[State] = [self._ours.recv()]
        """All that it has known, the latest last."""

    @property
    def id(self) -> str:
        """Its peer id."""
        return self.states[0].peer

    @property
    def address(self) -> str:
        """Where it is, if its host has an address of the Internet."""
        return f"/ip4/{self.host.address}/tcp/{PORT}/p2p/{self.id}"

    @property
    def state(self) -> State:
        """What it knows now."""
        while self._ours.poll():
            self.states.append(self._ours.recv())
        return self.states[-1]

    def wait(self, true: Callable[[State], Any], within_s: float) -> float:
        """Wait for a state; return how long that took, in seconds.

        Raises:
            TimeoutError: it has not come in time.
        """
        began = time.monotonic()
        while not true(self.state):
            left_s = within_s - (time.monotonic() - began)
            if left_s <= 0:
                raise TimeoutError(f"after {within_s:g} s it is still {self.state}")
            self._ours.poll(min(left_s, LOOK_S))  # what is looked at may be the NAT
        return time.monotonic() - began

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Stop it, and its host's network, while the block lasts: as a laptop that is shut."""
        assert self._process.pid, "it was started"
        os.kill(self._process.pid, signal.SIGSTOP)
        self.host.sleep()
        try:
            yield
        finally:
            self.host.wake()
            os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Have it leave, and wait."""
        with suppress(OSError):
            self._ours.send("leave")
        self._process.join(END_S_MAX)
        self._process.kill()
        self._process.join()
        self._ours.close()


class World:
    """An Internet with three public peers, and others as a test adds them; ``with`` ends them."""

    def __init__(self, net: Internet, lies: tuple[bool, ...] = (False, False, False)) -> None:
        self.net, self._stack = net, ExitStack()
        self.public = [
            self.peer(net.host(f"p{i}", f"5.{5 + i}.5.5"), Options(lies=each))
            for i, each in enumerate(lies)
        ]

    def peer(self, host: Host, options: Options | None = None) -> LabPeer:
        """Start a peer that ends with the test."""
        return self._stack.enter_context(LabPeer(host, options))

    def inside(self, nat: Nat, address: str, **options: Any) -> LabPeer:
        """Start a peer behind a NAT that knows the public ones."""
        host = self.net.host(f"h{address}", address, behind=nat)
        knows = tuple(each.address for each in self.public)
        return self.peer(host, Options(knows=knows, **options))

    def igd(self, nat: Nat, **options: Any) -> Igd:
        """Have a NAT's router speak UPnP."""
        host = self.net.host(f"router of {nat.name}", nat.inner, behind=nat)
        igd = Igd(host, nat, **options)
        self._stack.callback(igd.close)
        return igd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _run(pipe: Connection, namespace: str, options: Options) -> None:
    """Be a peer until the pipe says otherwise."""
    enter(namespace)
    if options.lies:
        autonat_server.AutonatServer._dial = _lie  # type: ignore[assignment,method-assign]
    trio.run(_serve, pipe, options)


async def _lie(*_: object) -> DialStatus:
    return DialStatus.OK


async def _serve(pipe: Connection, options: Options) -> None:
    identity = Identity(options.seed) if options.seed else None
    reach = Reach("lab", maps_port=options.maps_port, relaying=Relaying.NEVER)
    async with (
        open_libp2p(identity, [options.listen], reach, announce=options.announce) as transport,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_call_all, transport, options.knows)
        began, said = trio.current_time(), None
        while not pipe.poll():
            keeper = transport.port_keeper
            now = State(
                transport.peer_id,
                transport.reachability.value,
                tuple(transport.addresses),
                keeper.words if keeper else "",
                trio.current_time() - began,
            )
            if now != said:
                pipe.send(now)
                said = now
            await trio.sleep(LOOK_S)
        nursery.cancel_scope.cancel()


async def _call_all(transport: Libp2pTransport, addresses: Sequence[str]) -> None:
    async def call(address: str) -> None:
        while True:
            with suppress(PeerError):
                await transport.connect(address)
            await trio.sleep(CALL_S)

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(call, address)
