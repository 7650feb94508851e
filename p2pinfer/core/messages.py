"""Every message that peers exchange: frozen, tagged with its name on the wire, and bounded.

The validators run when a message is made and again when one arrives, so that what a remote peer
sends is checked here and nowhere else; ``wire`` turns a failed check into an error that blames it.

    session    control, requester → each stage of its route, for as long as the session lasts
                   Open     →  Opened: at once with what another session holds, where one is named
                   Connect  →  Connected, or Denied: which peer to send to
                   Expect   →  Expecting: another peer replaces the previous one
                   Idle     →  at any time: an answer is finished
                   Lost     ←  at any time: the previous or the next peer went away
                   Leaving  ←  this peer would like to be replaced
               link, requester → first stage → … → last stage
                   Link     →  Linked, then a Step for every Step: each sends its rows on
               collection, requester → last stage
                   Attach   →  Attached, then Step comes back for every Step
    directory  Compare → Differs or Known, and what follows: see `p2pinfer.core.exchange`
    gossip     Heard, to all that follow a model
    parts      fetcher → holder, several at once, each with a number that its answer repeats
                   AskManifest  →  ManifestIs comes back, or Denied
                   AskHashes    →  HashesAre comes back, or Denied: of a long manifest's part
                   AskHeld      →  Held
                   AskChunks    →  for each one Chunk, or Denied
    keep       how a model is stored beyond its holders: see `p2pinfer.core.storage`
    evidence   requester → each stage, beside the session: see ``evidence``
    openings   requester → each stage, beside the session: see ``proving``
    enrolment  among members of a network of founders: see ``enrolment``
    learning   members of a learning task → each other: see `p2pinfer.core.learning`
    frauds     Cases, and the proofs that one of the two lacks: see ``evidence``
               Refused  ←  at any time: the channel is over, with the reason
"""

from enum import StrEnum
from typing import Any

from attrs import field, frozen
from attrs import validators as v

from p2pinfer.core.advertisement import Advertisement, Heard, Known
from p2pinfer.core.checks import (
    ADDRESSES,
    HASH,
    LAYER,
    PEER,
    POSITIONS_MAX,
    SESSION,
    blob,
    shown_size,
    sized,
    text,
    whole,
)
from p2pinfer.core.enrolment import AskGrant, GrantIs, StillIn
from p2pinfer.core.evidence import (
    AskRows,
    Cases,
    Follow,
    Made,
    Opening,
    ProofIs,
    Settle,
    Settled,
    WantProof,
)
from p2pinfer.core.exchange import Compare, Differs, Wanted
from p2pinfer.core.ids import ModelId, PartHash, PeerId, SessionId
from p2pinfer.core.learning import (
    AskPayload,
    AskSaid,
    AskTasks,
    LearningTask,
    PayloadIs,
    RoundStatement,
    SaidAre,
    SignedBody,
)
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.core.manifest import (
    CHUNK_BYTES,
    LIST_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    PART_BYTES_MAX,
)
from p2pinfer.core.proving import (
    AskCells,
    AskLayers,
    AskSteps,
    CellRows,
    CellsAre,
    PledgeIs,
    StepsAre,
)
from p2pinfer.core.regimes import Regime, from_wire
from p2pinfer.core.sponsor import Sponsor
from p2pinfer.core.statement import Owe, Owed, Vouch
from p2pinfer.core.storage import AskKept, AskPlan, KeptIs, PlanIs

ROUTE_HOPS_MAX = 128
"""A 405B model has 126 layers; no swarm splits finer than that."""

TEXT_CHARS_MAX = 500

RETRY_MS_MAX = 600_000
"""No peer is told to wait longer: by then another peer will do."""

PARTS_PER_QUESTION_MAX = 256
"""With the longest bitmaps the answer has 2 MiB."""

BITMAP_BYTES_MAX = PART_BYTES_MAX // CHUNK_BYTES // 8
"""A bit for each chunk of the longest part."""

