"""How peers are reached, in words that a person can act on."""

import pytest

from p2pinfer.node.reach_words import own_reach, way_to
from tests.support.adverts import peer_id, through
from transports.base import Reachability

HOME = ("/ip4/192.168.1.7/tcp/40123/p2p/me", "/ip6/2001:db8::7/tcp/40123/p2p/me")
FORWARDED = ("/ip4/203.0.113.9/tcp/40124/p2p/me",)
RELAYED = (through("r"), through("s"))


@pytest.mark.parametrize(
    ("addresses", "relay", "is_connected", "words"),
    [
        ((), None, False, "not at all"),
        (FORWARDED, None, True, "directly"),
        (FORWARDED, "r", True, "directly"),
        (RELAYED, "s", True, "through relay …"),
        (RELAYED, None, True, "punched hole"),
        (RELAYED, None, False, " or …"),
    ],
)
def test_ways_to_others(
    addresses: tuple[str, ...], relay: str | None, is_connected: bool, words: str
) -> None:
    """By its own address, through a relay, or straight although nobody can dial it."""
    found = way_to(addresses, peer_id(relay) if relay else None, is_connected=is_connected)
    assert words in found
    assert (found.count("…") == 1) == (relay == "s")


@pytest.mark.parametrize(
    ("reachability", "addresses", "words", "advice"),
    [
        (Reachability.PUBLIC, HOME[1:], "dial it directly", ""),
        (Reachability.PUBLIC, FORWARDED, "the router's forwarded port 40124", ""),
        (
            Reachability.HIDDEN,
            RELAYED,
            "call it through relay …",
            "without a relay, forward TCP port",
        ),
        (Reachability.HIDDEN, (), "nobody can call it", "or run p2pinfer relay on a machine"),
        (Reachability.UNKNOWN, HOME, "nobody was asked", ""),
        (Reachability.UNKNOWN, (*HOME, *RELAYED), "is not known yet", ""),
    ],
)
def test_the_ways_to_this_machine(
    reachability: Reachability, addresses: tuple[str, ...], words: str, advice: str
) -> None:
    """What others found, and which port to forward where that would help."""
    found = own_reach(reachability, addresses, HOME)
    assert words in found.words
    assert advice in found.advice
    assert bool(found.advice) == (reachability is Reachability.HIDDEN)
    assert not advice or "TCP port 40123" in found.advice
