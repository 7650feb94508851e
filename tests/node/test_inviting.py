"""The ways in that an invitation names: of the peers that run here, or of those that answered."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.node import inviting
from p2pinfer.node.guest_tokens import open_tokens
from p2pinfer.node.invitation import Invitation
from p2pinfer.node.inviting import invitation_here, pick_ways, ways_in_told
from p2pinfer.node.known_peers import KnownPeers
from p2pinfer.node.status_socket import Status, ask_all, open_status
from tests.support.directories import Peer, identity
from transports.base import Reach
from transports.memory.network import MemoryNetwork
from transports.secret import token_id

A, B, C = (identity(number).peer_id for number in (1, 2, 3))
PUBLIC, SECOND = f"/ip4/203.0.113.7/tcp/1/p2p/{A}", f"/ip6/2001:db8::7/tcp/1/p2p/{A}"
OTHER, THIRD = f"/ip4/198.51.100.4/tcp/2/p2p/{B}", f"/ip4/192.168.1.9/tcp/3/p2p/{C}"
LOOP = f"/ip4/127.0.0.1/tcp/1/p2p/{A}"
MODEL = ModelId("5e" * 32)
KEY = b"k" * 32


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))


def running(*said: Status) -> Callable[..., Any]:
    """Return a stand-in for ask_all with these answers."""

    async def ask_all(question: Status) -> list[Status]:
        await trio.lowlevel.checkpoint()
        assert question == {"ways_in": True}
        return list(said)

    return ask_all


def told(
    network: str = "main", *own: str, others: tuple[tuple[str, ...], ...] = (), key: bytes = b""
) -> Status:
    """Return the status of a peer that serves, and is asked for its ways in."""
    ways = {"network": network, "key": key.hex() or None, "own": [*own], "others": [*others]}
    return {"role": "peer", "model": MODEL, "ways_in": ways}


async def test_only_who_asks_for_it_is_told_the_key() -> None:
    """Over the socket that only the owner can reach."""
    network = MemoryNetwork()
    async with network.join(A) as transport, network.join(B) as other:
        peer = Peer(1, transport)
        Peer(2, other)
        await peer.directory.enter(other.addresses)

        def answer(question: Status) -> Status:
            return ways_in_told(Reach("n", KEY), lambda: [PUBLIC], peer.directory, question)

        async with open_status(lambda: {"role": "peer"}, answer):
            (plain,) = await ask_all()
            (asked,) = await ask_all({"ways_in": True})
    assert "ways_in" not in plain
    assert asked["ways_in"] == {
        "network": "n",
        "key": KEY.hex(),
        "own": [PUBLIC],
        "others": [list(other.addresses)],
    }


def test_a_running_peer_knows_all_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its network, the key, the model, where it is and where another one is."""
    said = told("home", LOOP, PUBLIC, SECOND, others=((OTHER,), (THIRD,)), key=KEY)
    monkeypatch.setattr(inviting, "ask_all", running({"role": "gateway"}, said))
    expected = Invitation("home", KEY, MODEL, (PUBLIC, OTHER, THIRD))
    for network, key in ((None, None), ("home", None), ("home", KEY)):
        assert invitation_here(network, key) == expected


