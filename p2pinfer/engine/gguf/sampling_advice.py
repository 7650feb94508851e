"""How a model wants to be sampled: as its file says, or a table for what says nothing itself."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pinfer.core.errors import BadModelFile
from p2pinfer.core.ids import ModelId
from p2pinfer.core.sampling import sampling_of
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.template import Message

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

    def with_system(self, messages: Sequence[Message]) -> list[Message]:
        """Return a conversation, behind the system message unless it brings one."""
        if not self.system or any(each["role"] == "system" for each in messages):
            return list(messages)
        return [{"role": "system", "content": self.system}, *messages]


DEFAULT_MODEL: Final = ModelId("4d00729f8d071527fe08bf1a9621d822402851f3899713aa67c0f1938707aea9")
"""SmolLM2-135M-Instruct in Q4_1, whose file recommends nothing."""

TABLE: Final[Mapping[ModelId, Advice]] = {
    DEFAULT_MODEL: Advice(
        {"temperature": 0.0},
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face. You answer"
        " correctly, in short sentences, and in the language of the question.",
    )
}
"""Models whose files are known to recommend nothing, by id, and what ``p2pinfer bench answers``
found to be best for them. So small a model draws nonsense as soon as it may draw at all."""


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
