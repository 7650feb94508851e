"""A stage's side of vouchers: who was vouched for by some serving peer, it is not known which.

The signature is checked in a thread, as a token must not wait for it; a few at a time, since anyone
can send a wrong one. That a tag was shown is written down before it counts, so that not even a
stage that starts again takes it for two requesters.
"""

from collections.abc import Callable
from typing import Protocol

from p2pinfer.core.errors import RemoteProtocolError, UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.voucher import CLOCKS_APART_S_MAX, EPOCH_S, RingVoucher, epochs_taken
from peers.parts.protocol import Run, in_thread
from transports.identity import peer_of

CHECKS_MAX = 2
"""Signatures checked at once. Who comes meanwhile gets no credit for this session."""

TAGS_MAX = 8192
"""In an epoch, at one stage: twice the peers that it knows. Beyond, no voucher is taken."""


class TagBooks(Protocol):
    """Which requester showed a tag first, remembered for its epoch."""

    def first(self, stage: PeerId, epoch: int, tag: bytes, requester: PeerId) -> PeerId | None:
        """Return who showed a tag first, which is this requester if nobody did.

        None: there is no room for more in this epoch. Waits for the disk, and raises UserError.
        """
        ...


class TagMemory:
    """Books of tags in memory."""

    def __init__(self) -> None:
        self._tags: dict[tuple[PeerId, int], dict[bytes, PeerId]] = {}

    def first(self, stage: PeerId, epoch: int, tag: bytes, requester: PeerId) -> PeerId | None:
        """Return who showed a tag first; forget the tags of two epochs ago."""
        self._tags = {key: tags for key, tags in self._tags.items() if key[1] > epoch - 2}
        tags = self._tags.setdefault((stage, epoch), {})
        if tag not in tags and len(tags) >= TAGS_MAX:
            return None
        return tags.setdefault(tag, requester)


class TakenVouchers:
    """The requesters that some serving peer vouches for, at one stage.

    Args:
        stage: this peer.
        network: the swarm that vouchers must be for.
        clock_ms: the wall-clock time, in milliseconds.
        serves: whether a peer is known to serve now.
        books: of the tags.
        run: runs slow work, so that nothing else waits for it.
    """

    def __init__(
        self,
        stage: PeerId,
        network: str,
        clock_ms: Callable[[], int],
        serves: Callable[[PeerId], bool],
        books: TagBooks,
        run: Run = in_thread,
    ) -> None:
        self._stage, self._network, self._clock_ms = stage, network, clock_ms
        self._serves, self._books, self._run = serves, books, run
        self._until_ms: dict[PeerId, int] = {}
        self._tags: dict[tuple[int, bytes], PeerId] = {}
        self._checking = 0

    @property
    def requesters(self) -> int:
        """How many requesters have credit by a voucher now."""
        return sum(self.knows(each) for each in self._until_ms)

    def knows(self, requester: PeerId) -> bool:
        """Whether somebody vouches for a requester now."""
        return self._clock_ms() < self._until_ms.get(requester, 0)

    def admit(self, requester: PeerId, epoch: int) -> None:
        """Note that this peer itself vouches for a requester, until an epoch is over."""
        now_ms = self._clock_ms()
        self._until_ms = {peer: at for peer, at in self._until_ms.items() if now_ms < at}
        self._until_ms[requester] = 1000 * (EPOCH_S * (epoch + 1) + CLOCKS_APART_S_MAX)

    async def take(self, voucher: RingVoucher, requester: PeerId) -> None:
        """Note that somebody vouches for a requester.

        Vouchers of another epoch, or of rings with a peer that is not known to serve, are ignored:
        clocks and what peers know of each other differ.

        Raises:
            RemoteProtocolError: nobody of the ring signed for it, or for another one before.
        """
        if voucher.epoch not in epochs_taken(self._clock_ms()):
            return
        known = self._tags.get((voucher.epoch, voucher.tag))
        if known == requester:
            self.admit(requester, voucher.epoch)
            return
        if known:
            raise RemoteProtocolError(requester, "who vouches for it did so for another one")
        members = map(peer_of, voucher.ring)
        is_busy = self._checking >= CHECKS_MAX or len(self._tags) >= 2 * TAGS_MAX
        if is_busy or not all(map(self._serves, members)):
            return
        self._checking += 1
        try:
            if not await self._run(voucher.holds, requester, self._stage, self._network):
                raise RemoteProtocolError(requester, "nobody of its ring vouches for it")
            self._note(voucher, requester, await self._first(voucher, requester))
        finally:
            self._checking -= 1

    async def _first(self, voucher: RingVoucher, requester: PeerId) -> PeerId | None:
        what = self._stage, voucher.epoch, voucher.tag, requester
        try:
            found: PeerId | None = await self._run(self._books.first, *what)
        except UserError:  # serving goes on without books: what is remembered here still counts
            found = requester
        return found

    def _note(self, voucher: RingVoucher, requester: PeerId, first: PeerId | None) -> None:
        if first is None:
            return
        taken = epochs_taken(self._clock_ms())
        self._tags = {key: peer for key, peer in self._tags.items() if key[0] in taken}
        first = self._tags.setdefault((voucher.epoch, voucher.tag), first)
        if first != requester:
            raise RemoteProtocolError(requester, "who vouches for it did so for another one")
        self.admit(requester, voucher.epoch)