QUESTIONS_PER_CHANNEL_MAX = 16
"""Asked and not yet answered; a fetcher that exceeds it breaks the protocol."""

CHUNKS_PER_QUESTION_MAX = 2
"""A question and the thread that reads its chunks cost as much as hashing one chunk."""

ROWS_BYTES_MAX = ROWS_PER_DECODE_MAX * 32_768 * 4
"""A full decode of a residual stream twice as wide as the widest model's, in float32."""


NUMBER_MAX = 1 << 62
"""Of what senders count: it fits into eight bytes, and is never reached."""

_NUMBER = whole(0, NUMBER_MAX)
_SOME_CHUNKS: Any = sized(tuple, CHUNKS_PER_QUESTION_MAX, 1)
_PARTS: Any = v.deep_iterable(HASH, v.max_len(PARTS_PER_QUESTION_MAX))
_INDICES: Any = v.deep_iterable(whole(0, 8 * BITMAP_BYTES_MAX - 1), _SOME_CHUNKS)
_BITMAPS: Any = v.deep_iterable(v.max_len(BITMAP_BYTES_MAX), v.max_len(PARTS_PER_QUESTION_MAX))


class Refusal(StrEnum):
    """Why a peer refuses."""

    BUSY = "busy"
    UNKNOWN_SESSION = "unknown-session"
    WRONG_MODEL = "wrong-model"
    WRONG_RANGE = "wrong-range"
    CONTEXT_FULL = "context-full"
    BAD_REQUEST = "bad-request"
    ENGINE_FAILED = "engine-failed"
    PEER_LOST = "peer-lost"
    TOO_SLOW = "too-slow"
    NOT_HELD = "not-held"
    DAMAGED = "damaged"
    IDLE = "idle"


class Dtype(StrEnum):
    """How the numbers of a residual stream are encoded on the wire: little-endian IEEE 754."""

    F32 = "f32"


@frozen
class Hop:
    """One stage of a route: a peer and the layers that it is to run."""

    peer: PeerId = field(validator=PEER)
    addresses: tuple[str, ...] = field(validator=ADDRESSES)
    first: int = field(validator=LAYER)
    end: int = field(validator=LAYER)


@frozen
class Parent:
    """Another session of the same requester at the same stage, and how much of it to take over."""

    session: SessionId = field(validator=SESSION)
    rows: int = field(validator=whole(1, POSITIONS_MAX))
    """How many of its first positions."""
    number: int = field(validator=_NUMBER)
    """Of the last step sent in it: those of the new session count on from here, so that what is
    kept of both can be sent again."""


@frozen
class Open:
    """Open a session at a stage: reserve its cells and serve the sender, its requester."""

    session: SessionId = field(validator=SESSION)
    model: ModelId = field(validator=HASH)
    requester: PeerId = field(validator=PEER)
    """The sender itself, which the session's evidence names."""
    previous: PeerId = field(validator=PEER)
    """The only peer that may send steps: the previous stage, or the requester."""
    first: int = field(validator=LAYER)
    end: int = field(validator=LAYER)
    context: int = field(validator=whole(1, POSITIONS_MAX))
    """Positions to reserve."""
    dtype: Dtype = Dtype.F32
    seal: bytes = field(default=bytes(32), validator=blob(32, 32), repr=shown_size)
    """Hash of the nonce that chooses what is audited, shown before the nonce is; zeros ask for no
    evidence."""
    sponsor: Sponsor | None = field(default=None, validator=v.optional(v.instance_of(Sponsor)))
    """On whose account, where not on the requester's own: a full stage may prefer that one."""
    blocks: bool = field(default=False, validator=v.instance_of(bool))
    """Whether steps will hold blocks; a stage that cannot run them refuses."""
    parent: Parent | None = field(default=None, validator=v.optional(v.instance_of(Parent)))
    """Begin with what this session holds. A stage that cannot begins with nothing."""


