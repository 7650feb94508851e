"""What a member holds for one attempt at a round."""

from p2pinfer.core.learning import Digest, Payload
from peers.learning.group_sums import GroupSums


class Attempt:
    """What was fed to the round, and what this member computed for it; its ``nonce`` is its own."""

    def __init__(self, nonce: bytes) -> None:
        self.nonce = nonce
        self.sums: GroupSums | None = None
        self.fed: set[Digest] = set()
        self.bad: set[Digest] = set()
        self.met = self.closed = False
        self.losses: tuple[int, ...] = ()
        self.accepted: tuple[Payload, bytes, Digest] | None = None
