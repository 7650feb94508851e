"""Running peers of this machine give its other commands a way into their network."""

from collections.abc import Callable
from typing import Any

import pytest
import trio

from p2pinfer.node import local_peers
from p2pinfer.node.local_peers import Here, peers_here, ways_in
from p2pinfer.node.status_socket import Status
from tests.support.swarm import peer
from transports.interfaces import Address

LAN, LOOP = "/ip4/192.168.1.7/tcp/1/p2p/a", "/ip4/127.0.0.1/tcp/1/p2p/a"


@pytest.fixture(autouse=True)
def _on_a_lan(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [Address("lo", "127.0.0.1"), Address("eth0", "192.168.1.7")]
    monkeypatch.setattr(local_peers, "machine_addresses", lambda: own)


def running(*said: Status) -> Callable[[], Any]:
    """Return a stand-in for ask_all with these answers."""

    async def ask_all() -> list[Status]:
        await trio.lowlevel.checkpoint()
        return list(said)

    return ask_all


def serving(network: str = "main", **more: Any) -> Status:
    """Return a peer's status."""
    return {"role": "peer", "network": network, "peer": peer("a"), "addresses": [LAN, LOOP]} | more


def test_a_peer_is_a_way_into_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the person names an address; peers of other networks do not count."""
    monkeypatch.setattr(local_peers, "ask_all", running(serving(), {"role": "gateway"}))
    assert peers_here("main") == [Here(peer("a"), (LAN, LOOP))]
    assert ways_in((), "main") == (LAN,)
    assert ways_in((), "other") == ()
    assert ways_in(("/ip4/1.2.3.4/tcp/1",), "main") == ("/ip4/1.2.3.4/tcp/1",)


def test_peers_of_another_network_here_are_pointed_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as those of ``serve --local``; not where one of the wanted network runs, too."""
    monkeypatch.setattr(local_peers, "ask_all", running(serving("local")))
    assert ways_in((), "main") == ()
    assert "to reach them: --network local\n" in capsys.readouterr().err
    monkeypatch.setattr(local_peers, "ask_all", running(serving("local"), serving()))
    assert ways_in((), "main") == (LAN,)
    assert capsys.readouterr().err == ""


def test_a_peer_here_is_called_at_this_machines_own_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An announced one comes first, but not every router leads back from within."""
    outer = "/ip4/203.0.113.7/tcp/1/p2p/a"
    monkeypatch.setattr(local_peers, "ask_all", running(serving(addresses=[outer, LAN, LOOP])))
    assert ways_in((), "main") == (LAN,)
    monkeypatch.setattr(local_peers, "ask_all", running(serving(addresses=[outer])))
    assert ways_in((), "main") == (outer,)
    relayed = serving(
        addresses=[f"{outer}/p2p-circuit/p2p/b"], own_addresses=[LAN], advice="forward"
    )
    monkeypatch.setattr(local_peers, "ask_all", running(relayed))
    assert ways_in((), "main") == (LAN,)  # a relay is no way to this machine
    assert [here.advice for here in peers_here("main")] == ["forward"]


@pytest.mark.parametrize(
    "said",
    [
        {},
        serving(addresses=[]),
        serving(addresses=[1]),
        serving(addresses="no list"),
        serving(peer=None),
        serving() | {"network": None},
    ],
)
def test_a_status_without_an_address_is_no_way_in(
    said: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another release may answer differently."""
    monkeypatch.setattr(local_peers, "ask_all", running(said))
    assert ways_in((), "main") == ()
