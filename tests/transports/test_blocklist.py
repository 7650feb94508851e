"""Peers to have nothing to do with."""

from transports.blocklist import Blocklist


def test_a_peer_is_blocked_for_good_or_for_a_while() -> None:
    """Others never are."""
    blocklist = Blocklist()
    blocklist.block("for good")
    blocklist.block("a while", until=60.0)
    assert [blocklist.blocks(peer, 59.0) for peer in ("for good", "a while", "other")] == [
        True,
        True,
        False,
    ]
    assert blocklist.blocks("for good", 1e9)
    assert not blocklist.blocks("a while", 60.0)


def test_the_first_to_be_blocked_is_forgotten_first() -> None:
    """However many identities somebody makes, no more are remembered."""
    blocklist = Blocklist(peers_max=2)
    for peer in ("a", "b", "c"):
        blocklist.block(peer)
    assert [blocklist.blocks(peer) for peer in ("a", "b", "c")] == [False, True, True]
