"""What a peer advertises about itself, signed, so that any peer may pass it on."""

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
"""Kept by one peer, about 4 MB; in a larger swarm it keeps a sample that covers every layer."""

SIGNED_BYTES_MAX = 4096

KNOWN_MAX = 512
"""Advertisements in one message of an exchange: 2 MiB at worst."""

PERIOD_MS_DEFAULT = 10_000
PERIOD_MS_MIN = 1_000
PERIOD_MS_MAX = 3_600_000
"""An hour: at that period 36,000 peers send 10 advertisements a second in total."""

LINKS_MAX = 8
"""Round trips listed in one advertisement."""

ROUND_TRIP_US_MAX = 60_000_000
DECODING_US_MAX = 60_000_000
"""A minute for one layer: a peer that slow had better not serve."""

SESSIONS_MAX = 1024
QUEUED_ROWS_MAX = 1 << 20


class State(StrEnum):
    """What a peer does with the layers that it advertises."""

    JOINING = "joining"
    """It is fetching or loading them; the range is empty while it has not chosen yet."""
    SERVING = "serving"
    DRAINING = "draining"
    """It finishes the sessions it has and takes no new one."""
    LEFT = "left"
    """It announced that it is gone, so no peer need wait for a timeout."""


@frozen
class RoundTrip:
    """A round trip that a peer measured."""

    peer: PeerId = field(validator=PEER)
    round_trip_us: int = field(validator=whole(1, ROUND_TRIP_US_MAX))


@frozen(cache_hash=True)  # the hash is computed once per advertisement
class Advertisement:
    """What a peer serves and what it can do; ``first`` equals ``end`` if it serves no layer."""

    peer: PeerId = field(validator=PEER)
    addresses: tuple[str, ...] = field(validator=ADDRESSES)
    model: ModelId = field(validator=HASH)
    model_name: str = field(validator=line(128))
    layers: int = field(validator=whole(1, LAYERS_MAX))
    """Layers in the whole model."""
    first: int = field(validator=LAYER)
    end: int = field(validator=LAYER)
    context: int = field(validator=whole(1, POSITIONS_MAX))
    """Most positions a session may have."""
    numerics_class: str = field(validator=NUMERICS)
    sequence: int = field(validator=whole(0, 1 << 62))
    """The highest one wins."""
    state: State = field(default=State.SERVING, validator=v.instance_of(State))
    layers_max: int = field(default=0, validator=LAYER)
    """How many layers its memory would hold; 0 means not stated."""
    row_us: int = field(default=0, validator=whole(0, DECODING_US_MAX))
    """Measured microseconds per layer for a decode of one row; 0 means not stated."""
    chunk_us: int = field(default=0, validator=whole(0, DECODING_US_MAX))
    """Microseconds per layer for a decode of 32 rows; 0 means not stated."""
    sessions_max: int = field(default=0, validator=whole(0, SESSIONS_MAX))
    sessions_free: int = field(default=0, validator=whole(0, SESSIONS_MAX))
    """Sessions that could open now: their KV cells are free."""
    queued_rows: int = field(default=0, validator=whole(0, QUEUED_ROWS_MAX))
    """Rows waiting for its engine."""
    links: tuple[RoundTrip, ...] = field(default=(), validator=many(RoundTrip, LINKS_MAX))
    """Round trips to a few peers, mainly those it sends to."""
    period_ms: int = field(default=PERIOD_MS_DEFAULT, validator=whole(PERIOD_MS_MIN, PERIOD_MS_MAX))
    """The next advertisement follows within this time; several missed periods mean it is gone."""


def without_layers(
    addresses: tuple[str, ...], me: PeerId, model: ModelId, name: str, layers: int, context: int
) -> Advertisement:
    """Return the advertisement of a peer that keeps, learns or relays: it serves no layer."""
    return Advertisement(
        peer=me,
        addresses=addresses,
        model=model,
        model_name=name[:128],
        layers=layers,
        first=0,
        end=0,
        context=context,
        numerics_class="0" * 32,
        sequence=0,
        state=State.DRAINING,  # versions that know none of these count on no session here either
    )


@frozen
class Heard:
    """An advertisement as its author signed it, and its age."""

    body: bytes = field(validator=blob(SIGNED_BYTES_MAX), repr=shown_size)
    """An encoded Advertisement."""
    signature: bytes = field(validator=blob(64, 64), repr=shown_size)
    """Ed25519, by the key that the advertised peer id stands for."""
    age_ms: int = field(validator=whole(0, 1 << 40))


@frozen
class Known:
    """Advertisements that the sender has and the receiver may lack."""

    heard: tuple[Heard, ...] = field(validator=many(Heard, KNOWN_MAX))
    more: bool = field(default=False, validator=v.instance_of(bool))
    """Whether another such message follows."""
