"""Messages about storage that outlives its holders.

    keep       anyone → a peer that keeps shares, or knows a model's storage plan
                   AskKept  →  KeptIs comes back: its plan's id, and the space that it lends
                   AskPlan  →  PlanIs comes back, or Denied

Which shares it has is asked over ``parts``, as of any holder.
"""

from typing import Any

from attrs import field, frozen
from attrs import validators as v

from p2pinfer.core.checks import HASH, blob, shown_size, whole
from p2pinfer.core.ids import ModelId, PlanId
from p2pinfer.core.stripes import PLAN_BYTES_MAX

SPACE_BYTES_MAX = 1 << 50
"""A PiB: no single peer is believed to lend more."""

NO_PLAN = PlanId("")

_NUMBER = whole(0, 1 << 62)
_PLAN: Any = v.or_(HASH, v.matches_re(""))


@frozen
class AskKept:
    """How do you keep this model?"""

    number: int = field(validator=_NUMBER)
    model: ModelId = field(validator=HASH)


@frozen
class KeptIs:
    """How the sender keeps a model."""

    number: int = field(validator=_NUMBER)
    plan: PlanId = field(validator=_PLAN)
    """Of the storage plan that it goes by; empty if it has none."""
    space_bytes: int = field(validator=whole(0, SPACE_BYTES_MAX))
    """Lent to this model; 0: it keeps only what it uses itself."""


@frozen
class AskPlan:
    """Give me this model's storage plan."""

    number: int = field(validator=_NUMBER)
    model: ModelId = field(validator=HASH)


@frozen
class PlanIs:
    """A storage plan's bytes, which are judged by computing some of it again."""

    number: int = field(validator=_NUMBER)
    data: bytes = field(validator=blob(PLAN_BYTES_MAX), repr=shown_size)
