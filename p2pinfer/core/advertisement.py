"""What a peer says of itself, signed, so that anyone may pass it on."""

from enum import StrEnum

from attrs import field, frozen
from attrs import validators as v

from p2pinfer.core.checks import (
    ADDRESSES,
    HASH,
    LAYER,
    LAYERS_MAX,
    NUMERICS,
    PEER,
    POSITIONS_MAX,
    blob,
    line,
    many,
    shown_size,
    whole,
)
from p2pinfer.core.ids import ModelId, PeerId

ADVERTISEMENTS_MAX = 4096
"""Kept by one peer, some 4 MB; of a larger swarm it keeps a sample that covers every layer."""

SIGNED_BYTES_MAX = 4096

KNOWN_MAX = 512
"""Advertisements in one message of an exchange: 2 MiB at worst."""

PERIOD_MS_DEFAULT = 10_000
PERIOD_MS_MIN = 1_000
PERIOD_MS_MAX = 3_600_000
"""An hour: with that 36,000 peers send 10 advertisements a second in all."""

LINKS_MAX = 8
"""Round trips that a peer tells of."""

ROUND_TRIP_US_MAX = 60_000_000
DECODING_US_MAX = 60_000_000
"""A minute for one layer: whoever claims more had better not serve."""

SESSIONS_MAX = 1024
QUEUED_ROWS_MAX = 1 << 20


class State(StrEnum):
    """What a peer does with the layers that it names."""

    JOINING = "joining"
    """It fetches or loads them; none at all while it has not chosen yet."""
    SERVING = "serving"
    DRAINING = "draining"
    """It finishes what it has begun, and takes no new session."""
    LEFT = "left"
    """It is gone, and says so itself: nobody need wait for its silence."""


@frozen
class RoundTrip:
    """A round trip that a peer measured."""

    peer: PeerId = field(validator=PEER)
    round_trip_us: int = field(validator=whole(1, ROUND_TRIP_US_MAX))


@frozen(cache_hash=True)  # what is worked out of one is kept by it
class Advertisement:
    """What a peer serves and what it can do; ``first`` equals ``end`` if it serves no layer."""

    peer: PeerId = field(validator=PEER)
    addresses: tuple[str, ...] = field(validator=ADDRESSES)
    model: ModelId = field(validator=HASH)
    model_name: str = field(validator=line(128))
    layers: int = field(validator=whole(1, LAYERS_MAX))
    """How many the whole model has."""
    first: int = field(validator=LAYER)
    end: int = field(validator=LAYER)
    context: int = field(validator=whole(1, POSITIONS_MAX))
    """Positions that a session may have at most."""
    numerics_class: str = field(validator=NUMERICS)
    sequence: int = field(validator=whole(0, 1 << 62))
    """The newest wins."""
    state: State = field(default=State.SERVING, validator=v.instance_of(State))
    layers_max: int = field(default=0, validator=LAYER)
    """How many layers its memory would hold; 0 is not said."""
    row_us: int = field(default=0, validator=whole(0, DECODING_US_MAX))
    """Microseconds per layer for a decode of one row, as it measured; 0 is not said."""
    chunk_us: int = field(default=0, validator=whole(0, DECODING_US_MAX))
    """Microseconds per layer for a decode of 32 rows; 0 is not said."""
    sessions_max: int = field(default=0, validator=whole(0, SESSIONS_MAX))
    sessions_free: int = field(default=0, validator=whole(0, SESSIONS_MAX))
    """Sessions that could open now: their KV cells are there."""
    queued_rows: int = field(default=0, validator=whole(0, QUEUED_ROWS_MAX))
    """Rows that wait for its engine."""
    links: tuple[RoundTrip, ...] = field(default=(), validator=many(RoundTrip, LINKS_MAX))
    """Round trips to a few peers, those it sends to first."""
    period_ms: int = field(default=PERIOD_MS_DEFAULT, validator=whole(PERIOD_MS_MIN, PERIOD_MS_MAX))
    """The next advertisement follows within this time; silence of several such is the end."""


@frozen
class Heard:
    """An advertisement as its author signed it, and how long ago it was made."""

    body: bytes = field(validator=blob(SIGNED_BYTES_MAX), repr=shown_size)
    """An encoded Advertisement."""
    signature: bytes = field(validator=blob(64, 64), repr=shown_size)
    """Ed25519, by the key that the advertised peer id stands for."""
    age_ms: int = field(validator=whole(0, 1 << 40))


@frozen
class Known:
    """Advertisements that the sender has and the receiver perhaps not."""

    heard: tuple[Heard, ...] = field(validator=many(Heard, KNOWN_MAX))
    more: bool = field(default=False, validator=v.instance_of(bool))
    """Whether another such message follows."""