def test_a_single_use_invitation_leads_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its token is known, directly if it can be; not to others, and it has no key."""
    circuit = f"/ip4/198.51.100.4/tcp/4001/p2p/{B}/p2p-circuit/p2p/{A}"
    said = told("home", circuit, PUBLIC, others=((OTHER,),), key=KEY)
    monkeypatch.setattr(inviting, "ask_all", running(said))
    found = invitation_here(None, None, once=True)
    assert found.token
    assert found == Invitation("home", None, MODEL, (PUBLIC, circuit), found.token)
    assert list(open_tokens()) == [token_id(found.token)]
    for hopeless, sentence in (
        (told("home", others=((OTHER,),), key=KEY), "a peer on this machine that the guest can"),
        (told("open", PUBLIC), "anybody can enter the network open"),
    ):
        monkeypatch.setattr(inviting, "ask_all", running(hopeless))
        with pytest.raises(UserError, match=sentence):
            invitation_here(None, None, once=True)


def test_several_networks_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a name; what is reached from this machine alone is meant only where there is no other."""
    trial, home, work = told("local", LOOP), told("home", PUBLIC), told("work", OTHER)
    monkeypatch.setattr(inviting, "ask_all", running(trial, home))
    assert invitation_here(None, None).network == "home"
    assert invitation_here("local", None).addresses == (LOOP,)
    monkeypatch.setattr(inviting, "ask_all", running(trial, home, work))
    with pytest.raises(UserError, match=r"\(home, work\): name one by --network"):
        invitation_here(None, None)
    assert invitation_here("work", None).addresses == (OTHER,)


def test_without_a_running_peer_those_that_answered_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of that network and key; the latest first."""
    monkeypatch.setattr(inviting, "ask_all", running())
    now = time.time()
    KnownPeers("main").put({A: ((PUBLIC,), now - 9), B: ((OTHER,), now)}, 0)
    assert invitation_here(None, None) == Invitation("main", None, None, (OTHER, PUBLIC))
    with pytest.raises(UserError, match="no way into the network main is known"):
        invitation_here("main", KEY)


def test_no_way_in_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do; also where a peer runs that nobody can reach."""
    for said in ([], [told("main")]):
        monkeypatch.setattr(inviting, "ask_all", running(*said))
        with pytest.raises(UserError, match="start one with p2pinfer join"):
            invitation_here(None, None)


@pytest.mark.parametrize(
    "ways",
    [
        {},
        [],
        {"network": "main"},
        {"network": 1, "key": None, "own": [PUBLIC], "others": []},
        {"network": "NO NAME", "key": None, "own": [PUBLIC], "others": []},
        {"network": "main", "key": "xyz", "own": [PUBLIC], "others": []},
        {"network": "main", "key": None, "own": [1], "others": []},
        {"network": "main", "key": None, "own": [PUBLIC], "others": [1]},
    ],
)
def test_another_releases_answer_is_none(ways: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may mean something else by it."""
    monkeypatch.setattr(inviting, "ask_all", running({"role": "peer", "ways_in": ways}))
    with pytest.raises(UserError, match="no way into"):
        invitation_here(None, None)


def test_peers_take_turns() -> None:
    """One address of each before a second one of any; loopback where there is nothing else."""
    assert pick_ways([(PUBLIC, SECOND)], [(OTHER,)]) == (PUBLIC, OTHER, SECOND)
    assert pick_ways([(LOOP, PUBLIC)], [(PUBLIC,)]) == (PUBLIC,)
    assert pick_ways([(LOOP,)], [(LOOP,)]) == (LOOP,)
    assert pick_ways([()], []) == ()
    nonsense = ("", "nonsense", "/ip4/1.2.3.4/tcp/1", "/ip4/999.1.1.1/tcp/1/p2p/" + A, "/p2p/x")
    assert pick_ways([nonsense], [nonsense, (*nonsense, OTHER)]) == (OTHER,)


def test_what_leads_in_from_elsewhere_goes_before_more_of_one_network() -> None:
    """Such as a relay, before a laptop's second and third address at home."""
    homes = [f"/ip4/192.168.1.{number}/tcp/1/p2p/{A}" for number in (2, 3)]
    home6, circuit = (
        f"/ip6/fd00::2/tcp/1/p2p/{A}",
        f"/ip4/9.9.9.9/tcp/1/p2p/{B}/p2p-circuit/p2p/{A}",
    )
    name = f"/dns4/box.example.org/tcp/1/p2p/{A}"
    assert pick_ways([(*homes, home6, circuit, name)], []) == (homes[0], circuit, name)
