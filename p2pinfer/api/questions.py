"""What clients ask for, judged: OpenAI's parameters in, our own options out.

Clients send what other servers know as well. What changes no answer is ignored; what would change
it and cannot be honoured is refused by name, unless it asks for nothing. A name that nobody knows
is ignored too, and the reply says so in a header; but one that looks like a slip of the pen is
refused, since its author wants what it almost says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from attrs import evolve

from p2pinfer.api.parameter_names import (
    ALIASES,
    CHAT_NAMES,
    COMPLETION_NAMES,
    ONLY_NOTHING,
    check_names,
)
from p2pinfer.api.problems import invalid, missing
from p2pinfer.api.tool_parameters import (
    calls_of,
    refuse_unless_alone,
    schema_of,
    template_options,
    tool_message,
    tools_of,
)
from p2pinfer.client.answer import ChatOptions
from p2pinfer.client.grammars import Shape, json_shape
from p2pinfer.client.tool_calls import Tools
from p2pinfer.core.sampling import LOGIT_BIAS_MAX, REPEAT_LAST_N_MAX, SEEDS, TOP_LOGPROBS_MAX
from p2pinfer.engine.template import Message

CHOICES_MAX = 8
"""Of one request (``n``): they are made one after the other, in one session."""

PROMPTS_MAX = 16
"""Of one completion request, for the same reason."""

MESSAGES_MAX = 4096
STOPS_MAX = 16
"""OpenAI takes 4; some clients send every end-of-turn text that they know."""

STOP_CHARS_MAX = 1024
TOKENS_MAX = 2**31
"""Of an answer, as far as a request can say: every session holds fewer."""

COMPLETION_TOKENS_DEFAULT = 16
"""OpenAI's, of ``/v1/completions``."""

COMPLETION_LOGPROBS_MAX = 5
"""OpenAI's, of ``/v1/completions``."""

BIAS_MAX = 100
"""OpenAI's, of ``logit_bias``: as good as always, or never."""

MANY_DIGITS = 12
"""More than any token's number has."""

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repeat_penalty": (0.01, 10),
}

TOP_P_LEAST = 1e-6
"""0 means the likeliest token alone, which this keeps too."""


@dataclass(frozen=True)
class Question:
    """A request that can be answered."""

    how: ChatOptions
    prompts: Sequence[str | list[int]] = ()
    """Of a completion; a chat's prompt comes from its messages."""
    messages: Sequence[Message] = field(default=())
    choices: int = 1
    """Per prompt."""
    stream: bool = False
    include_usage: bool = False
    shape: Shape | None = None
    """What the answers are held to."""
    tools: Tools | None = None
    """What the model may call."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the template is told."""
    prefill: str = ""
    """The assistant's words that its answer goes on from."""
    suffix: str = ""
    """What comes behind a completion's answer."""
    echo: bool = False
    """Say a completion's prompt before its answer, and what is told of its tokens, too."""
    ignored: tuple[str, ...] = ()
    """Names of parameters that nobody here knows, as far as a header can tell them."""

    def held_to(self, grammar: str) -> "Question":
        """Return the same question whose answers keep to a grammar."""
        return replace(self, how=self.how.held_to(grammar))

    def option(self, choice: int) -> ChatOptions:
        """Return the options of one choice: each has a seed of its own, or all would be equal.

        The prompt's tokens are scored for the first one alone.
        """
        sampling = self.how.sampling
        told = sampling.top_logprobs if self.echo and not choice else None
        seed = (sampling.seed + choice) % SEEDS
        return replace(self.how, sampling=evolve(sampling, seed=seed, prompt_logprobs=told))


