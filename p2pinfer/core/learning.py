"""Messages of members that teach a model together, without a server.

    gossip     Heard of tasks and rounds, to all that take part in any: ``SignedBody``
    learning   any member → any other, several times on one channel
                   AskSaid     →  SaidAre: what the sender lacks of a task
                   AskPayload  →  PayloadIs, or Denied: some of what a statement names by its hash

A *task* is what is to be learned, signed by its proposer. In each of its *rounds* members
say something in turn, a ``RoundStatement`` each: signed, small, and built on the hash of what was
said before, so that all who follow the same hashes compute the same child. What is large is a
payload, named by its hash. `scheduler.round_table` says who says what when.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, NewType

from attrs import field, frozen
from attrs import validators as v
from blake3 import blake3

from p2pinfer.core.checks import (
    ADDRESSES,
    HASH,
    PEER,
    blob,
    line,
    many,
    shown_size,
    whole,
)
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.manifest import LAYERS_MAX, NAME_CHARS_MAX
from p2pinfer.core.receipts import SIGNATURE_BYTES

TaskId = NewType("TaskId", str)
"""BLAKE3 of a task's bytes, 64 hexadecimal digits."""

Digest = NewType("Digest", bytes)
"""BLAKE3 of a statement's bytes, or of a payload."""

SIGNED_AS: Final = b"p2pinfer learning 1\0"
"""Prepended to what is signed, so that a signature for another purpose is no statement."""

MEMBERS_MAX: Final = 64
"""Of a task: what the noise of the encrypted sums is reckoned for."""

ROUNDS_MAX: Final = 1000
ATTEMPTS_MAX: Final = 16
"""At a round; a task whose members are gone for so long is over."""

GROUP_MIN, GROUP_MAX = 2, MEMBERS_MAX
RANK_MAX: Final = 64
SEED_MAX: Final = (1 << 31) - 1
WAIT_MS_MAX: Final = 24 * 3600 * 1000
"""The longest deadline of a phase: a day."""

CLIP_MAX: Final = 1 << 40
OUTER_MAX: Final = 1 << 10
BODY_BYTES_MAX: Final = 12 << 10
"""Of a statement; with its signature it fits into one gossiped message."""

PAYLOAD_BYTES_MAX: Final = 1 << 28
"""An encrypted update of eleven million numbers."""
PIECE_BYTES_MAX: Final = 1 << 20
SAID_MAX: Final = 256
"""Statements in one answer: 3 MiB at most."""
KNOWN_MAX: Final = 8192
"""Statements that a question says are known: some 260 KiB."""
CHANGES_MAX: Final = 1 + MEMBERS_MAX // GROUP_MIN
LOSS_MAX: Final = 1 << 40

DATA_BYTES_MAX: Final = 2048
"""The longest is a hybrid key that others seal to."""

_DIGEST = blob(32, 32)
_DIGESTS: Any = v.deep_iterable(_DIGEST, many(bytes, KNOWN_MAX))
_SIGNATURE = blob(SIGNATURE_BYTES, SIGNATURE_BYTES)
_LOSSES: Any = v.deep_iterable(whole(0, LOSS_MAX), many(int, CHANGES_MAX))


class Kind(StrEnum):
    """What a statement says."""

    JOIN = "join"
    """I take part; ``data`` is the hash of my nonce."""
    ROSTER = "roster"
    """Those who joined."""
    REVEAL = "reveal"
    """My nonce."""
    DRAW = "draw"
    """The nonces; the groups follow from them."""
    HELLO = "hello"
    """The key that others of the group seal to, and the hash of my public key of the sums."""
    MEET = "meet"
    """The hellos of a group: fixed before anybody shows a public key."""
    KEYS = "keys"
    """My public key, and the hashes of shares of the secret one, each sealed to one that met."""
    KEY_SET = "key-set"
    """The keys that a group uses."""
    UPDATE = "update"
    """What I learned, encrypted."""
    SUM = "sum"
    """The updates to be added."""
    ADDED = "added"
    """I have added them; ``data`` is the hash of what came of it."""
    SHARERS = "sharers"
    """Those who are to decrypt the sum together."""
    SHARE = "share"
    """My share of the decryption."""
    RESULT = "result"
    """The sum."""
    JUDGEMENT = "judgement"
    """My held-out loss, and what each sum would make of it."""
    CHILD = "child"
    """The judgements that count."""
    ACCEPT = "accept"
    """What follows from them: the new numbers, and in ``data`` the child's id."""


