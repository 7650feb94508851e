"""What clients ask for, judged: OpenAI's parameters in, our own options out.

Parameters that OpenAI does not know are refused as it refuses them; those that it knows and we
cannot honour are refused by name unless they ask for nothing; those that change no answer, such as
``user`` and ``metadata``, are taken and ignored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attrs import evolve

from p2pinfer.api.problems import Problem
from p2pinfer.client.answer import ChatOptions
from p2pinfer.core.sampling import SEEDS, TOP_LOGPROBS_MAX
from p2pinfer.engine.template import Message

CHOICES_MAX = 8
"""Of one request (``n``): they are made one after the other, in one session."""

PROMPTS_MAX = 16
"""Of one completion request, for the same reason."""

MESSAGES_MAX = 4096
STOPS_MAX = 16
"""OpenAI takes 4; some clients send every end-of-turn text that they know."""

STOP_CHARS_MAX = 1024
COMPLETION_TOKENS_DEFAULT = 16
"""OpenAI's, of ``/v1/completions``."""

COMPLETION_LOGPROBS_MAX = 5
"""OpenAI's, of ``/v1/completions``."""

_IGNORED = {
    "metadata",
    "model",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
}

_ONLY_NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "web_search_options": (None,),
}
"""Parameters that a swarm cannot honour, and the values by which they ask for nothing."""

_HONOURED = {
    "frequency_penalty",
    "max_completion_tokens",
    "max_tokens",
    "min_p",
    "n",
    "presence_penalty",
    "repeat_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_k",
    "top_p",
}

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
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

    def option(self, choice: int) -> ChatOptions:
        """Return the options of one choice: each has a seed of its own, or all would be equal."""
        seed = (self.how.sampling.seed + choice) % SEEDS
        return replace(self.how, sampling=evolve(self.how.sampling, seed=seed))


