"""Chat templates: the Jinja text in a GGUF that turns messages into a prompt.

A model file comes from a stranger. Its template runs in Jinja's sandbox, which keeps it away from
Python's internals, and in a process of its own, whose time and memory are bounded: a sandbox alone
lets ``{{ 'x' * 10**10 }}`` and loops without end through. Starting it takes about 60 ms.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from p2pinfer.core.errors import UnsupportedModel, UserError

Message = dict[str, str]
"""``role`` (system, user, assistant) and ``content``."""

PROMPT_CHARS_MAX = 4_000_000
"""What a template may make of a conversation: ten times what the longest contexts hold."""

RENDER_CPU_S_MAX = 5
"""Of processor time; real templates take milliseconds."""

RENDER_S_MAX = 60
"""However busy the machine is, and where processor time cannot be limited."""

MEMORY_BYTES_MAX = 512 * 1024 * 1024
"""Python and Jinja take 30 MB, the longest prompt a few times its length."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For models that bring no template: the most common format, and llama.cpp's own default."""


_OUT_OF_TIME: int = getattr(signal, "SIGXCPU", 1 << 16)  # some systems have none


class ChatTemplate:
    """A model's chat template.

    Raises:
        UnsupportedModel: the template is not valid Jinja.
    """

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        self._source = source or CHATML
        try:
            _environment().parse(self._source)  # compiling would work out its constants
        except (jinja2.TemplateError, RecursionError) as error:
            raise UnsupportedModel(f"the model's chat template is broken: {error}") from error
        self._tokens = {"bos_token": bos, "eos_token": eos}

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt that asks the assistant for the next message; blocks meanwhile.

        Raises:
            UserError: the template refuses these messages, or takes too much time or memory.
        """
        values = {**self._tokens, "messages": list(messages), "add_generation_prompt": True}
        endless = UserError("the model's chat template does not come to an end")
        try:
            done = subprocess.run(
                [sys.executable, "-m", "p2pinfer.engine.template", str(RENDER_CPU_S_MAX)],
                input=json.dumps([self._source, values]).encode(),
                capture_output=True,
                timeout=RENDER_S_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise endless from None
        if done.returncode == -_OUT_OF_TIME:
            raise endless
        if done.returncode != 0:
            raise UserError(f"the model's chat template ended with code {done.returncode}")
        prompt, problem = json.loads(done.stdout)
        if problem is not None:
            raise UserError(f"the model's chat template refuses this: {problem}")
        return str(prompt)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    return environment


def _refuse(text: str) -> NoReturn:
    raise jinja2.TemplateError(text)


def _bound(cpu_s_max: int) -> None:
    """Take no more than the limits, where the system knows how to enforce them."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s_max, cpu_s_max + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))


def main() -> None:
    """Render what standard input says; print the prompt or what is wrong, one of them null."""
    _bound(int(sys.argv[1]))
    source, values = json.load(sys.stdin.buffer)
    try:
        prompt = ""
        for part in _environment().from_string(source).generate(values):
            prompt += part
            if len(prompt) > PROMPT_CHARS_MAX:
                raise MemoryError(f"it makes more than {PROMPT_CHARS_MAX:,} characters")
        answer = [prompt, None]
    except Exception as error:  # noqa: BLE001 -- a template may raise anything at all
        answer = [None, f"{type(error).__name__}: {error}"[:500]]
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
