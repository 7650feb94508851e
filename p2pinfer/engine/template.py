"""Chat templates: the Jinja text in a GGUF that turns messages into a prompt.

A model file comes from a stranger. Its template runs in Jinja's sandbox, which keeps it away from
Python's internals, and in a process of its own, whose time and memory are bounded: a sandbox alone
lets ``{{ 'x' * 10**10 }}`` and loops without end through. It is kept for the next question, since
starting one takes 60 ms, and on a busy machine a second; what takes too long is killed with it.
"""

import json
import math
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from p2pinfer.core.errors import UnsupportedModel, UserError
from p2pinfer.core.python_process import python_command, python_environment

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
        self._renderer = _Renderer()
        weakref.finalize(self, self._renderer.end)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt that asks the assistant for the next message; blocks meanwhile.

        Raises:
            UserError: the template refuses these messages, or takes too much time or memory.
        """
        values = {**self._tokens, "messages": list(messages), "add_generation_prompt": True}
        prompt, problem = self._renderer.ask([self._source, values])
        if problem is not None:
            raise UserError(f"the model's chat template refuses this: {problem}")
        return str(prompt)


class _Renderer:
    """A process that renders one template after the other; it is started when it is needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, question: list[Any]) -> list[str | None]:
        """Return the prompt or what is wrong; blocks meanwhile.

        Raises:
            UserError: the process took too long, or ended.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.end()
                self._process = _start()
            process, overdue = self._process, threading.Event()

            def stop() -> None:
                overdue.set()
                process.kill()

            timer = threading.Timer(RENDER_S_MAX, stop)
            timer.start()
            try:
                line = _exchange(process, json.dumps(question).encode() + b"\n")
            finally:
                timer.cancel()
            if not line.endswith(b"\n"):
                self.end()
                if overdue.is_set() or process.returncode == -_OUT_OF_TIME:
                    raise UserError("the model's chat template does not come to an end")
                raise UserError(f"the model's chat template ended with code {process.returncode}")
        answer: list[str | None] = json.loads(line)
        return answer

    def end(self) -> None:
        """End the process, if there is one; it has nothing to save."""
        process, self._process = self._process, None
        if process:
            process.kill()
            process.communicate()  # closes the pipes, and waits


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        python_command("p2pinfer.engine.template", str(RENDER_CPU_S_MAX)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=python_environment(),
        process_group=0,  # a terminal's Ctrl-C stops an answer, and not this
    )


def _exchange(process: subprocess.Popen[bytes], question: bytes) -> bytes:
    """Send a line and return the next one; less than a line if the process ends first."""
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(question)
        process.stdin.flush()
    except BrokenPipeError:
        return b""
    return process.stdout.readline()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    return environment


def _refuse(text: str) -> NoReturn:
    raise jinja2.TemplateError(text)


def _bound_memory() -> None:
    """Take no more than the limit, where the system knows how to enforce it."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))


def _bound_time(cpu_s_max: int) -> None:
    """Take no more processor time from now on, likewise; what it took before is not counted."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + cpu_s_max, most))


def main() -> None:
    """Render what each line of input says; print the prompt or what is wrong, one of them null."""
    cpu_s_max = int(sys.argv[1])
    _bound_memory()
    for line in sys.stdin.buffer:
        _bound_time(cpu_s_max)
        sys.stdout.write(json.dumps(_rendered(*json.loads(line))) + "\n")
        sys.stdout.flush()


def _rendered(source: str, values: dict[str, Any]) -> list[str | None]:
    try:
        prompt = ""
        for part in _environment().from_string(source).generate(values):
            prompt += part
            if len(prompt) > PROMPT_CHARS_MAX:
                raise MemoryError(f"it makes more than {PROMPT_CHARS_MAX:,} characters")
        return [prompt, None]
    except Exception as error:  # noqa: BLE001 -- a template may raise anything at all
        return [None, f"{type(error).__name__}: {error}"[:500]]


if __name__ == "__main__":
    main()