def chat_question(body: Mapping[str, Any], defaults: ChatOptions, seed: int) -> Question:
    """Judge the body of a chat request; ``seed`` is what a client that names none gets.

    Raises:
        Problem: it cannot be answered.
    """
    _check_names(body, {"messages", "logprobs", "parse_special", "top_logprobs"})
    messages = body.get("messages")
    if messages is None:
        raise _missing("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MESSAGES_MAX:
        raise _invalid("messages", f"must be a list of 1 to {MESSAGES_MAX} messages")
    found = [_message(each, f"messages[{at}]") for at, each in enumerate(messages)]
    if defaults.system and all(each["role"] != "system" for each in found):
        found.insert(0, {"role": "system", "content": defaults.system})
    if (special := body.get("parse_special")) is not None:
        defaults = replace(defaults, parse_special=_flag("parse_special", special))
    told = _chat_logprobs(body.get("logprobs"), body.get("top_logprobs"))
    return _question(body, defaults, seed, told, messages=found)


def completion_question(body: Mapping[str, Any], defaults: ChatOptions, seed: int) -> Question:
    """Judge the body of a completion request; raises as ``chat_question``."""
    _check_names(body, {"prompt", "logprobs"})
    prompt = body.get("prompt")
    if prompt is None:
        raise _missing("prompt")
    single = isinstance(prompt, str) or (
        isinstance(prompt, list) and prompt and all(_is_whole(each) for each in prompt)
    )
    prompts = [prompt] if single else prompt
    if not isinstance(prompts, list) or not 1 <= len(prompts) <= PROMPTS_MAX:
        raise _invalid("prompt", f"must be a text, tokens, or a list of 1 to {PROMPTS_MAX} such")
    for each in prompts:
        tokens = isinstance(each, list) and each and all(_is_whole(token) for token in each)
        if not tokens and not isinstance(each, str):
            raise _invalid("prompt", "must be a text, tokens, or a list of such")
    defaults = replace(defaults, max_tokens=COMPLETION_TOKENS_DEFAULT)
    told = body.get("logprobs")
    if told is not None:
        told = _whole(0, COMPLETION_LOGPROBS_MAX)("logprobs", told)
    return _question(body, defaults, seed, told, prompts=prompts)


def _chat_logprobs(wanted: Any, top: Any) -> int | None:
    """Return how many of the likeliest tokens a chat is to tell; None tells nothing."""
    wanted = False if wanted is None else _flag("logprobs", wanted)
    top = 0 if top is None else _whole(0, TOP_LOGPROBS_MAX)("top_logprobs", top)
    if top and not wanted:
        raise _invalid("top_logprobs", "needs logprobs to be true")
    return top if wanted else None


def _question(
    body: Mapping[str, Any], defaults: ChatOptions, seed: int, told: int | None, **asked: Any
) -> Question:
    def take(name: str, judge: Callable[[str, Any], Any], default: Any) -> Any:
        value = body.get(name)
        return default if value is None else judge(name, value)

    sampling = {name: take(name, _number, None) for name in _RANGES}
    sampling["top_k"] = take("top_k", _whole(0, 1_000_000), None)
    sampling["seed"] = take("seed", _whole(-(2**63), 2**64), seed) % SEEDS
    if sampling["top_p"] is not None:
        sampling["top_p"] = max(sampling["top_p"], TOP_P_LEAST)
    given = {name: value for name, value in sampling.items() if value is not None}
    most = take("max_completion_tokens", _whole(1, 2**31), None)
    most = most or take("max_tokens", _whole(1, 2**31), defaults.max_tokens)
    how = replace(
        defaults,
        sampling=evolve(defaults.sampling, top_logprobs=told, **given),
        max_tokens=most,
        stops=take("stop", _stops, defaults.stops),
    )
    options = take("stream_options", _object, {})
    if unknown := sorted(options.keys() - {"include_usage", "include_obfuscation"}):
        raise _unknown(f"stream_options.{unknown[0]}")
    return Question(
        how,
        choices=take("n", _whole(1, CHOICES_MAX), 1),
        stream=take("stream", _flag, False),
        include_usage=options.get("include_usage") is True,
        **asked,
    )


def _check_names(body: Mapping[str, Any], own: set[str]) -> None:
    """Refuse what nobody knows, and what we cannot honour."""
    for name, value in body.items():
        if name in _ONLY_NOTHING:
            allowed = _ONLY_NOTHING[name]
            if not any(type(value) is type(each) and value == each for each in allowed):
                text = f"Unsupported parameter: '{name}' is not supported by this server."
                raise Problem(400, text, "unsupported_parameter", name)
        elif name not in own | _HONOURED | _IGNORED:
            raise _unknown(name)


def _message(value: Any, where: str) -> Message:
    """Judge one message; its text may come in parts, which are lines (as for llama.cpp)."""
    if not isinstance(value, dict):
        raise _invalid(where, "must be an object")
    role = value.get("role")
    if role == "developer":  # OpenAI's newer word for it
        role = "system"
    if role not in {"system", "user", "assistant"}:
        raise _invalid(f"{where}.role", "must be system, developer, user or assistant")
    if value.get("tool_calls"):
        raise Problem(400, "Tool calls are not supported.", "unsupported_parameter", where)
    content = value.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(each, f"{where}.content") for each in content)
    if content is None and role == "assistant":
        content = ""
    if not isinstance(content, str):
        raise _invalid(f"{where}.content", "must be a text")
    return {"role": role, "content": content}


def _part(value: Any, where: str) -> str:
    if (
        isinstance(value, dict)
        and value.get("type") == "text"
        and isinstance(value.get("text"), str)
    ):
        return str(value["text"])
    raise _invalid(where, "may hold parts of type text alone: the model reads nothing else")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def judge(name: str, value: Any) -> int:
        if not _is_whole(value) or not least <= value <= most:
            raise _invalid(name, f"must be a whole number from {least} to {most}")
        return int(value)

    return judge


def _number(name: str, value: Any) -> float:
    least, most = _RANGES[name]
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not least <= value <= most:  # NaN lies nowhere
        raise _invalid(name, f"must be a number from {least} to {most}")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _invalid(name, "must be true or false")
    return value


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(name, "must be an object")
    return value


def _stops(name: str, value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    good = isinstance(stops, list) and len(stops) <= STOPS_MAX
    if not good or not all(isinstance(s, str) and len(s) <= STOP_CHARS_MAX for s in stops):
        raise _invalid(name, f"must be a text or a list of at most {STOPS_MAX} texts")
    return tuple(stops)


def _missing(name: str) -> Problem:
    return Problem(
        400, f"Missing required parameter: '{name}'.", "missing_required_parameter", name
    )


def _invalid(name: str, text: str) -> Problem:
    return Problem(400, f"Invalid value for '{name}': it {text}.", "invalid_value", name)


def _unknown(name: str) -> Problem:
    return Problem(400, f"Unknown parameter: '{name}'.", "unknown_parameter", name)
