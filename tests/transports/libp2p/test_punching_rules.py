"""What a hidden peer can be made to dial, and how often."""

import pytest

from transports.libp2p import punching_rules as rules
from transports.libp2p.punching_rules import CONNECT, Ledger, choose, decode, encode

OURS = ["/ip4/5.5.5.11/tcp/4100", "/ip4/192.168.1.7/tcp/4100"]


@pytest.mark.parametrize(
    ("theirs", "dialled"),
    [
        ("/ip4/5.5.5.12/tcp/4100", [("5.5.5.12", 4100)]),
        ("/ip4/192.168.1.1/tcp/4100", []),  # nothing says that it is of this home
        ("/ip4/5.5.5.11/tcp/9 /ip4/192.168.1.8/tcp/4100", [("5.5.5.11", 9), ("192.168.1.8", 4100)]),
        ("/ip4/5.5.5.11/tcp/9 /ip4/192.168.1.1/tcp/80", [("5.5.5.11", 9)]),
        ("/ip4/5.5.5.11/tcp/9 /ip4/10.0.0.8/tcp/4100", [("5.5.5.11", 9)]),
        ("/ip4/5.5.5.11/tcp/9 /ip4/127.0.0.1/tcp/4100", [("5.5.5.11", 9)]),
        ("/ip4/224.0.0.1/tcp/4100 /ip4/169.254.1.1/tcp/4100 /dns4/a.b/tcp/80", []),
        (
            " ".join(f"/ip4/5.5.6.{n}/tcp/1" for n in range(9)),
            [(f"5.5.6.{n}", 1) for n in range(4)],
        ),
    ],
)
def test_only_public_addresses_and_this_home_are_dialled(
    theirs: str, dialled: list[tuple[str, int]]
) -> None:
    """Four at most, and of this home only what both are seen to share."""
    assert choose(theirs.split(), OURS) == dialled


def test_messages_are_read_back() -> None:
    """Addresses that cannot be read are left out; what is no message is a ValueError."""
    assert decode(encode(CONNECT, OURS)) == (CONNECT, OURS)
    assert decode(encode(CONNECT, OURS) + b"\x12\x01\xff") == (CONNECT, OURS)
    with pytest.raises(ValueError, match="ends too soon"):
        decode(encode(CONNECT, OURS)[:-1])


def test_tries_are_few() -> None:
    """Two for one peer in ten minutes, eight at once, thirty a minute in all."""
    ledger = Ledger()
    assert [ledger.begin("a", 0.0), ledger.begin("a", 1.0), ledger.begin("a", 2.0)] == [1, 2, 0]
    assert [ledger.begin(f"p{n}", 3.0) for n in range(7)] == [1] * 6 + [0]
    for peer in ("a", "a", *(f"p{n}" for n in range(6))):
        ledger.end(peer, succeeded=False)
    assert ledger.begin("a", rules.REST_S - 1) == 0
    assert ledger.begin("a", rules.REST_S + 2) == 1
    ledger.end("a", succeeded=True)
    assert ledger.begin("a", rules.REST_S + 3) == 1
    ledger.end("a", succeeded=False)
    begun = 0
    for n in range(100):
        if ledger.begin(f"q{n}", 5000.0):
            begun += 1
            ledger.end(f"q{n}", succeeded=False)
    assert begun == rules.TRIES_PER_MINUTE_MAX
