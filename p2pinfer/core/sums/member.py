"""One member's part in one encrypted sum, from its keys to the sum; bytes in, bytes out.

    hello       a sealing key, and a hash of the public key: all of them are known
    meet        before anybody shows its public key. One that showed its own last could choose it so
                that the sum of all is a key whose secret it has alone
    public      with a share of the secret, sealed for each other member
    take        another's
    close       those whose keys count, as all agree
    encrypt     numbers under the sum of these keys
    add         the members' ciphertexts: this is the one sum that this member helps to open
    share       its part of the opening, among as many as the threshold says
    open        all parts of one opening: the sum

Everything here is computed in plain functions and waits for nothing. What arrives is checked in
``meet``, ``take``, ``add`` and ``open``, which raise ``BadSum`` with the member that sent it and
change nothing then.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.sums.chance import KEY_BYTES, Draw, expansion
from p2pinfer.core.sums.layout import BadSum, poly_bytes, poly_of_bytes, poly_to_bytes
from p2pinfer.core.sums.parameters import (
    MEMBERS_MAX,
    NUMBER_MAX,
    STANDARD,
    SumParameters,
)
from p2pinfer.core.sums.ring import Poly
from p2pinfer.core.sums.sealing import (
    SEAL_BYTES,
    SEALING_KEY_BYTES,
    SEED_BYTES,
    SealingKey,
    check_sealing_key,
    seal,
)
from p2pinfer.core.sums.threshold import (
    DoesNotOpen,
    PublicKey,
    Sharer,
    common,
    deal,
    draw_keys,
    opened,
)

CONTEXT_BYTES = 32
HASH_BYTES = 32
HELLO_BYTES = HASH_BYTES + SEALING_KEY_BYTES
PUBLIC_BYTES = poly_bytes(STANDARD.ring)
SEALED_BYTES = PUBLIC_BYTES + KEY_BYTES + SEAL_BYTES
NUMBERS_MAX = 1 << 26
"""Of one sum: 640 MiB of ciphertexts a member; the sum takes 1.6 GB of memory."""
SETS_MAX = 3
"""Sets of members that share one sum, if some of the first set are gone. Each shows the sum with
other noise, so each takes a little from what hides it."""

_COMMON = "p2pinfer 1 what the keys of a sum have in common"
_COMMITMENT = "p2pinfer 1 public key in a sum"
_MASK = "p2pinfer 1 mask between two that open a sum"
_SUM = "p2pinfer 1 sum"


class SumRefused(P2pinferError):
    """This member was asked for what it must not do, or cannot do yet."""


@contextmanager
def _blamed(member: int) -> Iterator[None]:
    """Put a member's number into what is found wrong with what it sent."""
    try:
        yield
    except BadSum as error:
        error.member = member
        raise


SUMMED_MIN = 3
"""Of two in a sum, each would see what the other added."""


def default_threshold(members: int) -> int:
    """Return how many members open a sum, unless a task says otherwise: more than half."""
    return members // 2 + 1


def least_summed(members: int) -> int:
    """Return how many of a group must be in its sum, so that no one member sees another's share.

    In a group of two each does: who is in one has agreed to that.
    """
    return max(default_threshold(members), min(members, SUMMED_MIN))


def encrypted_bytes(count: int, parameters: SumParameters = STANDARD) -> int:
    """Return the size of ``count`` encrypted numbers."""
    return 2 * share_bytes(count, parameters)


def share_bytes(count: int, parameters: SumParameters = STANDARD) -> int:
    """Return the size of a share of ``count`` numbers."""
    return parameters.ciphertexts(count) * poly_bytes(parameters.ring)


