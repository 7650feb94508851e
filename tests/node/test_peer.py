"""Messages to the owner of a machine that runs a peer."""

import random
from types import SimpleNamespace
from typing import Any

from p2pinfer.node.owner_notices import notify_owner
from p2pinfer.node.peer import _strange_selves
from peers.discovery.directory import Directory
from tests.support.directories import identity
from transports.base import Reachability


class Reached:
    """A transport that listens, and was dialled or not."""

    def __init__(self) -> None:
        self.peer_id = identity(1).peer_id
        self.addresses = [f"/ip4/{host}/tcp/4001/p2p/{self.peer_id}" for host in ("a", "b")]
        self.was_dialled = False
        self.port_mapping = ""
        self.reachability = Reachability.UNKNOWN


def test_an_owner_hears_once_which_port_to_open() -> None:
    """And once that it is open; repeated tries in between print nothing."""
    told: list[str] = []
    transport: Any = Reached()
    directory = Directory(transport, identity(1), random.Random(1))
    swarm: Any = SimpleNamespace(transport=transport, directory=directory)
    notify_owner(swarm, told.append)
    for hidden in (True, False, True, False, True):
        directory.advertiser.on_hidden(hidden)
    (once,) = told
    assert "open its TCP port 4001 in the firewall" in once
    transport.was_dialled = True
    directory.advertiser.on_hidden(False)
    assert told[1:] == ["others can dial this peer now"]


def test_an_owner_hears_what_the_router_said() -> None:
    """It may say what to change in its settings."""
    told: list[str] = []
    transport: Any = Reached()
    transport.port_mapping = "the router 10.1.0.1 passes no port on"
    directory = Directory(transport, identity(1), random.Random(1))
    swarm: Any = SimpleNamespace(transport=transport, directory=directory)
    notify_owner(swarm, told.append)
    directory.advertiser.on_hidden(True)
    assert told[0].endswith("; the router 10.1.0.1 passes no port on")


def test_an_owner_who_announced_an_address_hears_that_it_leads_nowhere() -> None:
    """It is the router that has to be looked at, not another port."""
    told: list[str] = []
    transport: Any = Reached()
    directory = Directory(transport, identity(1), random.Random(1))
    swarm: Any = SimpleNamespace(transport=transport, directory=directory)
    notify_owner(swarm, told.append, ["/ip4/203.0.113.7/tcp/4001"])
    directory.advertiser.on_hidden(True)
    (once,) = told
    assert "see that /ip4/203.0.113.7/tcp/4001 leads to this machine" in once


def test_an_owner_hears_of_a_machine_with_the_same_key() -> None:
    """From its advertisements, or when it is given as the bootstrap address."""
    told: list[str] = []
    transport: Any = Reached()
    directory = Directory(transport, identity(1), random.Random(1))
    swarm: Any = SimpleNamespace(transport=transport, directory=directory)
    notify_owner(swarm, told.append)
    directory.advertiser.on_twin()
    (once,) = told
    assert "another machine runs with this peer's identity" in once
    assert "--identity FILE" in once
    own, me = transport.addresses[0], transport.peer_id
    elsewhere = f"/ip4/192.0.2.9/tcp/4001/p2p/{me}"
    other = "/ip4/192.0.2.9/tcp/4001/p2p/12D3KooW"
    assert _strange_selves(transport, (own, elsewhere, other)) == [elsewhere]