@frozen
class Opened:
    """The cells are reserved."""

    inherited: bool = field(default=False, validator=v.instance_of(bool))
    """They hold what was asked of the parent, as if it had been computed for this session."""


@frozen
class Connect:
    """Send all results to this peer from now on, including those already computed."""

    number: int = field(validator=_NUMBER)
    peer: PeerId = field(validator=PEER)
    addresses: tuple[str, ...] = field(validator=ADDRESSES)
    sent: int = field(validator=_NUMBER)
    """It has all steps up to this one."""
    known: int = field(validator=_NUMBER)
    """The requester waits for no step up to this one, so they may be sent together."""


@frozen
class Connected:
    """The peer takes the steps."""

    number: int = field(validator=_NUMBER)


@frozen
class Expect:
    """Take steps from this peer only, from now on."""

    number: int = field(validator=_NUMBER)
    peer: PeerId = field(validator=PEER)


@frozen
class Expecting:
    """Nothing more is accepted from the previous peer."""

    number: int = field(validator=_NUMBER)
    received: int = field(validator=_NUMBER)
    """The last step that arrived."""


@frozen
class Idle:
    """The requester waits for nothing after this step: the session is between two answers.

    No stage could tell that from waiting for a slow or lost peer. The next step ends it.
    """

    number: int = field(validator=_NUMBER)


@frozen
class Lost:
    """A neighbour went away or sent nonsense; the session waits for a replacement."""

    peer: PeerId = field(validator=PEER)
    text: str = field(validator=text(TEXT_CHARS_MAX))


@frozen
class Leaving:
    """The sender keeps serving the session, but would like to be replaced."""


@frozen
class Link:
    """The steps of a session will come on this channel."""

    session: SessionId = field(validator=SESSION)


@frozen
class Linked:
    """The steps may come."""


@frozen
class Attach:
    """The requester's channel from the last stage, which is to send its rows here."""

    session: SessionId = field(validator=SESSION)
    sent: int = field(default=0, validator=_NUMBER)
    """The requester has all steps up to this one."""


@frozen
class Attached:
    """The last stage will send its rows on this channel."""


@frozen
class Step:
    """Rows of the residual stream at consecutive positions, on their way down the chain.

    A position before the end of a session drops what its caches hold from there on.
    """

    number: int
    """Counts the requester's steps; an answer repeats its question's number."""
    position: int
    count: int
    regime: Regime = field(converter=from_wire)
    """Which kernels compute these rows, so that any replay gives the same bits."""
    rows: bytes = field(repr=shown_size)
    decoding_us: tuple[int, ...] = ()
    """Microseconds of decoding that each stage so far reports."""

    def __attrs_post_init__(self) -> None:
        """Check all fields in one call, since every token waits for seven in a chain of three."""
        number, position, count, rows, times = (
            self.number,
            self.position,
            self.count,
            self.rows,
            self.decoding_us,
        )
        if type(number) is not int or not 0 <= number <= NUMBER_MAX:
            raise ValueError(f"number must be a whole number from 0 to {NUMBER_MAX}")
        if type(position) is not int or not 0 <= position <= POSITIONS_MAX:
            raise ValueError(f"position must be a whole number from 0 to {POSITIONS_MAX}")
        if type(count) is not int or not 1 <= count <= ROWS_PER_DECODE_MAX:
            raise ValueError(f"count must be a whole number from 1 to {ROWS_PER_DECODE_MAX}")
        if type(rows) is not bytes or len(rows) > ROWS_BYTES_MAX:
            raise ValueError(f"rows must be bytes of 0 to {ROWS_BYTES_MAX}")
        if type(times) is not tuple or len(times) > ROUTE_HOPS_MAX:
            raise ValueError(f"decoding_us must be tuple of 0 to {ROUTE_HOPS_MAX}")
        for each in times:
            if type(each) is not int:
                raise ValueError("decoding_us must hold only int")


