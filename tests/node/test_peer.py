"""What whoever lends a machine is told of it."""

import random
from types import SimpleNamespace
from typing import Any

from p2pinfer.node.peer import _say_when_hidden
from peers.discovery.directory import Directory
from tests.support.directories import identity


class Reached:
    """A transport that listens, and was dialled or not."""

    def __init__(self) -> None:
        self.peer_id = identity(1).peer_id
        self.addresses = [f"/ip4/{host}/tcp/4001/p2p/{self.peer_id}" for host in ("a", "b")]
        self.was_dialled = False


def test_an_owner_hears_once_which_port_to_open() -> None:
    """And once that it is open; what is tried again and again meanwhile is no news."""
    told: list[str] = []
    transport: Any = Reached()
    directory = Directory(transport, identity(1), random.Random(1))
    swarm: Any = SimpleNamespace(transport=transport, directory=directory)
    _say_when_hidden(swarm, told.append)
    for hidden in (True, False, True, False, True):
        directory.advertiser.on_hidden(hidden)
    (once,) = told
    assert "open its TCP port 4001 to others" in once
    transport.was_dialled = True
    directory.advertiser.on_hidden(False)
    assert told[1:] == ["others can dial this peer now"]
