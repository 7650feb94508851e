"""What a member computes of its own, where the model stands, and what the program is told."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.learning import Digest, SignedBody, digest_of
from scheduler.judging import Numbers
from scheduler.round_table import Phase


class Broken(P2pinferError):
    """The task cannot go on; the text says why."""


class Work(Protocol):
    """What a member computes of its own."""

    @property
    def size(self) -> int:
        """How many numbers the trained half of the adapter has."""
        ...

    async def train(self, head: Numbers, number: int) -> NDArray[np.float32]:
        """Return what this member would add to the numbers in a round."""
        ...

    async def losses(self, heads: Sequence[Numbers]) -> list[float]:
        """Return this member's held-out loss with each of some numbers."""
        ...

    async def child(self, numbers: Numbers, number: int) -> ModelId:
        """Return the id of the model that comes of a round."""
        ...


@frozen
class Head:
    """Where the model stands after a round."""

    round: int
    numbers: Numbers = field(eq=False, repr=False)
    child: ModelId | None = None
    members: tuple[PeerId, ...] = ()
    """Those who took part, as far as is known."""
    drawn: tuple[PeerId, ...] = ()
    """Those who were drawn, as more than half of them accept."""
    waited: Mapping[PeerId, int] = field(factory=dict)
    """For how many rounds on end sums with these members' updates were not taken over."""

    @property
    def payload(self) -> bytes:
        """The numbers as bytes."""
        return self.numbers.astype("<i4").tobytes()

    @property
    def digest(self) -> Digest:
        """The hash of the numbers."""
        return digest_of(self.payload)


@frozen
class RoundReport:
    """What came of a round, for a person and for the lineage."""

    number: int
    parent: ModelId | None
    child: ModelId
    members: tuple[PeerId, ...]
    took_part: bool
    sums: int = 0
    """Groups that came to one."""
    taken: int = 0
    """Of these, how many the model took over."""
    loss_before: float | None = None
    """Of this member's held-out lessons."""
    loss_after: float | None = None
    """The same with the new numbers, where one sum alone makes them."""
    signed: tuple[SignedBody, ...] = field(default=(), repr=False)
    """The list of judgements, these, and who accepted what follows."""


@frozen
class Events:
    """Callbacks to the program that runs a member."""

    on_phase: Callable[[int, Phase], None] = lambda _number, _phase: None
    on_round: Callable[[RoundReport, Head], Awaitable[None]] | None = None
    on_void: Callable[[int, str], None] = lambda _number, _why: None
    on_convicted: Callable[[PeerId], None] = lambda _peer: None
