"""How members add their updates: `p2pinfer.core.sums`, as a round uses it."""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from p2pinfer.core.sums import (
    HELLO_BYTES,
    PUBLIC_BYTES,
    SEALED_BYTES,
    SumMember,
    encrypted_bytes,
    share_bytes,
)


class GroupSums(Protocol):
    """One member's side of an encrypted sum, as `p2pinfer.core.sums.SumMember` has it."""

    @property
    def hello(self) -> bytes:
        """What others seal to, and the hash of the public key."""
        ...

    @property
    def public(self) -> bytes:
        """The public key."""
        ...

    def meet(self, hellos: Mapping[int, bytes]) -> None:
        """Fix whose keys may count."""
        ...

    def sealed_for(self, other: int) -> bytes:
        """Return a share of the secret key for another member alone."""
        ...

    def take(self, giver: int, public: bytes, sealed: bytes) -> None:
        """Take another's keys; raises ValueError."""
        ...

    def close(self, givers: Collection[int]) -> None:
        """Fix whose keys count."""
        ...

    def encrypt(self, values: NDArray[np.int64]) -> bytes:
        """Encrypt an update."""
        ...

    def add(self, ciphertexts: Mapping[int, bytes]) -> bytes:
        """Add updates, and return the hash of the sum; raises ValueError."""
        ...

    def share(self, who: Collection[int]) -> bytes:
        """Return this member's share of the sum's decryption."""
        ...

    def open(self, shares: Mapping[int, bytes]) -> NDArray[np.int64]:
        """Return the sum; raises ValueError."""
        ...


@frozen
class SumScheme:
    """How updates are added without being seen."""

    make: Callable[[bytes, int, int, int, int], GroupSums]
    """Of a context, members, threshold, this member's number, and how many numbers."""
    hello_bytes: int
    public_bytes: int
    sealed_bytes: int
    encrypted_bytes: Callable[[int], int]
    share_bytes: Callable[[int], int]


def encrypted_sums(draw: Callable[[int], bytes]) -> SumScheme:
    """Return the sums that only more than half of a group can open; ``draw`` as `os.urandom`."""

    def make(context: bytes, members: int, threshold: int, me: int, count: int) -> SumMember:
        return SumMember(context, members, threshold, me, count, draw)

    return SumScheme(make, HELLO_BYTES, PUBLIC_BYTES, SEALED_BYTES, encrypted_bytes, share_bytes)