@frozen
class Refused:
    """No, or no longer; the session is over."""

    code: Refusal = field(validator=v.instance_of(Refusal))
    text: str = field(validator=text(TEXT_CHARS_MAX))
    peer: PeerId = field(validator=PEER)
    """The sender, whatever it wrote here; see `peers.steps.messaging.receive`."""
    retry_ms: int = field(default=0, validator=whole(0, RETRY_MS_MAX))
    """When to come back, in milliseconds; 0 means not stated."""


@frozen
class AskManifest:
    """What is this model made of?"""

    number: int = field(validator=_NUMBER)
    """Counts the fetcher's questions on a channel; an answer repeats its question's number."""
    model: ModelId = field(validator=HASH)


@frozen
class ManifestIs:
    """A manifest's canonical bytes, whose BLAKE3 must be the model's id."""

    number: int = field(validator=_NUMBER)
    data: bytes = field(validator=blob(MANIFEST_BYTES_MAX), repr=shown_size)


@frozen
class AskHashes:
    """Which chunks is this part of a model made of? Its manifest gives the part's hash alone."""

    number: int = field(validator=_NUMBER)
    model: ModelId = field(validator=HASH)
    part: PartHash = field(validator=HASH)


@frozen
class HashesAre:
    """The hashes of a part's chunks, joined; with the part's size they hash to its name."""

    number: int = field(validator=_NUMBER)
    data: bytes = field(validator=blob(LIST_BYTES_MAX, 1), repr=shown_size)


@frozen
class AskHeld:
    """Which chunks of these parts of a model do you hold?"""

    number: int = field(validator=_NUMBER)
    model: ModelId = field(validator=HASH)
    parts: tuple[PartHash, ...] = field(validator=_PARTS)


@frozen
class Held:
    """Which chunks the sender holds of the parts that were asked about, part by part."""

    number: int = field(validator=_NUMBER)
    bitmaps: tuple[bytes, ...] = field(validator=_BITMAPS)
    """Bit ``i % 8`` of byte ``i // 8`` stands for chunk ``i``; missing bytes mean not held."""


@frozen
class AskChunks:
    """Give me these chunks of a model's part."""

    number: int = field(validator=_NUMBER)
    """The first chunk's answer carries this number, the second one's the next."""
    model: ModelId = field(validator=HASH)
    part: PartHash = field(validator=HASH)
    indices: tuple[int, ...] = field(validator=_INDICES)


@frozen
class Chunk:
    """One chunk of a part, whose BLAKE3 must match the manifest."""

    number: int = field(validator=_NUMBER)
    data: bytes = field(validator=blob(CHUNK_BYTES, 1), repr=shown_size)


@frozen
class Denied:
    """No to one question; others may follow."""

    number: int = field(validator=_NUMBER)
    code: Refusal = field(validator=v.instance_of(Refusal))


Message = (
    Open
    | Opened
    | Connect
    | Connected
    | Expect
    | Expecting
    | Idle
    | Lost
    | Leaving
    | Link
    | Linked
    | Attach
    | Attached
    | Step
    | Refused
    | Known
    | Advertisement
    | Heard
    | Compare
    | Differs
    | Wanted
    | AskManifest
    | ManifestIs
    | AskHashes
    | HashesAre
    | AskHeld
    | Held
    | AskChunks
    | Chunk
    | Denied
    | AskKept
    | KeptIs
    | AskPlan
    | PlanIs
    | Follow
    | Made
    | Settle
    | Settled
    | AskRows
    | Opening
    | Cases
    | WantProof
    | ProofIs
    | Owe
    | Owed
    | Vouch
    | AskGrant
    | GrantIs
    | StillIn
    | AskCells
    | CellsAre
    | AskSteps
    | AskLayers
    | PledgeIs
    | CellRows
    | StepsAre
    | LearningTask
    | RoundStatement
    | SignedBody
    | AskTasks
    | AskSaid
    | SaidAre
    | AskPayload
    | PayloadIs
)
