"""Every message that peers exchange: frozen, tagged by its name on the wire, and bounded.

The validators run when a message is made and again when one arrives, so that what a remote peer
sends is checked here and nowhere else; ``wire`` turns a failed check into an error that blames it.

    session    requester → first stage → … → last stage
                   Open     →  Opened or Refused comes back
                   Step     →  each stage sends its rows to its successor
                   Refused  ←  at any time: the session is over, and why
               requester → last stage: Attach → Attached, then Step comes back for every Step
    directory  Known → Known: each side's advertisements, once; then the channel ends
    parts      fetcher → holder, several at once, each with a number that its answer carries
                   AskManifest  →  ManifestIs comes back, or Denied
                   AskHeld      →  Held
                   AskChunk     →  Chunk, or Denied
               Refused  ←  at any time: the channel is over, and why
"""

from enum import StrEnum
from typing import Any

from attrs import Attribute, evolve, field, frozen
from attrs import validators as v

from p2pinfer.core.ids import ModelId, PartHash, PeerId, SessionId
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.core.manifest import CHUNK_BYTES, MANIFEST_BYTES_MAX, PART_BYTES_MAX

ROUTE_HOPS_MAX = 128
"""A 405B model has 126 layers; nobody splits finer than that."""

ADDRESSES_MAX = 8
ADDRESS_CHARS_MAX = 256
LAYERS_MAX = 1024
POSITIONS_MAX = 1 << 22
TEXT_CHARS_MAX = 500
ADVERTISEMENTS_MAX = 512
SIGNED_BYTES_MAX = 4096

PARTS_PER_QUESTION_MAX = 256
"""With the longest bitmaps the answer has 2 MiB."""

BITMAP_BYTES_MAX = PART_BYTES_MAX // CHUNK_BYTES // 8
"""A bit for each chunk of the longest part."""

QUESTIONS_PER_CHANNEL_MAX = 16
"""Asked and not yet answered; who asks more breaks the protocol."""

ROWS_BYTES_MAX = ROWS_PER_DECODE_MAX * 32_768 * 4
"""A full decode of a residual stream twice as wide as the widest model's, in float32."""


# One plain function a check, and not attrs' own piled up: they run twice per boundary and token.


def _whole(low: int, high: int) -> Any:
    def check(_: object, attribute: "Attribute[int]", value: int) -> None:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{attribute.name} must be a whole number from {low} to {high}")

    return check


def _sized(kind: type, most: int, least: int = 0, *, of: type | None = None) -> Any:
    """Check a text, bytes, or a tuple whose items are all ``of`` one type."""

    def check(_: object, attribute: "Attribute[Any]", value: Any) -> None:
        found: Any = type(value)
        if found is not kind or not least <= len(value) <= most:
            raise ValueError(f"{attribute.name} must be {kind.__name__} of {least} to {most}")
        if of and not all(type(item) is of for item in value):
            raise ValueError(f"{attribute.name} must hold {of.__name__} alone")

    return check


def _text(most: int, least: int = 0) -> Any:
    return _sized(str, most, least)


def _bytes(most: int, least: int = 0) -> Any:
    return _sized(bytes, most, least)


def _many(kind: type, most: int, least: int = 0) -> Any:
    return _sized(tuple, most, least, of=kind)


def _size(data: bytes) -> str:
    return f"<{len(data)} bytes>"


_PEER = _text(64, 46)  # base58 of an Ed25519 public key: 52 characters; of a hash: 46
_MODEL: Any = v.matches_re(r"[0-9a-f]{64}")
_SESSION = _bytes(16, 16)
_ADDRESSES: Any = v.deep_iterable(v.max_len(ADDRESS_CHARS_MAX), v.max_len(ADDRESSES_MAX))
_LAYER = _whole(0, LAYERS_MAX)
_NUMBER = _whole(0, 1 << 62)
_PART: Any = v.matches_re(r"[0-9a-f]{64}")
_PARTS: Any = v.deep_iterable(_PART, v.max_len(PARTS_PER_QUESTION_MAX))
_BITMAPS: Any = v.deep_iterable(v.max_len(BITMAP_BYTES_MAX), v.max_len(PARTS_PER_QUESTION_MAX))


class Refusal(StrEnum):
    """Why a peer says no."""

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


class Dtype(StrEnum):
    """How the numbers of a residual stream stand on the wire: little-endian IEEE 754."""

    F32 = "f32"
    F16 = "f16"


@frozen
class Hop:
    """One stage of a route: a peer and the layers that it is to run."""

    peer: PeerId = field(validator=_PEER)
    addresses: tuple[str, ...] = field(validator=_ADDRESSES)
    first: int = field(validator=_LAYER)
    end: int = field(validator=_LAYER)


@frozen
class Open:
    """Open a session along a route; passed on from stage to stage, each taking off its own hop."""

    session: SessionId = field(validator=_SESSION)
    model: ModelId = field(validator=_MODEL)
    requester: PeerId = field(validator=_PEER)
    """Who alone may attach to the last stage."""
    route: tuple[Hop, ...] = field(validator=_many(Hop, ROUTE_HOPS_MAX, 1))
    """The receiver's own hop first."""
    context: int = field(validator=_whole(1, POSITIONS_MAX))
    """Positions that every stage is to reserve."""
    dtype: Dtype = Dtype.F32

    def for_next(self) -> "Open":
        """Return the message for the stage behind the receiver."""
        return evolve(self, route=self.route[1:])


