"""Vouchers on one machine: the peer that serves here vouches for a requester from here, unnamed.

It is asked over its status socket, which only its owner can reach, and signs with its own key as
one of a ring of serving peers (`p2pinfer.core.voucher`). It vouches for one requester in an epoch:
for two, stages would refuse the second, and know that the two belong together.
"""

import logging
import secrets
from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from p2pinfer.core.edwards import POINT_BYTES, scalar_of
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ring_signature import CHANCE_BYTES, RING_MIN
from p2pinfer.core.sponsor import Sponsor
from p2pinfer.core.voucher import RingVoucher, epoch_at, ring_of, vouch
from p2pinfer.node.local_peers import is_peer_of
from p2pinfer.node.sponsors import Sponsorship, clock_ms
from p2pinfer.node.status_socket import Status, ask_all
from p2pinfer.node.swarm_connection import name_of
from peers.receipts.session_evidence import Vouch, nobody
from peers.serving.vouchers import TakenVouchers
from transports.base import Reach
from transports.identity import Identity, public_key

_log = logging.getLogger("p2pinfer.voucher")

STAGES_MAX = 1024
"""Whose vouchers a requester keeps for an epoch; a route and its audits take a dozen."""

_FIELDS = ("keys", "tag", "challenge", "answers")


class AccountOptions(Protocol):
    """On whose account a client asks: see ``ClientOptions``."""

    @property
    def network(self) -> str | Reach:
        """The swarm."""
        ...

    @property
    def is_named(self) -> bool:
        """On that of a peer that serves on this machine, if there is one, and by its name."""
        ...

    @property
    def anonymous(self) -> bool:
        """Without naming it."""
        ...


class VouchingPeer:
    """A serving peer that vouches for a requester on its machine.

    Args:
        identity: its own.
        network: its swarm's name.
        clock_ms: the wall-clock time, in milliseconds.
        draw: returns that many unpredictable bytes.
    """

    def __init__(
        self,
        identity: Identity,
        network: str,
        clock_ms: Callable[[], int] = clock_ms,
        draw: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._identity, self._network = identity, network
        self._clock_ms, self._draw = clock_ms, draw
        self._serving: Callable[[], Iterable[PeerId]] | None = None
        self._taken: TakenVouchers | None = None
        self._epoch, self._for = -1, PeerId("")
        self._ring = 0

    def begin(
        self, serving: Callable[[], Iterable[PeerId]], taken: TakenVouchers | None = None
    ) -> None:
        """Vouch from now on.

        Args:
            serving: returns the peers that serve the same model now, this one left out.
            taken: the vouchers that it takes as a stage.
        """
        self._serving, self._taken = serving, taken

    @property
    def as_one_of(self) -> int:
        """Among how many peers it vouches for somebody in this epoch; 0 where it does not."""
        return self._ring if self._epoch == epoch_at(self._clock_ms()) else 0

    def status(self) -> Status:
        """Say how many requesters have credit here by a voucher, and whether this peer vouches."""
        if self._taken is None:
            return {}
        return {"vouched": {"for": self._taken.requesters, "as_one_of": self.as_one_of}}

    def answer(self, question: Status) -> Status:
        """Return a voucher for the requester and the stage that a question names, or {}."""
        match question:
            case {"vouch_for": str(requester), "at": str(stage)}:
                made = self._vouch(PeerId(requester), PeerId(stage))
                return {"voucher": _told(made)} if made else {}
        return {}

    def _vouch(self, requester: PeerId, stage: PeerId) -> RingVoucher | None:
        if self._serving is None:
            return None
        epoch = epoch_at(self._clock_ms())
        try:
            if epoch == self._epoch and requester != self._for:
                _log.info("another requester here has this peer's voice until the next epoch")
                return None
            public_key(requester)
            if stage == self._identity.peer_id:  # its own requester, which it can see
                self._epoch, self._for = epoch, requester
                if self._taken:
                    self._taken.admit(requester, epoch)
                return None
            serving = set(self._serving())
            if stage not in serving:  # of another model, or gone
                return None
            me, *others = map(public_key, (self._identity.peer_id, *(serving - {stage})))
            ring = ring_of(me, others)
            if len(ring) < RING_MIN:
                return None
            secret, chance = scalar_of(self._identity.seed), self._draw(CHANCE_BYTES * len(ring))
            made = vouch(secret, ring, epoch, requester, stage, self._network, chance)
        except ValueError:  # such as a text that is no peer's id
            return None
        self._epoch, self._for, self._ring = epoch, requester, len(ring)
        return made


def speaking_for(
    nursery: trio.Nursery, requester: PeerId, options: AccountOptions
) -> tuple[Callable[[], Sponsor | None], Vouch]:
    """Return what returns the sponsor that a requester names, and what returns its vouchers.

    Args:
        nursery: looks for a sponsor.
        requester: the requester's id.
        options: on whose account it asks.
    """
    network = name_of(options.network)
    sponsorship, vouchers = Sponsorship(requester, network), RequesterVouchers(requester, network)
    if options.is_named:
        nursery.start_soon(sponsorship.run)
    return sponsorship.current, vouchers.voucher if options.anonymous else nobody


class RequesterVouchers:
    """A requester's vouchers, which it asks of a peer on its machine, one for each stage.

    Args:
        requester: the requester's id.
        network: its swarm's name.
        clock_ms: the wall-clock time, in milliseconds.
    """

    def __init__(
        self, requester: PeerId, network: str, clock_ms: Callable[[], int] = clock_ms
    ) -> None:
        self._requester, self._network, self._clock_ms = requester, network, clock_ms
        self._epoch = -1
        self._made: dict[PeerId, RingVoucher] = {}

    async def voucher(self, stage: PeerId) -> RingVoucher | None:
        """Return a voucher for a stage, if a peer here vouches."""
        epoch = epoch_at(self._clock_ms())
        if epoch != self._epoch or len(self._made) >= STAGES_MAX:
            self._epoch, self._made = epoch, {}
        if stage not in self._made:
            question = {"vouch_for": self._requester, "at": stage}
            try:
                said = await ask_all(question)
            except UserError as error:
                _log.info("cannot ask for a voucher: %s", error)
                return None
            found = (self._read(each) for each in said if is_peer_of(each, self._network))
            made = next((each for each in found if each and each.epoch == epoch), None)
            if made is None:
                return None
            self._made[stage] = made
        return self._made[stage]

    def ring(self) -> int:
        """Return how many peers the smallest ring has that vouches now; 0 if none does."""
        is_now = self._epoch == epoch_at(self._clock_ms())
        sizes = [len(each.keys) // POINT_BYTES for each in self._made.values()]
        return min(sizes, default=0) if is_now else 0

    @staticmethod
    def _read(said: Status) -> RingVoucher | None:
        match said:
            case {"state": "serving", "voucher": {"epoch": int(epoch), **fields}}:
                try:
                    return RingVoucher(
                        epoch, *(bytes.fromhex(str(fields[name])) for name in _FIELDS)
                    )
                except (KeyError, ValueError):
                    return None
        return None


def _told(made: RingVoucher) -> Status:
    return {"epoch": made.epoch} | {name: getattr(made, name).hex() for name in _FIELDS}