LISTS: Final = frozenset(
    {
        Kind.ROSTER,
        Kind.DRAW,
        Kind.MEET,
        Kind.KEYS,
        Kind.KEY_SET,
        Kind.SUM,
        Kind.SHARERS,
        Kind.JUDGEMENT,
        Kind.CHILD,
    }
)
PAYLOADS: Final = frozenset({Kind.KEYS, Kind.UPDATE, Kind.SHARE, Kind.RESULT, Kind.ACCEPT})
_DATA: Final = {
    Kind.JOIN: (32, 32),
    Kind.REVEAL: (32, 32),
    Kind.HELLO: (32, DATA_BYTES_MAX),
    Kind.ADDED: (32, 32),
    Kind.ACCEPT: (32, 32),
}
AGAIN: Final = frozenset({Kind.SHARERS, Kind.SHARE})
"""Said once for each thing that it builds on, where others are said once in an attempt."""


@frozen
class Payload:
    """Something large, named by its hash."""

    digest: Digest = field(validator=_DIGEST, repr=shown_size)
    size: int = field(validator=whole(1, PAYLOAD_BYTES_MAX))
    """Bytes."""


@frozen
class LearningTask:
    """What is to be learned, and how; all numbers are whole, so that all compute the same."""

    proposer: PeerId = field(validator=PEER)
    name: str = field(validator=line(NAME_CHARS_MAX, 1))
    """Of the task, and of the model that comes of it."""
    base: ModelId = field(validator=HASH)
    layers: int = field(validator=whole(1, LAYERS_MAX))
    """The last ones of the base, which are trained."""
    rank: int = field(validator=whole(1, RANK_MAX))
    seed: int = field(validator=whole(0, SEED_MAX))
    """What the frozen half of the adapter is drawn from."""
    rounds: int = field(validator=whole(1, ROUNDS_MAX))
    steps: int = field(validator=whole(1, 1000))
    """That each member takes in a round, at most."""
    rate_millionths: int = field(validator=whole(1, 1_000_000))
    """The learning rate of the first of these steps."""
    members: int = field(validator=whole(GROUP_MIN, MEMBERS_MAX))
    """As many are waited for at first, until the deadline."""
    least: int = field(validator=whole(GROUP_MIN, MEMBERS_MAX))
    """With fewer there is no round."""
    group: int = field(validator=whole(GROUP_MIN, GROUP_MAX))
    """Members whose updates are added before anybody sees them."""
    clip: int = field(validator=whole(1, CLIP_MAX))
    """The longest update, as its Euclidean norm in units."""
    outer_percent: int = field(validator=whole(1, OUTER_MAX))
    """How far the model moves along the mean of the updates."""
    join_ms: int = field(validator=whole(1, WAIT_MS_MAX))
    """Until the first round begins with those who are there."""
    talk_ms: int = field(validator=whole(1, WAIT_MS_MAX))
    """For each phase in which little is computed."""
    train_ms: int = field(validator=whole(1, WAIT_MS_MAX))
    judge_ms: int = field(validator=whole(1, WAIT_MS_MAX))

    def __attrs_post_init__(self) -> None:
        if not self.group <= self.least <= self.members:
            raise ValueError("a task has at least as many members as a group has")


