"""What peers behind each kind of NAT say of their reach, and how they get it back."""

import logging
import time
from contextlib import closing

import pytest

from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.natlab.nats import KINDS
from tests.support.natlab.peers import PORT, LabPeer, Options, State, World
from tests.support.natlab.routers import Pcp

INSIDE, ROUTER, HOME = "10.1.0.2", "10.1.0.1", "5.9.5.11"

SOON_S = 30.0
"""For a verdict on a busy machine; on an idle one it takes one to four seconds."""

ASLEEP_S = 12.0
"""Longer than others wait for an answer on a connection."""

log = logging.getLogger("natlab")


def connects(host: Host, place: tuple[str, int]) -> bool:
    """Whether a stranger who was never spoken to can dial a place."""
    with closing(host.socket()) as sock:
        sock.settimeout(0.3)
        return sock.connect_ex(place) == 0


def told(peer: LabPeer, host: str, port: int = PORT) -> tuple[str, ...]:
    """Return what a peer says of itself that is dialled at one place."""
    return (f"/ip4/{host}/tcp/{port}/p2p/{peer.id}",)


def test_the_verdict_is_what_a_stranger_finds(world: World, internet: Internet) -> None:
    """Behind each kind of NAT, a firewall, and a router that passes the port on."""
    stranger = internet.host("stranger", "5.44.5.5")
    knows = tuple(each.address for each in world.public)
    peers: dict[str, tuple[LabPeer, str]] = {}
    for number, (kind, options) in enumerate(KINDS.items()):
        nat = internet.nat(kind, f"5.9.5.{20 + number}", **options)
        peers[kind] = world.inside(nat, f"10.{number}.0.2"), nat.address
    passing = internet.nat("passing", HOME)
    passing.forward(PORT, ("10.9.0.2", PORT))
    peers["passing"] = world.inside(passing, "10.9.0.2"), HOME
    for name, is_shut in (("open", False), ("firewall", True)):
        host = internet.host(name, f"5.10.5.{5 + is_shut}", firewall=is_shut)
        peers[name] = world.peer(host, Options(knows=knows)), host.address
    found = {}
    for kind, (peer, _) in peers.items():
        peer.wait(lambda state: state.reach != "unknown", SOON_S)
        first = next(state for state in peer.states if state.reach != "unknown")
        log.info("%s: %s after %.1f s", kind, first.reach, first.after_s)
        found[kind] = peer.state.reach
    assert found == {
        kind: "public" if connects(stranger, (host, PORT)) else "hidden"
        for kind, (_, host) in peers.items()
    }
    assert (found["passing"], found["home router"]) == ("public", "hidden")
    for kind, (peer, place) in peers.items():
        assert peer.state.addresses == (told(peer, place) if found[kind] == "public" else ())


def test_who_claims_to_have_dialled_makes_nobody_public(internet: Internet) -> None:
    """Not for a moment: the nonce has not come back."""
    with World(internet, lies=(True, True, False)) as world:
        peer = world.inside(internet.nat("home", HOME), INSIDE)
        peer.wait(lambda state: state.reach == "hidden", SOON_S)
        assert {state.reach for state in peer.states} == {"unknown", "hidden"}


@pytest.mark.long
def test_a_laptop_that_wakes_up_is_reachable_again(world: World, internet: Internet) -> None:
    """With the identity that it had, and at the port that its router gives it again."""
    home = internet.nat("home", HOME, inner=ROUTER)
    Pcp(home)
    peer = world.inside(home, INSIDE, maps_port=True)
    peer.wait(lambda state: state.reach == "public", SOON_S)
    with peer.asleep():
        home.forget(forwards=True)
        time.sleep(ASLEEP_S)
    after_s = peer.wait(lambda state: home.forwards and state.addresses == told(peer, HOME), SOON_S)
    log.info("told again after %.1f s", after_s)
    assert {state.peer for state in peer.states} == {peer.id}
    assert connects(world.public[0].host, (HOME, PORT))


@pytest.mark.long
def test_a_laptop_that_is_carried_elsewhere_is_reachable_there(
    world: World, internet: Internet
) -> None:
    """It says no more where it was, and asks the other router for a port."""
    home = internet.nat("home", HOME, inner=ROUTER)
    cafe = internet.nat("cafe", "5.12.5.11", inner="10.2.0.1", speaks_nat_pmp=True)
    Pcp(home)
    peer = world.inside(home, INSIDE, maps_port=True)
    peer.wait(lambda state: state.reach == "public", SOON_S)
    internet.move(peer.host, "10.2.0.7", behind=cafe)

    def is_there(state: State) -> bool:  # at a port that the router picks
        return state.addresses in [told(peer, "5.12.5.11", port) for port in cafe.forwards]

    log.info("told at the new place after %.1f s", peer.wait(is_there, SOON_S))
    assert connects(world.public[0].host, ("5.12.5.11", next(iter(cafe.forwards))))


@pytest.mark.long
def test_a_forward_by_hand_outlives_a_changed_outer_address(
    world: World, internet: Internet
) -> None:
    """No router tells of it: others see the peer at another address than before."""
    home = internet.nat("home", HOME)
    home.forward(PORT, (INSIDE, PORT))
    peer = world.inside(home, INSIDE)
    peer.wait(lambda state: state.reach == "public", SOON_S)
    internet.renumber(home, "5.9.6.12")
    after_s = peer.wait(lambda state: state.addresses == told(peer, "5.9.6.12"), SOON_S)
    log.info("told at the new address after %.1f s", after_s)
