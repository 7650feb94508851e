"""From circuits to direct connections, behind the NATs that homes have."""

import logging
import os
from contextlib import ExitStack, closing
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import pytest

from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.natlab.nats import ADDRESS, ENDPOINT_INDEPENDENT, KINDS, SYMMETRIC
from tests.support.natlab.punchers import (
    Attempt,
    Peer,
    attempt,
    be_hidden,
    open_rows,
    relay_address,
    relaying,
    said_back,
)
from transports.libp2p import punching

log = logging.getLogger("natlab")

PAIRS = list(combinations_with_replacement(KINDS, 2))
RUNS = int(os.environ.get("P2PINFER_PUNCH_RUNS", "4"))
DELAY_MS = 25.0
"""Of each NAT's link: 100 ms there and back between two homes."""


OTHER_BYTES_MAX = 8000
"""What circuits carry besides meanwhile, identify and pings: less than any one message."""


def punch(internet: Internet, one: dict[str, Any], other: dict[str, Any]) -> Attempt:
    """Let a host behind one NAT call one behind another."""
    return attempt(internet, home(internet, 0, "a", one), home(internet, 1, "b", other))


def home(internet: Internet, number: int, name: str, options: dict[str, Any]) -> Host:
    """Make a host behind a NAT; with an ``address6`` among the options, past it by IPv6, too."""
    six = options.get("address6", "")
    rest = {key: each for key, each in options.items() if key != "address6"}
    nat = internet.nat(f"n{name}", f"5.5.5.1{number}", delay_ms=DELAY_MS, **rest)
    return internet.host(name, f"10.{number}.0.2", behind=nat, address6=six)


def can_punch(*options: dict[str, Any]) -> bool:
    """Whether two such NATs can be opened for each other.

    Where one shows each place another port, the other must not look at ports.
    """
    hard = [each for each in options if each.get("mapping", ENDPOINT_INDEPENDENT) in NARROW]
    if len(hard) == 2:
        return False
    others = [each for each in options if each not in hard]
    return not hard or others[0].get("filtering") in (ADDRESS, ENDPOINT_INDEPENDENT)


NARROW = {each["mapping"] for each in KINDS.values() if "mapping" in each}


def test_two_homes_punch(internet: Internet) -> None:
    """At the first try; a channel that was open goes on, and later ones do not cross the relay."""
    found = punch(internet, {}, {})
    assert found.is_direct
    assert found.statistics.punched == (1, 0, 0)
    assert found.bytes_relayed < OTHER_BYTES_MAX
    assert found.bytes_relayed_before > 200_000
    assert not found.called_is_client
    assert not found.was_dialled


def test_two_homes_punch_by_ipv6_where_no_nat_can_be_opened(internet: Internet) -> None:
    """Many have no public address of IPv4 of their own, but one of IPv6 behind a firewall."""
    hosts = [
        home(internet, number, name, {**SYMMETRIC, "address6": f"2600:{number}::2"})
        for number, name in enumerate("ab")
    ]
    found = attempt(internet, hosts[0], hosts[1])
    assert found.is_direct
    assert found.statistics.punched == (1, 0, 0)
    assert found.statistics.reversed == 0
    assert found.bytes_relayed < OTHER_BYTES_MAX
    assert not found.was_dialled


def test_ipv6_at_one_end_alone_is_in_nobodys_way(internet: Internet) -> None:
    """Who calls the relay by it is seen there by IPv4, too."""
    found = punch(internet, {"address6": "2600::2"}, {})
    assert found.is_direct
    assert found.statistics.punched == (1, 0, 0)


def test_the_last_try_swaps_the_roles(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the first one is the last."""
    monkeypatch.setattr(punching, "TRIES_MAX", 1)
    found = punch(internet, {}, {})
    assert found.is_direct
    assert found.called_is_client


def test_peers_that_call_each_other_at_once_punch(internet: Internet) -> None:
    """Both begin to, with opposite roles; one gives way."""
    with ExitStack() as stack:
        stack.enter_context(relaying(internet))
        peers = []
        for number, name in enumerate("ab"):
            host = home(internet, number, name, {})
            peers.append(stack.enter_context(closing(Peer(host, name))))
        ways = [peer.run(be_hidden, peer.transport) for peer in peers]
        calls = []
        for peer, other, way in zip(peers, reversed(peers), reversed(ways), strict=True):
            open_one = partial(peer.run, open_rows, peer.transport, other.transport.peer_id, [way])
            calls.append(peer.host.call(open_one))
        for call in calls:
            call.result()
        for peer, other in zip(peers, reversed(peers), strict=True):
            found = peer.transport._connections(other.transport.peer_id)
            assert sum(each.relay is None for each in found) == 1
        said = [peer.transport.punches.statistics for peer in peers]
        assert sorted(each.punched for each in said) == [(0, 0, 0), (1, 0, 0)]
        assert [each.in_vain for each in said] == [0, 0]


def test_rows_between_public_and_hidden_peers_cross_no_relay(internet: Internet) -> None:
    """In a chain of public, hidden, public, hidden: who is hidden dials who is public.

    Behind symmetric NATs, which nothing else gets through.
    """
    with ExitStack() as stack:
        relay = stack.enter_context(relaying(internet))
        chain: list[Peer] = []
        ways: list[list[str]] = []
        for number in range(4):
            hidden = bool(number % 2)
            nat = internet.nat(f"n{number}", f"5.5.6.1{number}", **SYMMETRIC) if hidden else None
            address = f"10.{number}.0.2" if hidden else f"5.5.6.1{number}"
            host = internet.host(f"h{number}", address, behind=nat)
            peer = stack.enter_context(closing(Peer(host, host.name)))
            transport = peer.transport
            if hidden:
                ways.append([peer.run(be_hidden, transport)])
            else:
                peer.run(transport.connect, relay_address())
                ways.append([f"/ip4/{address}/tcp/4100/p2p/{transport.peer_id}"])
            chain.append(peer)
        said = {peer.transport.peer_id: way for peer, way in zip(chain, ways, strict=True)}
        for peer in chain:
            peer.transport.punches.addresses_of = said.__getitem__
        channels = [
            one.run(open_rows, one.transport, next_one.transport.peer_id, way)
            for one, next_one, way in zip(chain, chain[1:], ways[1:], strict=False)
        ]
        before = relay.transport.relay.statistics().bytes
        for peer, channel in zip(chain, channels, strict=False):
            peer.run(said_back, channel, 10)
        assert relay.transport.relay.statistics().bytes - before < OTHER_BYTES_MAX
        assert [each.transport.punches.statistics.reversed for each in chain] == [0, 1, 0, 1]


@pytest.mark.long
@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.parametrize(("one", "other"), PAIRS, ids=map(" - ".join, PAIRS))
def test_every_pair_that_can_punch_does(internet: Internet, one: str, other: str, run: int) -> None:
    """Either of them as the caller; the others talk through the relay soon."""
    pair = (one, other) if run % 2 else (other, one)
    found = punch(internet, KINDS[pair[0]], KINDS[pair[1]])
    log.info("%s | %s | %s | %.2f", *pair, found.statistics, found.waited_s)
    assert found.is_direct is can_punch(KINDS[one], KINDS[other])