@frozen
class RoundStatement:
    """What one member says in a round."""

    author: PeerId = field(validator=PEER)
    task: TaskId = field(validator=HASH)
    round: int = field(validator=whole(1, ROUNDS_MAX))
    attempt: int = field(validator=whole(0, ATTEMPTS_MAX - 1))
    kind: Kind = field(validator=v.instance_of(Kind))
    on: Digest = field(validator=_DIGEST, repr=shown_size)
    """The statement that it builds on; of a ``JOIN`` the numbers of the round before."""
    group: int = field(default=0, validator=whole(0, MEMBERS_MAX - 1))
    listed: tuple[Digest, ...] = field(
        default=(), validator=v.deep_iterable(_DIGEST, many(bytes, MEMBERS_MAX, 0))
    )
    payload: Payload | None = field(default=None, validator=v.optional(v.instance_of(Payload)))
    data: bytes = field(default=b"", validator=blob(DATA_BYTES_MAX), repr=shown_size)
    losses: tuple[int, ...] = field(default=(), validator=_LOSSES)
    """Of a ``JUDGEMENT``, in millionths: before, and with each listed sum."""
    addresses: tuple[str, ...] = field(default=(), validator=ADDRESSES)
    """Of a ``JOIN``."""

    def __attrs_post_init__(self) -> None:
        least, most = _DATA.get(self.kind, (0, 0))
        if not least <= len(self.data) <= most:
            raise ValueError(f"a {self.kind} has no {len(self.data)} bytes of data")
        if (self.payload is not None) != (self.kind in PAYLOADS):
            raise ValueError(f"a {self.kind} with or without a payload")
        if bool(self.listed) != (self.kind in LISTS):
            raise ValueError(f"a {self.kind} that lists {len(self.listed)}")
        if len(set(self.listed)) < len(self.listed):
            raise ValueError("something is listed twice")
        judges = self.kind is Kind.JUDGEMENT
        if len(self.losses) != (1 + len(self.listed) if judges else 0):
            raise ValueError(f"a {self.kind} with {len(self.losses)} losses")
        if self.addresses and self.kind is not Kind.JOIN:
            raise ValueError(f"a {self.kind} with addresses")

    @property
    def slot(self) -> tuple[object, ...]:
        """What an honest author says at most one thing in."""
        again = self.on if self.kind in AGAIN else b""
        return self.author, self.round, self.attempt, self.kind, again


@frozen
class SignedBody:
    """A task or a statement, and the signature of its proposer or author."""

    body: bytes = field(validator=blob(BODY_BYTES_MAX), repr=shown_size)
    signature: bytes = field(validator=_SIGNATURE, repr=shown_size)

    @property
    def digest(self) -> Digest:
        """The hash that names it."""
        return digest_of(self.body)


@frozen
class AskSaid:
    """What has been said that I do not know? None is asked about tasks."""

    task: TaskId = field(validator=HASH)
    known: tuple[Digest, ...] = field(validator=_DIGESTS, repr=lambda known: f"<{len(known)}>")


@frozen
class SaidAre:
    """Some of what the sender knows of a task: the task itself, and the latest rounds."""

    said: tuple[SignedBody, ...] = field(validator=many(SignedBody, SAID_MAX))


@frozen
class AskTasks:
    """Which tasks do you know?"""


@frozen
class AskPayload:
    """Give me a piece of a payload, from this byte on."""

    digest: Digest = field(validator=_DIGEST, repr=shown_size)
    start: int = field(validator=whole(0, PAYLOAD_BYTES_MAX))


@frozen
class PayloadIs:
    """A piece of a payload; empty: the sender does not have it."""

    data: bytes = field(validator=blob(PIECE_BYTES_MAX), repr=shown_size)


def digest_of(data: bytes) -> Digest:
    """Return the hash that names some bytes."""
    return Digest(blake3(data).digest())


def to_sign(body: bytes) -> bytes:
    """Return the bytes that a statement's author signs."""
    return SIGNED_AS + body


def is_signed(said: SignedBody, by: PeerId, verify: Callable[[PeerId, bytes, bytes], bool]) -> bool:
    """Whether it was signed by a peer."""
    return verify(by, to_sign(said.body), said.signature)
