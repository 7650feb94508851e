"""A round of learning, as a table: who says what when, and what follows from what was said.

    phase     each says   until somebody lists them as
    join      JOIN        ROSTER
    reveal    REVEAL      DRAW          the nonces, from which the groups follow
    hello     HELLO       MEET          from here on in each group by itself
    keys      KEYS        KEY_SET
    train     UPDATE      SUM
    add       ADDED       SHARERS
    share     SHARE       -             each that holds all shares says the RESULT
    results   -           -             until each group has one, or time is up
    judge     JUDGEMENT   CHILD
    accept    ACCEPT      -             more than half of those drawn: the round is over

Nobody leads. Any member may write a list: they take turns in an order that a hash draws, and the
next one's turn comes only if the one before stays silent. Each builds on one list only, and says
each thing once; so two lists can never both be followed by more than half. A phase ends when all
have spoken, or at its deadline with those who have; where these are too few, the group, or the
attempt, is over, and all join again.

A member's statement counts here once its payload, if this member needs it, has arrived. Nothing
here waits or computes: `scheduler.rounds.Round.next` returns what is to be done.
"""

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Final

from attrs import frozen

from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.learning import Digest, Kind, Payload, digest_of


class Phase(StrEnum):
    """Where a round is."""

    JOIN = "join"
    REVEAL = "reveal"
    HELLO = "hello"
    KEYS = "keys"
    TRAIN = "train"
    ADD = "add"
    SHARE = "share"
    RESULTS = "results"
    JUDGE = "judge"
    ACCEPT = "accept"
    WATCH = "watch"
    """Others do it without this member, which came late or was left out."""


@frozen
class PhaseRow:
    """A phase of the table."""

    says: Kind
    lists: Kind
    follows: Phase


TABLE: Final[Mapping[Phase, PhaseRow]] = {
    Phase.JOIN: PhaseRow(Kind.JOIN, Kind.ROSTER, Phase.REVEAL),
    Phase.REVEAL: PhaseRow(Kind.REVEAL, Kind.DRAW, Phase.HELLO),
    Phase.HELLO: PhaseRow(Kind.HELLO, Kind.MEET, Phase.KEYS),
    Phase.KEYS: PhaseRow(Kind.KEYS, Kind.KEY_SET, Phase.TRAIN),
    Phase.TRAIN: PhaseRow(Kind.UPDATE, Kind.SUM, Phase.ADD),
    Phase.ADD: PhaseRow(Kind.ADDED, Kind.SHARERS, Phase.SHARE),
    Phase.JUDGE: PhaseRow(Kind.JUDGEMENT, Kind.CHILD, Phase.ACCEPT),
}
OF_A_GROUP: Final = frozenset({Phase.HELLO, Phase.KEYS, Phase.TRAIN, Phase.ADD, Phase.SHARE})


@frozen
class Say:
    """This member's turn to say something."""

    kind: Kind
    on: Digest
    group: int = 0
    listed: tuple[Digest, ...] = ()


@frozen
class Wait:
    """Nothing to do before this time, unless something is heard."""

    until_s: float


@frozen
class Void:
    """Nothing came of this attempt."""

    why: str


Move = Say | Wait | Void


@frozen
class RoundOutcome:
    """What more than half of those drawn accept."""

    round: int
    numbers: Payload
    """The model's new numbers."""
    child: ModelId
    on: Digest
    """The list of judgements that it follows from."""
    members: tuple[PeerId, ...]
    """Those that were drawn."""


def threshold(members: int) -> int:
    """Return how many of a group decrypt together: more than half."""
    return members // 2 + 1


def groups_of(
    members: Collection[PeerId], seed: bytes, size: int, waited: Mapping[PeerId, int] | None = None
) -> list[list[PeerId]]:
    """Draw groups of at least ``size``, or one of all, each in the order of its numbering.

    Args:
        members: in any order.
        seed: the nonces of all of them.
        size: of a group, at least.
        waited: for how many rounds on end the sums with a member's update were not taken over. Who
            waited longest is dealt first, there and back: so those that were left out together
            part, and nobody is left out with a poisoner again and again.
    """
    count = max(1, len(members) // size)
    order = sorted(members, key=lambda each: digest_of(seed + each.encode()))
    if not waited:
        return [order[number::count] for number in range(count)]
    order.sort(key=lambda each: -waited.get(each, 0))
    groups: list[list[PeerId]] = [[] for _ in range(count)]
    for at, each in enumerate(order):
        row, place = divmod(at, count)
        groups[-1 - place if row % 2 else place].append(each)
    return groups
