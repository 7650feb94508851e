"""How two peers compare what they know of the swarm, cheaply if they agree.

Peers are sorted into buckets by a digest of their ids. The asker sends a digest of each bucket; the
answerer lists, peer by peer, only the buckets that differ; then each sends what the other lacks.

    asker → answerer   Compare: a digest for each bucket, or nothing if it knows no peer yet
    answerer → asker   Differs: the peers in the buckets that differ; if none differs, that is all
    asker → answerer   Wanted, then Known, in as many messages as needed
    answerer → asker   Known, in as many messages as needed

Where the asker knows nothing yet, or the answerer does not follow that model, the answer to Compare
is Known: everything about the model, or a glimpse of every model.
"""

from typing import Any

from attrs import field, frozen
from attrs import validators as v

from p2pinfer.core.advertisement import ADVERTISEMENTS_MAX
from p2pinfer.core.checks import HASH, blob, shown_size, whole
from p2pinfer.core.ids import ModelId

BUCKETS = 64
DIGEST_BYTES = 4
"""Of a bucket: a difference goes unnoticed once in 4 billion times, until the next renewal."""

TAG_BYTES = 8
"""Of a peer's id, by BLAKE3."""

NUMBER_BYTES = 8
"""A sequence number, big endian."""

_MODEL: Any = v.or_(HASH, v.matches_re(""))


@frozen
class Compare:
    """A digest of what the asker knows of one model."""

    model: ModelId = field(validator=_MODEL)
    """Empty text if the asker is looking for models."""
    digests: bytes = field(validator=blob(BUCKETS * DIGEST_BYTES), repr=shown_size)
    """Of all buckets, or empty."""
    models: bytes = field(validator=blob(TAG_BYTES, TAG_BYTES), repr=shown_size)
    """A digest of the ids of all models that the asker has heard of."""


@frozen
class Differs:
    """What the answerer knows in the buckets that differ."""

    buckets: int = field(validator=whole(0, (1 << BUCKETS) - 1))
    """Bit ``i`` stands for bucket ``i``."""
    newest: bytes = field(
        validator=blob(ADVERTISEMENTS_MAX * (TAG_BYTES + NUMBER_BYTES)), repr=shown_size
    )
    """For each of their peers, its tag and the sequence number of its newest advertisement."""
    glimpse: bool = field(default=False, validator=v.instance_of(bool))
    """Whether Known follows at once, with some peers of each other model."""


@frozen
class Wanted:
    """The peers whose advertisements the asker lacks."""

    tags: bytes = field(validator=blob(ADVERTISEMENTS_MAX * TAG_BYTES), repr=shown_size)
