"""What a hidden peer can be made to dial, and how often."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch as Official

from transports.libp2p import protobuf
from transports.libp2p import punching_rules as rules
from transports.libp2p.punching_rules import (
    CONNECT,
    SYNC,
    HolePunch,
    Ledger,
    choose,
    decode,
    encode,
    public,
)

OWN = {"5.5.5.11", "192.168.1.7", "2600:1:2:3::7", "fe80::7", "::1"}
TOLD = ("/ip4/5.5.5.12/tcp/4100", "/ip4/5.5.5.12/tcp/9")


@pytest.mark.parametrize(
    ("theirs", "dialled"),
    [
        (" ".join(TOLD), [("5.5.5.12", 4100), ("5.5.5.12", 9)]),
        ("/ip4/192.168.1.8/tcp/4100 /ip4/10.0.0.8/tcp/4100 /ip4/127.0.0.1/tcp/4100", []),
        ("/ip4/5.5.5.11/tcp/4100 /ip4/192.168.1.8/tcp/4100", [("5.5.5.11", 4100)]),
        ("/ip4/5.5.5.11/tcp/80 /ip4/5.5.5.11/tcp/0", []),
        ("/ip4/224.0.0.1/tcp/4100 /ip4/169.254.1.1/tcp/4100 /dns4/a.b/tcp/80", []),
        ("/ip4/5.5.5.12/tcp/70000 /ip4/5.5.5.12/udp/4100 /ip4/5.5.5.12/tcp/1/ws", []),
        (
            " ".join(f"/ip4/5.5.6.{n}/tcp/1" for n in range(9)),
            [("5.5.6.0", 1), ("5.5.6.1", 1)],
        ),
        (
            " ".join(f"/ip4/5.5.6.6/tcp/{n}" for n in range(1, 9)),
            [("5.5.6.6", n) for n in range(1, 5)],
        ),
        (
            "/ip6/2600:1:3::8/tcp/4100 /ip6/2600:1:4::8/tcp/4100 /ip4/5.5.5.12/tcp/4100",
            [("2600:1:3::8", 4100), ("5.5.5.12", 4100)],
        ),
        # Machines of its own home are as global as any, and so is what a carrier translates.
        ("/ip6/2600:1:2:3::8/tcp/4100 /ip6/2600:1:2:4::8/tcp/4100", []),
        ("/ip6/64:ff9b::a00:1/tcp/80 /ip6/::ffff:5.5.5.12/tcp/80 /ip6/2002:a00:1::1/tcp/80", []),
        ("/ip6/fd00::8/tcp/4100 /ip6/fe80::8/tcp/4100 /ip6/::1/tcp/4100 /ip4/2600::8/tcp/1", []),
    ],
)
def test_only_a_few_addresses_of_the_internet_are_dialled(
    theirs: str, dialled: list[tuple[str, int]]
) -> None:
    """Four on two hosts, none of a private network, and no service of this peer's own router."""
    assert choose(theirs.split(), OWN, ("ip4", "ip6")) == dialled
    by_ipv4 = [(host, port) for host, port in dialled if ":" not in host]
    assert choose(theirs.split(), OWN, ("ip4",)) == by_ipv4


def test_who_is_public_is_dialled_there_alone() -> None:
    """Names could lead anywhere, and a relay is no way to be direct."""
    told = ["/ip4/5.5.5.5/tcp/1/p2p/x", "/ip6/2a00::1/tcp/1/p2p/x"]
    others = [
        "/dns4/a.b/tcp/1/p2p/x",
        "/ip4/10.0.0.1/tcp/1",
        "/ip6/fe80::1/tcp/1",
        "/ip6/::ffff:10.0.0.1/tcp/1",
        "/ip4/5.5.5.5/tcp/1/p2p/r/p2p-circuit/p2p/x",
    ]
    assert public([*others, *told]) == told


def test_messages_are_those_of_the_specification() -> None:
    """The library reads ours and we its; what is no message is a ValueError."""
    ours = HolePunch(CONNECT, TOLD)
    official = Official.FromString(encode(ours))
    assert official.type == CONNECT
    assert len(official.ObsAddrs) == len(TOLD)
    assert decode(official.SerializeToString()) == ours
    assert decode(encode(HolePunch(SYNC))) == HolePunch(SYNC)
    swapped = HolePunch(CONNECT, TOLD, swapped=True)
    assert decode(encode(swapped)) == swapped
    assert Official.FromString(encode(swapped)).type == CONNECT
    assert decode(encode(ours) + b"\x12\x01\xff") == ours
    with pytest.raises(ValueError, match="ends too soon"):
        decode(encode(ours)[:-1])
    with pytest.raises(ValueError, match="unknown type"):
        decode(protobuf.number(1, 7))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_value_error(body: bytes) -> None:
    """And nothing but addresses of the Internet comes out of them."""
    try:
        found = decode(body)
    except ValueError:
        return
    assert len(choose(found.addresses, OWN, ("ip4", "ip6"))) <= rules.ADDRESSES_MAX
    assert decode(encode(found)).kind == found.kind


def test_tries_are_few() -> None:
    """Three for one peer in ten minutes, eight at once, six a minute at one host, thirty in all."""
    ledger = Ledger()
    assert [ledger.begin("a", ["h"], 0.0) for _ in range(4)] == [True, True, True, False]
    assert [ledger.begin(f"p{n}", ["h"], 1.0) for n in range(4)] == [True] * 3 + [False]
    assert [ledger.begin(f"q{n}", [f"h{n}"], 2.0) for n in range(3)] == [True] * 2 + [False]
    for peer in ("a", "a", "a", "p0", "p1", "p2", "q0", "q1"):
        ledger.end(peer, succeeded=False)
    assert not ledger.begin("a", ["i"], rules.REST_S - 1)
    assert ledger.begin("a", ["i"], rules.REST_S + 1)
    ledger.end("a", succeeded=False)
    begun = 0
    for n in range(100):
        if ledger.begin(f"r{n}", [f"i{n}"], 5000.0):
            begun += 1
            ledger.end(f"r{n}", succeeded=False)
    assert begun == rules.TRIES_IN_WINDOW_MAX
    assert (ledger.won, ledger.lost) == (0, ledger.begun)


def test_who_has_proved_itself_may_be_tried_again() -> None:
    """But a host is not dialled more often for that."""
    ledger = Ledger()
    begun = 0
    for _ in range(20):
        if ledger.begin("a", ["h"], 0.0):
            begun += 1
            ledger.end("a", succeeded=True)
    assert begun == rules.TRIES_PER_HOST_MAX
    assert ledger.begin("b", ["i"], 0.0)
    assert (ledger.won, ledger.lost) == (begun, 0)  # one is under way
