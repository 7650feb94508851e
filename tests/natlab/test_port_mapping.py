"""A peer behind a router that passes ports on becomes one that others can dial."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.natlab.internet import Internet
from tests.support.natlab.nats import Nat
from tests.support.natlab.peers import PORT, LabPeer, Options
from tests.support.natlab.routers import Igd, Pcp, wait_until

ROUTER, HOME, INSIDE = "10.1.0.1", "5.9.5.11", "10.1.0.2"
TOLD_S_MAX = 15.0
"""For a forwarded port to be told: most of it is the wait for a busy machine."""

AGAIN_S_MAX = 30.0
"""For a peer to be reachable again after its router has lost everything."""


class World:
    """Three public peers, and others as a test adds them."""

    def __init__(self, net: Internet) -> None:
        self.net, self._stack = net, ExitStack()
        places = ("5.5.5.5", "5.6.5.5", "5.7.5.5")
        self.public = [self.peer(net.host(f"p{i}", place)) for i, place in enumerate(places)]

    def peer(self, host: object, options: Options | None = None) -> LabPeer:
        """Start a peer that ends with the test."""
        return self._stack.enter_context(LabPeer(host, options))  # type: ignore[arg-type]

    def inside(self, nat: Nat, address: str = INSIDE, **options: object) -> LabPeer:
        """Start a peer behind a NAT that knows the public ones."""
        host = self.net.host(f"h{address}", address, behind=nat)
        knows = tuple(each.address for each in self.public)
        return self.peer(host, Options(knows=knows, **options))  # type: ignore[arg-type]

    def keep(self, igd: Igd) -> Igd:
        """Close a router's protocol with the test."""
        self._stack.callback(igd.close)
        return igd

    def close(self) -> None:
        """End all peers."""
        self._stack.close()


@pytest.fixture
def world(internet: Internet) -> Iterator[World]:
    """Provide an Internet with three public peers."""
    made = World(internet)
    yield made
    made.close()


def test_nat_pmp_makes_a_peer_public_until_it_leaves(world: World, internet: Internet) -> None:
    home = internet.nat("home", HOME, inner=ROUTER, speaks_nat_pmp=True)
    peer = world.inside(home, maps_port=True)
    print(peer.wait(lambda state: state.reach == "public", TOLD_S_MAX))
    print(peer.state)
    assert peer.state.addresses == (f"/ip4/{HOME}/tcp/{PORT}/p2p/{peer.id}",)
    assert home.forwards == {PORT: (INSIDE, PORT)}
    peer.end()
    assert home.forwards == {}
