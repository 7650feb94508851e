"""How a model wants to be sampled: as its file says, or a table for what says nothing itself."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from p2pinfer.core.errors import BadModelFile
from p2pinfer.core.ids import ModelId
from p2pinfer.core.sampling import sampling_of
from p2pinfer.engine.gguf.reader import GgufHeader

_log = logging.getLogger("p2pinfer.engine")

_PREFIX = "general.sampling."

_WHOLE: Final = {"top_k": "top_k", "penalty_last_n": "repeat_last_n"}
_FRACTIONS: Final = {
    "temp": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
}
"""llama.cpp's names of what a file may recommend, and the fields of ``Sampling``. It knows more
(``sequence``, ``xtc_*``, ``mirostat*``), of samplers that there are none of here."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What holds for a model where neither a request nor an option says otherwise."""

    sampling: Mapping[str, float] = field(default_factory=dict)
    """Fields of ``Sampling`` by name."""
    system: str | None = None
    """A system message for conversations that bring none."""


TABLE: Final[Mapping[ModelId, Advice]] = {}


def advice_of(model: ModelId, header: GgufHeader) -> Advice:
    """Return what is advised for a model; what makes no sense in its file is no advice."""
    return TABLE.get(model) or Advice(dict(_told(header)))


def _told(header: GgufHeader) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for names, read in ((_WHOLE, header.integer), (_FRACTIONS, header.number)):
        for key, name in names.items():
            try:
                value = read(_PREFIX + key)
                if value is None:
                    continue
                if key == "top_k":
                    value = max(value, 0)  # anything below 1 is llama.cpp's word for all
                sampling_of({name: value})
            except (BadModelFile, ValueError, TypeError) as error:
                _log.warning("%s recommends no usable %s: %s", header.name, key, error)
                continue
            found.append((name, value))
    return found
