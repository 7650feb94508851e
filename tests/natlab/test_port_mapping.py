"""A peer behind a router that passes ports on becomes one that others can dial."""

import logging

import pytest

from tests.support.natlab.internet import Internet
from tests.support.natlab.peers import PORT, LabPeer, World
from tests.support.natlab.routers import Pcp, wait_until

ROUTER, HOME, INSIDE = "10.1.0.1", "5.9.5.11", "10.1.0.2"
TOLD_S_MAX = 15.0
"""For a forwarded port to be told: most of it is the wait for a busy machine."""

AGAIN_S_MAX = 30.0
"""For a peer to be reachable again after its router has lost everything."""


def told(port: int, peer: LabPeer, host: str = HOME) -> tuple[str, ...]:
    """Return what a peer says of itself that is dialled at one port."""
    return (f"/ip4/{host}/tcp/{port}/p2p/{peer.id}",)


def test_nat_pmp_makes_a_peer_public_until_it_leaves(world: World, internet: Internet) -> None:
    """It is told once others have dialled it, and the port is closed at the end."""
    home = internet.nat("home", HOME, inner=ROUTER, speaks_nat_pmp=True)
    peer = world.inside(home, INSIDE, maps_port=True)
    peer.wait(lambda state: state.reach == "public", TOLD_S_MAX)
    assert peer.state.addresses == told(PORT, peer)
    assert home.forwards == {PORT: (INSIDE, PORT)}
    assert "passes port 4001 on to this machine (NAT-PMP)" in peer.state.words
    peer.end()
    assert home.forwards == {}


def test_two_peers_of_one_home_get_a_port_each_by_pcp(world: World, internet: Internet) -> None:
    """The second is told at the port that the router had left."""
    home = internet.nat("home", HOME, inner=ROUTER)
    Pcp(home)
    one, two = (world.inside(home, f"10.1.0.{i}", maps_port=True) for i in (2, 3))
    for peer in (one, two):
        peer.wait(lambda state: state.reach == "public", TOLD_S_MAX)
    for port, (inside, _) in home.forwards.items():
        peer = one if inside == INSIDE else two
        assert peer.state.addresses == told(port, peer)
    assert set(home.forwards) == {PORT, PORT + 1}
    two.end()
    one.end()
    assert home.forwards == {}


@pytest.mark.parametrize("only_permanent", [False, pytest.param(True, marks=pytest.mark.long)])
def test_upnp_makes_a_peer_public_until_it_leaves(
    world: World, internet: Internet, only_permanent: bool
) -> None:
    """Also by an old router, which knows no leases, and not at another machine's port."""
    home = internet.nat("home", HOME, inner=ROUTER)
    home.forward(PORT, ("10.1.0.99", 80))
    igd = world.igd(home, only_permanent=only_permanent)
    peer = world.inside(home, INSIDE, maps_port=True)
    peer.wait(lambda state: state.reach == "public", TOLD_S_MAX)
    assert peer.state.addresses == told(PORT + 1009, peer)
    assert "(UPnP)" in peer.state.words
    peer.end()
    assert home.forwards == {PORT: ("10.1.0.99", 80)}
    assert igd.orders[-1] == "DeletePortMapping"


@pytest.mark.long
def test_a_router_that_leads_elsewhere_gets_no_orders(world: World, internet: Internet) -> None:
    """A description may not make a peer send orders to another machine of the network."""
    home = internet.nat("home", HOME, inner=ROUTER)
    victim = internet.host("victim", "10.1.0.77", behind=home)
    seen = victim.socket(port=80)
    seen.listen()
    seen.settimeout(0.3)
    world.igd(home, control="http://10.1.0.77/control")
    peer = world.inside(home, INSIDE, maps_port=True)
    peer.wait(lambda state: "answers neither" in state.words, TOLD_S_MAX)
    with pytest.raises(TimeoutError):
        seen.accept()
    assert home.forwards == {}


def test_a_router_that_refuses_is_named_with_its_reason(world: World, internet: Internet) -> None:
    """So that its owner knows what to change."""
    home = internet.nat("home", HOME, inner=ROUTER)
    Pcp(home, refuses=True)
    peer = world.inside(home, INSIDE, maps_port=True)
    peer.wait(lambda state: "passes no port on: it is set not to (PCP)" in state.words, TOLD_S_MAX)
    assert peer.state.reach != "public"


@pytest.mark.long
def test_a_silent_router_delays_nothing(world: World, internet: Internet) -> None:
    """The verdict comes as without asking it, and the words say what to switch on."""
    home = internet.nat("home", HOME, inner=ROUTER)
    peer = world.inside(home, INSIDE, maps_port=True)
    peer.wait(lambda state: state.reach == "hidden", TOLD_S_MAX)
    peer.wait(lambda state: "switch UPnP on in its settings" in state.words, TOLD_S_MAX)


def test_an_address_that_the_router_invents_is_never_told(world: World, internet: Internet) -> None:
    """Others dial the address at which they see the peer, at the port that the router gave."""
    home = internet.nat("home", HOME, inner=ROUTER)
    Pcp(home, says="8.8.4.4", picks=7777)
    peer = world.inside(home, INSIDE, maps_port=True)
    peer.wait(lambda state: state.reach == "public", TOLD_S_MAX)
    assert peer.state.addresses == told(7777, peer)


@pytest.mark.long
def test_a_port_behind_a_carriers_nat_makes_nobody_public(world: World, internet: Internet) -> None:
    """The words say that a second NAT is there."""
    carrier = internet.nat("carrier", HOME)
    home = internet.nat("home", "100.64.7.7", behind=carrier, inner=ROUTER, speaks_nat_pmp=True)
    peer = world.inside(home, INSIDE, maps_port=True)
    peer.wait(lambda state: state.reach == "hidden", TOLD_S_MAX)
    assert "its own outer address 100.64.7.7 is a private one" in peer.state.words
    carrier.forward(PORT, ("100.64.7.7", PORT))
    assert home.forwards == {PORT: (INSIDE, PORT)}  # kept: the other NAT may pass it on


@pytest.mark.long
@pytest.mark.parametrize("speaks", ["NAT-PMP", "PCP", "UPnP"])
def test_a_restarted_router_is_asked_again(world: World, internet: Internet, speaks: str) -> None:
    """It has forgotten its ports, and gives them again."""
    home = internet.nat("home", HOME, inner=ROUTER, speaks_nat_pmp=speaks == "NAT-PMP")
    if speaks == "PCP":
        Pcp(home)
    if speaks == "UPnP":
        world.igd(home)
    peer = world.inside(home, INSIDE, maps_port=True)
    peer.wait(lambda state: state.reach == "public", TOLD_S_MAX)
    home.forget(forwards=True)
    assert wait_until(lambda: home.forwards, AGAIN_S_MAX) == {PORT: (INSIDE, PORT)}
    assert peer.state.addresses == told(PORT, peer)


@pytest.mark.long
def test_a_changed_outer_address_is_told_soon(world: World, internet: Internet) -> None:
    """As of providers that give another one each day, or after a restart."""
    home = internet.nat("home", HOME, inner=ROUTER)
    Pcp(home)
    peer = world.inside(home, INSIDE, maps_port=True)
    peer.wait(lambda state: state.reach == "public", TOLD_S_MAX)
    internet.renumber(home, "5.9.6.12")
    after_s = peer.wait(lambda state: state.addresses == told(PORT, peer, "5.9.6.12"), AGAIN_S_MAX)
    logging.getLogger("natlab").info("told again after %.1f s", after_s)
