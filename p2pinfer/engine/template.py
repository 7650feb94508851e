"""Chat templates: the Jinja text in a GGUF that turns messages into a prompt.

A model file comes from a stranger. Its template runs in Jinja's sandbox, which keeps it away from
Python's internals, and in a process of its own, whose time and memory are bounded: a sandbox alone
lets ``{{ 'x' * 10**10 }}`` and loops without end through. It is kept for the next question, since
starting one takes 60 ms, and on a busy machine a second; what takes too long is killed with it.

Templates find what transformers' ``apply_chat_template`` gives them. What people write is text: the
prompt says where it spells a control token, so that nobody's words become somebody's turn.
"""

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
import msgpack
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from p2pinfer.core.errors import UserError
from p2pinfer.engine.helper_process import Helper, HelperEnded, answer_questions
from p2pinfer.engine.special_tokens import NO_SPECIAL_TOKENS, SpecialTokens, Spellings

Message = dict[str, Any]
"""``role`` (system, user, assistant, tool) and ``content``, a text; what calls tools has OpenAI's
``tool_calls`` too, and what they gave the ``tool_call_id``."""

TEMPLATE_CHARS_MAX = 1_000_000
"""Of a file; the longest known has 30,000."""

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

_MARKS = (range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE))
"""Characters that Unicode keeps from all text, and many that it leaves to private use."""

_NEEDLE = "needle-7f3a"
"""The text that a probe looks for: no template contains it."""


class BrokenTemplate(UserError):
    """A chat template is no valid Jinja: nothing can be asked by messages."""


def check_template(source: str) -> None:
    """Raise BrokenTemplate unless a model's template is valid Jinja."""
    if error := _syntax_error(source):
        raise BrokenTemplate(
            f"the model's chat template is broken: {error}; name a file with another one"
            " (--chat-template FILE), or ask for completions, which need none"
        )


def template_remark(source: str | None, model: str) -> str | None:
    """Say what a person should know of how a model is talked to, if anything."""
    if source is None:
        return (
            f"{model} brings no chat template, so it is talked to in ChatML; where it was trained"
            " on something else, its answers are poor: --chat-template FILE takes another one"
        )
    try:
        check_template(source)
    except BrokenTemplate as error:
        return str(error)
    return None


def _syntax_error(source: str) -> str | None:
    try:
        _environment().parse(source)  # compiling would work out its constants
    except (jinja2.TemplateError, RecursionError) as error:
        return str(error)
    return None


