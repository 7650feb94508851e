"""How members add their updates: `p2pinfer.core.sums`, as a round uses it."""

from collections.abc import Callable

from p2pinfer.core.sums import (
    HELLO_BYTES,
    PUBLIC_BYTES,
    SEALED_BYTES,
    SumMember,
    encrypted_bytes,
    share_bytes,
)
from peers.learning.member import SumScheme


def encrypted_sums(draw: Callable[[int], bytes]) -> SumScheme:
    """Return the sums that only more than half of a group can open; ``draw`` as `os.urandom`."""

    def make(context: bytes, members: int, threshold: int, me: int, count: int) -> SumMember:
        return SumMember(context, members, threshold, me, count, draw)

    return SumScheme(make, HELLO_BYTES, PUBLIC_BYTES, SEALED_BYTES, encrypted_bytes, share_bytes)
