"""Chat templates: the Jinja text in a GGUF that turns messages into a prompt.

A model file comes from a stranger, so its template runs in Jinja's sandbox, which has no access to
Python's internals and cannot change what it is given.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from p2pinfer.core.errors import UnsupportedModel, UserError

Message = dict[str, str]
"""``role`` (system, user, assistant) and ``content``."""

PROMPT_CHARS_MAX = 4_000_000
"""What a template may make of a conversation; a loop in it must not fill the memory."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For models that bring no template: the most common format, and llama.cpp's own default."""


class ChatTemplate:
    """A model's chat template.

    Raises:
        UnsupportedModel: the template is not valid Jinja.
    """

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source or CHATML)
        except jinja2.TemplateError as error:
            raise UnsupportedModel(f"the model's chat template is broken: {error}") from error
        self._values: dict[str, Any] = {"bos_token": bos, "eos_token": eos}

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt that asks the assistant for the next message.

        Raises:
            UserError: the template refuses these messages.
        """
        values = {**self._values, "messages": list(messages), "add_generation_prompt": True}
        parts, size = [], 0
        try:
            for part in self._template.generate(values):
                size += len(part)
                if size > PROMPT_CHARS_MAX:
                    raise UserError(f"the prompt is longer than {PROMPT_CHARS_MAX:,} characters")
                parts.append(part)
        except jinja2.TemplateError as error:
            raise UserError(f"the model's chat template refuses this: {error}") from error
        return "".join(parts)


def _refuse(text: str) -> NoReturn:
    raise jinja2.TemplateError(text)