def read_template(path: Path) -> str:
    """Return the template in a file; raises UserError if it cannot be read, or is not Jinja."""
    try:
        with path.expanduser().open(encoding="utf-8") as file:
            source = file.read(TEMPLATE_CHARS_MAX + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no chat template: it is not text in UTF-8") from error
    if len(source) > TEMPLATE_CHARS_MAX:
        raise UserError(f"{path} is no chat template: it has over {TEMPLATE_CHARS_MAX} characters")
    if reason := _syntax_error(source):
        raise UserError(f"{path} is no chat template: {reason}")
    return source


@dataclass(frozen=True)
class Prompt:
    """What a template made of a conversation."""

    text: str
    literal: tuple[int, ...] = ()
    """Where what spells a control token is text all the same."""


class ChatTemplate:
    """A model's chat template.

    Args:
        source: Jinja; None is ChatML.
        special: the vocabulary's special tokens.
        now: seconds since 1970, for templates that tell the model the date.
    """

    def __init__(
        self,
        source: str | None,
        special: SpecialTokens = NO_SPECIAL_TOKENS,
        now: Callable[[], int] = lambda: time.time_ns() // 10**9,
    ) -> None:
        tokens = (special.bos, special.eos, special.control)
        self._config = msgpack.packb([source or CHATML, *tokens])
        self._now = now
        arguments = [str(RENDER_CPU_S_MAX)]
        self._helper = Helper("p2pinfer.engine.template", *arguments, answer_s_max=RENDER_S_MAX)

    async def render(
        self,
        messages: Sequence[Message],
        *,
        parse_special: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Prompt:
        """Return the prompt that asks the assistant for the next message.

        Where the template refuses a conversation as it is, turns of one role that follow each
        other are merged, and system messages become part of the user's turn.

        Args:
            messages: the conversation so far.
            parse_special: take what spells a control token in it for one.
            tools: what may be called, as OpenAI describes it.
            options: values that the template may know, by their names.

        Raises:
            UserError: the template refuses these messages, or takes too much time or memory.
        """
        more = json.dumps([list(messages), list(tools) or None, dict(options)])
        question = [self._config, more, parse_special, self._now()]
        try:
            text, literal, problem = await self._helper.ask(question)
        except HelperEnded as error:
            if error.is_overdue or error.code == -_OUT_OF_TIME:
                raise UserError("the model's chat template does not come to an end") from error
            raise UserError(f"the model's chat template ended {error}") from error
        if problem is not None:
            raise UserError(f"the model's chat template refuses this: {problem}")
        return Prompt(text, tuple(literal))

    async def end(self) -> None:
        """End the process that renders; it is started again when it is needed."""
        await self._helper.end()


class _Generation(Extension):
    """Takes ``{% generation %}`` for no more than what it encloses: it marks text to train on."""

    tags = {"generation"}  # noqa: RUF012 -- as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what is enclosed."""
        parser.stream.skip(1)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return what transformers compiles chat templates with, and the tag ``do``."""
    extensions = ["jinja2.ext.loopcontrols", "jinja2.ext.do", _Generation]
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    environment.filters["tojson"] = _to_json  # Jinja's own is for HTML
    environment.globals["raise_exception"] = _refuse
    return environment


def _refuse(text: str) -> NoReturn:
    raise jinja2.TemplateError(text)


def _to_json(  # with transformers' arguments
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _Compiled:
    """A template in the process that renders it."""

    def __init__(self, source: str, bos: str, eos: str, control: Sequence[str]) -> None:
        self._source = source
        self._template = _environment().from_string(source)
        # What transformers gives a template that is asked for no more than an answer.
        self._values = {
            "bos_token": bos,
            "eos_token": eos,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        self._spellings = Spellings(control)
        self._wants_parts = False
        user = {"role": "user", "content": _NEEDLE}
        if not self._tells([user]):
            self._wants_parts = True
            self._wants_parts = self._tells([user])
        system = {"role": "system", "content": _NEEDLE}
        self._knows_system = self._tells([system, {"role": "user", "content": "x"}])

    def _tells(self, messages: list[Message]) -> bool:
        """Whether the needle in a conversation comes through."""
        try:
            return _NEEDLE in self._generate(messages, 0, {})
        except Exception:  # noqa: BLE001 -- a template may raise anything at all
            return False

    def render(
        self,
        messages: list[Message],
        now: int,
        *,
        parse_special: bool,
        tools: list[Any] | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[str, list[int]]:
        """Return a prompt and where it is literal; raises what the template does."""
        mark = ""
        if not parse_special:
            (messages, tools), mark = self._marked([messages, tools])
        values = {**options, "tools": tools}
        refusal: Exception | None = None
        for form in _forms(messages, knows_system=self._knows_system):
            try:
                return _unmarked(self._generate(form, now, values), mark)
            except Exception as error:  # noqa: BLE001
                refusal = refusal or error
        assert refusal
        raise refusal

    def _generate(self, messages: list[Message], now: int, more: Mapping[str, Any]) -> str:
        def strftime_now(form: str) -> str:
            return datetime.fromtimestamp(now).astimezone().strftime(form)

        given: list[Any] = list(messages)
        if self._wants_parts:
            given = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        values = {**self._values, **more, "messages": given, "strftime_now": strftime_now}
        prompt = ""
        for part in self._template.generate(values):
            prompt += part
            if len(prompt) > PROMPT_CHARS_MAX:
                raise MemoryError(f"it makes more than {PROMPT_CHARS_MAX:,} characters")
        return prompt

    def _marked(self, given: Any) -> tuple[Any, str]:
        """Put a character that occurs in no text into texts that spell control tokens.

        So they are found in the prompt, whatever the template does with a text.
        """
        texts = list(_texts(given))
        if not any(True for text in texts for _ in self._spellings.find(text)):
            return given, ""
        taken = set(self._source).union(*texts)
        mark = next((c for c in map(chr, chain(*_MARKS)) if c not in taken), None)
        if mark is None:
            raise jinja2.TemplateError("it holds every character of private use")

        def put(text: str) -> str:
            places = [at + 1 for at, _ in self._spellings.find(text)]
            return mark.join(text[begin:end] for begin, end in pairwise([0, *places, len(text)]))

        return _changed(given, put), mark


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in JSON, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _texts(each)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Return JSON with all its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_changed(each, change) for each in value]
    if isinstance(value, dict):
        return {change(name): _changed(each, change) for name, each in value.items()}
    return value


def _unmarked(text: str, mark: str) -> tuple[str, list[int]]:
    """Take the marks out of a prompt; returns where the character before each is."""
    if not mark:
        return text, []
    pieces = text.split(mark)
    literal, length = [], 0
    for piece in pieces[:-1]:
        length += len(piece)
        literal.append(length - 1)
    return "".join(pieces), literal


def _forms(messages: list[Message], *, knows_system: bool) -> Iterator[list[Message]]:
    """Yield a conversation as it is, or nearly, and then in forms that stricter templates take."""
    parsed = [_parsed(each) for each in messages]
    for given in (parsed, messages):
        is_led = knows_system and given[0]["role"] == "system"
        lead, rest = (given[:1], given[1:]) if is_led else ([], given)
        folded = _folded(given)
        forms = [
            given if knows_system else folded,
            _merged(given if knows_system else folded),
            lead + _merged(_folded(rest)),
            _merged(folded),
        ]
        for at, form in enumerate(forms):
            if form not in forms[:at]:
                yield form
        if parsed == messages:
            return


def _parsed(message: Message) -> Message:
    """Return a message whose calls have arguments, and not a text that spells them.

    Most templates want them so; those that want the text fail at it.
    """
    calls = []
    for call in message.get("tool_calls", ()):
        function = call["function"]
        with suppress(ValueError):
            function = {**function, "arguments": json.loads(function["arguments"])}
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls} if calls else message


def _merged(messages: list[Message]) -> list[Message]:
    """Merge turns of one role that follow each other, a blank line between them (as Ollama)."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else {}
        if message.keys() == last.keys() == {"role", "content"} and last["role"] == message["role"]:
            merged[-1] = {**last, "content": f"{last['content']}\n\n{message['content']}"}
        else:
            merged.append(message)
    return merged


def _folded(messages: list[Message]) -> list[Message]:
    """Put system messages into the user's next turn, on lines of their own (as llama.cpp)."""
    folded: list[Message] = []
    waiting: list[str] = []
    for message in [*messages, None]:
        if message and message["role"] == "system":
            waiting.append(message["content"])
        elif message and message["role"] == "user":
            folded.append({"role": "user", "content": "\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            if waiting:
                folded.append({"role": "user", "content": "\n".join(waiting)})
                waiting = []
            folded += [message] if message else []
    return folded


def _bound_memory() -> None:
    """Take no more than the limit, where the system knows how to enforce it."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))


def _bound_time(cpu_s_max: int) -> None:
    """Limit processor time from now on to ``cpu_s_max`` seconds, if the system can enforce it."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + cpu_s_max, most))


@lru_cache(maxsize=1)
def _compiled(config: bytes) -> _Compiled:
    return _Compiled(*msgpack.unpackb(config))


def _answer(question: list[Any]) -> list[Any]:
    """Return the prompt and where it is literal, or else what is wrong."""
    config, more, parse_special, now = question
    try:
        messages, tools, options = json.loads(more)
        how = {"parse_special": parse_special, "tools": tools, "options": options}
        return [*_compiled(config).render(messages, now, **how), None]
    except Exception as error:  # noqa: BLE001
        return ["", [], f"{type(error).__name__}: {error}"[:500]]


def main() -> None:
    """Render what each question says, within the processor time that the argument names."""
    cpu_s_max = int(sys.argv[1])
    _bound_memory()

    def answer(question: list[Any]) -> list[Any]:
        _bound_time(cpu_s_max)
        return _answer(question)

    answer_questions(answer)


if __name__ == "__main__":
    main()