class SumMember:
    """A member's part in one sum. Use it once, and drop it: it holds the keys.

    Args:
        context: ``CONTEXT_BYTES`` that name the sum, such as a hash of task, round and members.
        members: how many may take part; they are numbered from 0.
        threshold: how many of them open the sum.
        me: this one's number.
        count: how many numbers are added.
        draw: where secrets come from: ``os.urandom``.
        parameters: smaller ones in tests.
    """

    def __init__(
        self,
        context: bytes,
        members: int,
        threshold: int,
        me: int,
        count: int,
        draw: Draw,
        parameters: SumParameters = STANDARD,
    ) -> None:
        assert len(context) == CONTEXT_BYTES, context
        assert 2 <= threshold <= members <= MEMBERS_MAX, (threshold, members)
        assert 0 <= me < members, me
        assert 1 <= count <= NUMBERS_MAX, count
        self._context, self._members, self._threshold = context, members, threshold
        self._me, self._count, self._draw, self._parameters = me, count, draw, parameters
        self._ring = parameters.ring
        key = blake3(context, derive_key_context=_COMMON).digest()
        self._a = common(parameters, key)
        self._secret, b = draw_keys(parameters, self._a, draw)
        self._sealing = SealingKey(draw(SEED_BYTES))
        self.public = poly_to_bytes(self._ring, b)
        """This member's public key, to be shown to those that it has met."""
        self.hello = self._commitment(me, self.public) + self._sealing.public
        """What this member commits itself to, to be shown first."""
        self.margin_bits: float | None = None
        """How many more bits of noise the sum that was opened would have borne."""
        self._hellos: dict[int, bytes] = {}
        self._dealt: dict[int, bytes] = {}  # what this member gives to each, unsealed
        self._taken: dict[int, tuple[bytes, bytes]] = {}  # from each: its public key and its share
        self._givers: frozenset[int] = frozenset()
        self._key: PublicKey | None = None
        self._held: Poly | None = None
        self._given: set[bytes] = set()  # hashes of what this member has encrypted
        self._sum: tuple[NDArray[np.float64], bytes] | None = None
        self._shares: dict[frozenset[int], bytes] = {}

    def meet(self, hellos: Mapping[int, bytes]) -> None:
        """Note what the members have committed themselves to, once and for all.

        Raises:
            BadSum: one is no hello; those that are may be met without it.
            SumRefused: too few for a sum, or others were met before.
        """
        for member, hello in hellos.items():
            with _blamed(member):
                self._check_number(member)
                if len(hello) != HELLO_BYTES:
                    raise BadSum(f"{len(hello)} bytes are no hello")
                check_sealing_key(hello[HASH_BYTES:])
        met = {**hellos, self._me: self.hello}
        if self._hellos and met != self._hellos:
            raise SumRefused("the members of this sum have been met")
        if len(met) < self._threshold:
            raise SumRefused(f"{len(met)} members are too few for a sum")
        if self._hellos:
            return
        self._hellos = met
        parameters, draw = self._parameters, self._draw
        shares = deal(parameters, self._secret, self._members, self._threshold, draw)
        for member, share in enumerate(shares):
            self._dealt[member] = poly_to_bytes(self._ring, share) + draw(KEY_BYTES)
        self._taken[self._me] = self.public, self._dealt[self._me]

    def sealed_for(self, member: int) -> bytes:
        """Return what this member gives to another one that it has met."""
        info = self._info(self._me, member)
        return seal(self._dealt[member], self._hellos[member][HASH_BYTES:], info)

    def take(self, member: int, public: bytes, sealed: bytes) -> None:
        """Take a member's public key, and what it has sealed for this one; raises BadSum.

        What was taken once stays as it was.
        """
        with _blamed(member):
            if member not in self._hellos or member == self._me:
                raise BadSum("keys of somebody who is not met")
            if self._commitment(member, public) != self._hellos[member][:HASH_BYTES]:
                raise BadSum("another public key than it committed itself to")
            poly_of_bytes(self._ring, public)
            dealt = self._sealing.unseal(sealed, self._info(member, self._me))
            if len(dealt) != poly_bytes(self._ring) + KEY_BYTES:
                raise BadSum(f"{len(dealt):,} bytes are no share of a key")
            poly_of_bytes(self._ring, memoryview(dealt)[:-KEY_BYTES])
            if self._taken.setdefault(member, (public, dealt)) != (public, dealt):
                raise BadSum("two different shares of a key")

    @property
    def taken(self) -> frozenset[int]:
        """Whose keys are here, this member's own included."""
        return frozenset(self._taken)

    def close(self, givers: Collection[int]) -> None:
        """Take the keys of these members, and no others, as all members agree.

        Raises:
            SumRefused: they are too few, or not all of them are here; or others were agreed on.
        """
        chosen = frozenset(givers)
        if self._givers and self._givers != chosen:
            raise SumRefused("whose keys count has been settled")
        if missing := chosen - self._taken.keys():
            raise SumRefused(f"keys of {len(missing)} members are missing")
        if len(chosen) < self._threshold:
            raise SumRefused(f"keys of {len(chosen)} members are too few")
        size = poly_bytes(self._ring)
        publics = (self._taken[member][0] for member in chosen)
        shares = (memoryview(self._taken[member][1])[:size] for member in chosen)
        self._key = PublicKey(self._parameters, self._a, self._total(publics))
        self._held, self._givers = self._total(shares), chosen

    def encrypt(self, numbers: NDArray[np.int64]) -> bytes:
        """Return (count,) numbers of -32,767 to 32,767, encrypted; raises SumRefused before close.

        What is encrypted twice has other bytes each time.
        """
        if self._key is None:
            raise SumRefused("there is no key yet to encrypt with")
        assert numbers.shape == (self._count,), numbers.shape
        assert np.abs(numbers).max() <= NUMBER_MAX, "a number is out of range"
        parameters = self._parameters
        rows = np.zeros((parameters.ciphertexts(self._count), parameters.numbers), np.int64)
        rows.reshape(-1)[: self._count] = numbers
        shape = len(parameters.payload), parameters.degree
        parts = []
        for row in rows:
            parts += list(self._key.encrypt(row.reshape(shape), self._draw))
        found = b"".join(poly_to_bytes(self._ring, part) for part in parts)
        self._given.add(blake3(found).digest())
        return found

    def add(self, ciphertexts: Mapping[int, bytes]) -> bytes:
        """Add up the members' ciphertexts, and return a hash of the sum and of who is in it.

        This member helps to open this sum and no other: two that differ by one member would show
        what that one added.

        Raises:
            BadSum: one is no ciphertext.
            SumRefused: too few, or without what this member gave; or another sum was added up.
        """
        if len(ciphertexts) < max(self._threshold, min(self._members, SUMMED_MIN)):
            raise SumRefused(f"a sum of {len(ciphertexts)} members shows too much of each")
        mine = ciphertexts.get(self._me, b"")
        if self._given and blake3(mine).digest() not in self._given:
            raise SumRefused("what this member gave is not in the sum")
        size = poly_bytes(self._ring)
        total = np.zeros(
            (self._parameters.ciphertexts(self._count), 2, len(self._ring), self._ring.degree)
        )
        for member, data in ciphertexts.items():
            with _blamed(member):
                self._check_number(member)
                if len(data) != encrypted_bytes(self._count, self._parameters):
                    raise BadSum(f"{len(data):,} bytes are no ciphertext")
                view = memoryview(data)
                polys = total.reshape(-1, *total.shape[2:])
                for at in range(len(polys)):
                    polys[at] += poly_of_bytes(self._ring, view[at * size : (at + 1) * size])
        digest = blake3(self._context + bytes(sorted(ciphertexts)), derive_key_context=_SUM)
        for pair in total:
            pair[:] = self._ring.reduced(pair)
            digest.update(b"".join(poly_to_bytes(self._ring, part) for part in pair))
        found = digest.digest()
        if self._sum and self._sum[1] != found:
            raise SumRefused("this member has added up another sum, and helps to open one")
        self._sum = total, found
        return found

    def share(self, who: Collection[int]) -> bytes:
        """Return this member's share of the sum that it added up, among the members of ``who``.

        A set of its own for each time that some are gone; the same set gets the same share.

        Raises:
            SumRefused: no sum, not the right members, or too many sets.
        """
        sharers = self._sharers(who)
        if self._sum is None or self._held is None:
            raise SumRefused("this member has not added up a sum")
        if self._me not in sharers:
            raise SumRefused("this member is not one of those that open the sum")
        if sharers not in self._shares:
            if len(self._shares) == SETS_MAX:
                raise SumRefused(f"this member has shared its sum among {SETS_MAX} sets")
            sharer = Sharer(self._parameters, self._me, self._held, sharers)
            masks = [self._mask(other, sharers) for other in sorted(sharers - {self._me})]
            self._shares[sharers] = b"".join(
                poly_to_bytes(self._ring, sharer.share(c1, masks, self._draw))
                for _, c1 in self._sum[0]
            )
        return self._shares[sharers]

    def open(self, shares: Mapping[int, bytes]) -> NDArray[np.int64]:
        """Return the (count,) sums, from all shares that one set of members made for themselves.

        Raises:
            BadSum: one is no share; or, with no member to blame, they do not open the sum.
            SumRefused: no sum, or not the right members.
        """
        self._sharers(shares)
        if self._sum is None:
            raise SumRefused("this member has not added up a sum")
        for member, data in shares.items():
            with _blamed(member):
                if len(data) != share_bytes(self._count, self._parameters):
                    raise BadSum(f"{len(data):,} bytes are no share")
        size = poly_bytes(self._ring)
        rows, margins = [], []
        for at, (c0, _) in enumerate(self._sum[0]):
            total = c0.copy()
            for member, data in shares.items():
                with _blamed(member):
                    total += poly_of_bytes(
                        self._ring, memoryview(data)[at * size : (at + 1) * size]
                    )
            try:
                numbers, margin = opened(self._parameters, self._ring.reduced(total))
            except DoesNotOpen as error:
                raise BadSum("the shares do not open the sum: one of them is false") from error
            rows.append(numbers.reshape(-1))
            margins.append(margin)
        self.margin_bits = min(margins)
        return np.concatenate(rows)[: self._count]

    def _total(self, encoded: Iterable[bytes | memoryview]) -> Poly:
        total = np.zeros((len(self._ring), self._ring.degree))
        for data in encoded:
            total += poly_of_bytes(self._ring, data)
        return self._ring.reduced(total)

    def _sharers(self, who: Collection[int]) -> frozenset[int]:
        sharers = frozenset(who)
        if len(sharers) != self._threshold or not sharers <= self._givers:
            raise SumRefused(f"a sum is opened by {self._threshold} of those whose keys count")
        return sharers

    def _mask(self, other: int, sharers: frozenset[int]) -> tuple[int, Draw]:
        """Return a mask of this member and another one: the lower number adds it."""
        assert self._sum
        mine, theirs = self._dealt[other][-KEY_BYTES:], self._taken[other][1][-KEY_BYTES:]
        is_lower = self._me < other
        seeds = mine + theirs if is_lower else theirs + mine
        said = seeds + self._context + self._sum[1] + bytes(sorted(sharers))
        agreed = blake3(said, derive_key_context=_MASK).digest()
        return 1 if is_lower else -1, expansion(agreed)

    def _commitment(self, member: int, public: bytes) -> bytes:
        said = self._context + bytes([member]) + public
        return blake3(said, derive_key_context=_COMMITMENT).digest(length=HASH_BYTES)

    def _info(self, sender: int, receiver: int) -> bytes:
        """Return what a sealed share is bound to: the sum, both members, and what both said."""
        hellos = self._hellos[sender] + self._hellos[receiver]
        return self._context + bytes([sender, receiver]) + blake3(hellos).digest()

    def _check_number(self, member: int) -> None:
        if not 0 <= member < self._members:
            raise BadSum(f"there is no member {member}")