def chat_question(body: Mapping[str, Any], defaults: ChatOptions, seed: int) -> Question:
    """Judge the body of a chat request; ``seed`` is what a client that names none gets.

    Raises:
        Problem: it cannot be answered.
    """
    ignored = check_names(body, CHAT_NAMES, ONLY_NOTHING)
    messages = body.get("messages")
    if messages is None:
        raise missing("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MESSAGES_MAX:
        raise invalid("messages", f"must be a list of 1 to {MESSAGES_MAX} messages")
    found = [_message(each, f"messages[{at}]") for at, each in enumerate(messages)]
    prefill = _prefill(body, found)
    if defaults.system and all(each["role"] != "system" for each in found):
        found.insert(0, {"role": "system", "content": defaults.system})
    if (special := body.get("parse_special")) is not None:
        defaults = replace(defaults, parse_special=_flag("parse_special", special))
    told = _chat_logprobs(body.get("logprobs"), body.get("top_logprobs"))
    tools, options = tools_of(body), {**defaults.for_template, **template_options(body)}
    refuse_unless_alone(tools, is_grammar=bool(body.get("grammar")))
    chat: dict[str, Any] = {
        "messages": found,
        "tools": tools,
        "options": options,
        "ignored": ignored,
    }
    return _question(body, defaults, seed, told, prefill=prefill, **chat)


def _prefill(body: Mapping[str, Any], messages: list[Message]) -> str:
    """Take the assistant's last message off where it is to go on, as vLLM has it."""
    goes_on, begins = body.get("continue_final_message"), body.get("add_generation_prompt")
    prefix = body["messages"][-1].get("prefix")  # as DeepSeek and Mistral have it
    if goes_on is None and prefix is not None:
        goes_on = _flag(f"messages[{len(messages) - 1}].prefix", prefix)
    if goes_on is None or not _flag("continue_final_message", goes_on):
        if begins is not None and not _flag("add_generation_prompt", begins):
            text = "must be true, unless continue_final_message is"
            raise invalid("add_generation_prompt", text)
        return ""
    if begins:
        raise invalid("add_generation_prompt", "must be false where continue_final_message is true")
    last = messages[-1]
    if last["role"] != "assistant" or not last["content"] or "tool_calls" in last:
        raise invalid("continue_final_message", "needs words of the assistant in the last message")
    if len(messages) < 2:
        raise invalid("messages", "must hold what the assistant answers")
    return str(messages.pop()["content"])


def completion_question(body: Mapping[str, Any], defaults: ChatOptions, seed: int) -> Question:
    """Judge the body of a completion request; raises as ``chat_question``."""
    ignored = check_names(body, COMPLETION_NAMES, ONLY_NOTHING)
    prompt = body.get("prompt")
    if prompt is None:
        raise missing("prompt")
    single = isinstance(prompt, str) or (
        isinstance(prompt, list) and prompt and all(_is_whole(each) for each in prompt)
    )
    prompts = [prompt] if single else prompt
    if not isinstance(prompts, list) or not 1 <= len(prompts) <= PROMPTS_MAX:
        raise invalid("prompt", f"must be a text, tokens, or a list of 1 to {PROMPTS_MAX} such")
    for each in prompts:
        tokens = isinstance(each, list) and each and all(_is_whole(token) for token in each)
        if not tokens and not isinstance(each, str):
            raise invalid("prompt", "must be a text, tokens, or a list of such")
    defaults = replace(defaults, max_tokens=COMPLETION_TOKENS_DEFAULT)
    told = body.get("logprobs")
    if told is not None:
        told = _whole(0, COMPLETION_LOGPROBS_MAX)("logprobs", told)
    suffix, echo = body.get("suffix") or "", body.get("echo")
    if not isinstance(suffix, str):
        raise invalid("suffix", "must be a text")
    echoes = echo is not None and _flag("echo", echo)
    if suffix and not all(isinstance(each, str) for each in prompts):
        raise invalid("prompt", "must be a text where suffix is given")
    if suffix and echoes:
        raise invalid("echo", "must be false where suffix is given")
    return _question(
        body,
        defaults,
        seed,
        told,
        prompts=prompts,
        ignored=ignored,
        suffix=suffix,
        echo=echoes,
        tokens_min=0,
    )


def _chat_logprobs(wanted: Any, top: Any) -> int | None:
    """Return how many of the likeliest tokens a chat is to tell; None tells nothing."""
    wanted = False if wanted is None else _flag("logprobs", wanted)
    top = 0 if top is None else _whole(0, TOP_LOGPROBS_MAX)("top_logprobs", top)
    if top and not wanted:
        raise invalid("top_logprobs", "needs logprobs to be true")
    return top if wanted else None


def _question(
    body: Mapping[str, Any],
    defaults: ChatOptions,
    seed: int,
    told: int | None,
    *,
    tokens_min: int = 1,
    **asked: Any,
) -> Question:
    def take(name: str, judge: Callable[[str, Any], Any], default: Any) -> Any:
        for called in (name, *ALIASES.get(name, ())):
            if (value := body.get(called)) is not None:
                return judge(called, value)
        return default

    sampling = {name: take(name, _number(*around), None) for name, around in _RANGES.items()}
    sampling["top_k"] = take("top_k", _whole(0, 1_000_000, {-1: 0}), None)
    last_n = _whole(0, REPEAT_LAST_N_MAX, {-1: REPEAT_LAST_N_MAX})
    sampling["repeat_last_n"] = take("repeat_last_n", last_n, None)
    sampling["seed"] = take("seed", _whole(-(2**63), 2**64), seed) % SEEDS
    if sampling["top_p"] is not None:
        sampling["top_p"] = max(sampling["top_p"], TOP_P_LEAST)
    sampling["logit_bias"] = take("logit_bias", _biases, None)
    given = {name: value for name, value in sampling.items() if value is not None}
    tokens = _whole(tokens_min, TOKENS_MAX, {-1: TOKENS_MAX})
    most = take("max_completion_tokens", tokens, None)
    if most is None:
        most = take("max_tokens", tokens, defaults.max_tokens)
    how = replace(
        defaults,
        sampling=evolve(defaults.sampling, top_logprobs=told, **given),
        max_tokens=most,
        stops=take("stop", _stops, defaults.stops),
    )
    options = take("stream_options", _object, {})
    return Question(
        how,
        choices=take("n", _whole(1, CHOICES_MAX), 1),
        stream=take("stream", _flag, False),
        include_usage=options.get("include_usage") is True,
        shape=_shape(body),
        **asked,
    )


def _message(value: Any, where: str) -> Message:
    """Judge one message; its text may come in parts, which are lines (as for llama.cpp)."""
    if not isinstance(value, dict):
        raise invalid(where, "must be an object")
    role = value.get("role")
    if role == "developer":  # OpenAI's newer word for it
        role = "system"
    if role not in ("system", "user", "assistant", "tool"):
        raise invalid(f"{where}.role", "must be system, developer, user, assistant or tool")
    content = value.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(each, f"{where}.content") for each in content)
    if content is None and role in {"assistant", "tool"}:
        content = ""
    if not isinstance(content, str):
        raise invalid(f"{where}.content", "must be a text")
    if role == "tool":
        return tool_message(value, content, where)
    message: Message = {"role": role, "content": content}
    if role == "assistant":
        if calls := value.get("tool_calls"):
            message["tool_calls"] = calls_of(calls, f"{where}.tool_calls")
        if thoughts := value.get("reasoning_content") or value.get("reasoning"):
            if not isinstance(thoughts, str):
                raise invalid(f"{where}.reasoning_content", "must be a text")
            message["reasoning_content"] = thoughts
    return message