@frozen
class Opened:
    """All stages from the sender on have reserved their cells."""


@frozen
class Attach:
    """The requester's second channel: what the last stage computes is to be sent here."""

    session: SessionId = field(validator=_SESSION)


@frozen
class Attached:
    """The last stage will send its rows on this channel."""


@frozen
class Step:
    """Rows of the residual stream at consecutive positions, on their way down the chain.

    A position before the end of a session drops what its caches hold from there on.
    """

    number: int = field(validator=_whole(0, 1 << 62))
    """Counts the requester's steps; an answer carries its question's."""
    position: int = field(validator=_whole(0, POSITIONS_MAX))
    count: int = field(validator=_whole(1, ROWS_PER_DECODE_MAX))
    wide: bool = field(validator=v.instance_of(bool))
    """Which matrix kernels compute these rows, so that whoever replays them gets the same bits."""
    rows: bytes = field(validator=_bytes(ROWS_BYTES_MAX), repr=_size)
    decoding_us: tuple[int, ...] = field(default=(), validator=_many(int, ROUTE_HOPS_MAX))
    """What each stage so far says it spent on decoding, in microseconds."""


@frozen
class Refused:
    """No, or no longer; the session is over."""

    code: Refusal = field(validator=v.instance_of(Refusal))
    text: str = field(validator=_text(TEXT_CHARS_MAX))
    peer: PeerId = field(validator=_PEER)
    """Who said so first; those before it in the chain pass the message on."""


@frozen
class Advertisement:
    """What a peer says it serves; one that still joins has ``first`` equal to ``end``."""

    peer: PeerId = field(validator=_PEER)
    addresses: tuple[str, ...] = field(validator=_ADDRESSES)
    model: ModelId = field(validator=_MODEL)
    model_name: str = field(validator=_text(128))
    layers: int = field(validator=_whole(1, LAYERS_MAX))
    """How many the whole model has."""
    first: int = field(validator=_LAYER)
    end: int = field(validator=_LAYER)
    context: int = field(validator=_whole(1, POSITIONS_MAX))
    """Positions that a session may have at most."""
    numerics_class: str = field(validator=v.matches_re(r"[0-9a-f]{32}"))
    sequence: int = field(validator=_whole(0, 1 << 62))
    """The newest wins."""


@frozen
class Heard:
    """An advertisement as its author signed it, and how long ago it was made."""

    body: bytes = field(validator=_bytes(SIGNED_BYTES_MAX), repr=_size)
    """An encoded Advertisement."""
    signature: bytes = field(validator=_bytes(64, 64), repr=_size)
    """Ed25519, by the key that the advertised peer id stands for."""
    age_ms: int = field(validator=_whole(0, 1 << 40))


@frozen
class Known:
    """Everything that a peer knows of the swarm."""

    heard: tuple[Heard, ...] = field(validator=_many(Heard, ADVERTISEMENTS_MAX))


@frozen
class AskManifest:
    """What is this model made of?"""

    number: int = field(validator=_NUMBER)
    """Counts the fetcher's questions on a channel; an answer carries its question's."""
    model: ModelId = field(validator=_MODEL)


@frozen
class ManifestIs:
    """A manifest's canonical bytes, whose BLAKE3 must be the model's id."""

    number: int = field(validator=_NUMBER)
    data: bytes = field(validator=_bytes(MANIFEST_BYTES_MAX), repr=_size)


@frozen
class AskHeld:
    """Which chunks of these parts of a model do you hold?"""

    number: int = field(validator=_NUMBER)
    model: ModelId = field(validator=_MODEL)
    parts: tuple[PartHash, ...] = field(validator=_PARTS)


@frozen
class Held:
    """Which chunks of the parts that were asked for the sender holds, part by part."""

    number: int = field(validator=_NUMBER)
    bitmaps: tuple[bytes, ...] = field(validator=_BITMAPS)
    """Bit ``i % 8`` of byte ``i // 8`` stands for chunk ``i``; what is not there is not held."""


@frozen
class AskChunk:
    """Give me these bytes of a model's part."""

    number: int = field(validator=_NUMBER)
    model: ModelId = field(validator=_MODEL)
    part: PartHash = field(validator=_PART)
    index: int = field(validator=_whole(0, 8 * BITMAP_BYTES_MAX - 1))


@frozen
class Chunk:
    """One chunk of a part, whose BLAKE3 must be as in the manifest."""

    number: int = field(validator=_NUMBER)
    data: bytes = field(validator=_bytes(CHUNK_BYTES, 1), repr=_size)


@frozen
class Denied:
    """No to one question; others may follow."""

    number: int = field(validator=_NUMBER)
    code: Refusal = field(validator=v.instance_of(Refusal))


Message = (
    Open
    | Opened
    | Attach
    | Attached
    | Step
    | Refused
    | Known
    | Advertisement
    | AskManifest
    | ManifestIs
    | AskHeld
    | Held
    | AskChunk
    | Chunk
    | Denied
)
