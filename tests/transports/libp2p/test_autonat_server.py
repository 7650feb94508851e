"""Which address a peer dials because a stranger asks for it."""

from p2pinfer.core.ids import PeerId
from transports.libp2p.autonat_messages import (
    DialDataRequest,
    DialDataResponse,
    DialRequest,
    DialResponse,
    DialStatus,
    RequestStatus,
    decode,
    encode,
)
from transports.libp2p.autonat_server import (
    DIALS_MAX,
    DIALS_PER_HOST_MAX,
    DIALS_PER_PEER_MAX,
    WINDOW_S,
    DialRates,
    choose,
)


def test_only_a_public_address_is_dialled() -> None:
    """No private one, no name, no relay, not this machine, no family without a way out."""
    refused = [
        "",
        "/ip4/192.168.1.1/tcp/80",
        "/ip4/127.0.0.1/tcp/80",
        "/dns4/router.local/tcp/80",
        "/ip6/2a01:1::1/tcp/80",
        "/ip4/5.5.5.5/tcp/80/p2p/R/p2p-circuit",
        "/ip4/5.5.5.5/tcp/0",
        "/ip4/5.5.5.5/tcp/65536",
        "/ip4/5.0.0.1/tcp/80",
    ]
    assert choose(refused, {"ip4"}, {"5.0.0.1"}) is None
    assert choose([*refused, "/ip4/5.9.0.1/tcp/4100"], {"ip4"}, {"5.0.0.1"}) == (
        len(refused),
        "5.9.0.1",
        4100,
    )


def test_dials_are_rated_by_asker_by_target_and_in_all() -> None:
    """Identities cost nothing, so one target is spared by all askers together."""
    rates = DialRates()
    one = [rates.take(0.0, PeerId("a"), f"5.0.0.{i}") for i in range(DIALS_PER_PEER_MAX + 1)]
    assert one == [True] * DIALS_PER_PEER_MAX + [False]
    rates = DialRates()
    many = [rates.take(0.0, PeerId(f"{i}"), "5.0.0.1") for i in range(DIALS_PER_HOST_MAX + 1)]
    assert many == [True] * DIALS_PER_HOST_MAX + [False]
    rates = DialRates()
    all_ = [rates.take(0.0, PeerId(f"{i}"), f"5.0.1.{i}") for i in range(DIALS_MAX + 1)]
    assert all_ == [True] * DIALS_MAX + [False]
    assert rates.take(WINDOW_S, PeerId("a"), "5.0.0.1")


def test_messages_come_back_as_they_were() -> None:
    """With their lengths before them, which the reader of the stream takes off."""
    for message in (
        DialRequest(("/ip4/5.9.0.1/tcp/4100",), 2**64 - 1),
        DialResponse(RequestStatus.OK, 3, DialStatus.DIAL_ERROR),
        DialDataRequest(1, 30_000),
    ):
        assert decode(encode(message)[1:]) == message
    assert decode(encode(DialDataResponse(4096))[2:]) == DialDataResponse(4096)