def _part(value: Any, where: str) -> str:
    if (
        isinstance(value, dict)
        and value.get("type") == "text"
        and isinstance(value.get("text"), str)
    ):
        return str(value["text"])
    raise invalid(where, "may hold parts of type text alone: the model reads nothing else")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(
    least: int, most: int, words: Mapping[int, int] = MappingProxyType({})
) -> Callable[[str, Any], int]:
    """Judge a whole number; some others, such as -1, may stand for one that is in range."""

    def judge(name: str, value: Any) -> int:
        if _is_whole(value) and value in words:
            return words[value]
        if not _is_whole(value) or not least <= value <= most:
            raise invalid(name, f"must be a whole number from {least} to {most}")
        return int(value)

    return judge


def _number(least: float, most: float) -> Callable[[str, Any], float]:
    def judge(name: str, value: Any) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not least <= value <= most:  # NaN lies nowhere
            raise invalid(name, f"must be a number from {least} to {most}")
        return float(value)

    return judge


def _biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Judge what is added to tokens' logits: an object, or a list of pairs (as llama.cpp's)."""
    items = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(items, list) or len(items) > LOGIT_BIAS_MAX:
        raise invalid(name, f"must be an object of at most {LOGIT_BIAS_MAX} tokens")
    found = []
    for item in items:
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise invalid(name, "must name tokens and what is added to each")
        token, bias = item[0], _number(-BIAS_MAX, BIAS_MAX)(name, item[1])
        if not bias:
            continue
        if isinstance(token, str) and token.isascii() and token.isdecimal():
            token = int(token[:MANY_DIGITS])
        found.append((_whole(0, TOKENS_MAX)(f"{name}.{str(token)[:20]}", token), bias))
    return tuple(found)


def _shape(body: Mapping[str, Any]) -> Shape | None:
    """Judge what the answer is to be held to, if anything."""
    grammar, wanted = body.get("grammar"), body.get("response_format")
    if grammar and not isinstance(grammar, str):
        raise invalid("grammar", "must be a text in GBNF")
    name = "response_format"
    if wanted is None or wanted == {"type": "text"}:
        return Shape(grammar, is_gbnf=True) if grammar else None
    if grammar:
        raise invalid("grammar", f"cannot be combined with {name}")
    if not isinstance(wanted, dict):
        raise invalid(name, "must be an object")
    match wanted.get("type"):
        case "json_object":
            schema, strict = wanted.get("schema"), None
        case "json_schema":
            name += ".json_schema"
            told = _object(name, wanted.get("json_schema", wanted))
            schema, strict = told.get("schema"), told.get("strict")
            if schema is None:
                raise missing(f"{name}.schema")
        case _:
            raise invalid(f"{name}.type", "must be text, json_object or json_schema")
    schema = schema_of(f"{name}.schema", {"type": "object"} if schema is None else schema)
    is_strict = strict is not None and _flag(f"{name}.strict", strict)
    return json_shape(schema, strict=is_strict)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise invalid(name, "must be true or false")
    return value


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(name, "must be an object")
    return value


def _stops(name: str, value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    good = isinstance(stops, list) and len(stops) <= STOPS_MAX
    if not good or not all(isinstance(s, str) and len(s) <= STOP_CHARS_MAX for s in stops):
        raise invalid(name, f"must be a text or a list of at most {STOPS_MAX} texts")
    return tuple(stops)
