"""Ollama's interface in a chat's words, and answers in its own."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from p2pinfer.api.gateway import Calls, Finished, Part, Said, Thinks
from p2pinfer.api.logprobs import chat_scores
from p2pinfer.api.parameter_names import check_names
from p2pinfer.api.problems import Problem, invalid
from p2pinfer.api.replies import account_of, call_id
from p2pinfer.api.translation import SAMPLING, Event, going_on, object_of
from p2pinfer.client.answer import Answer

PATHS = tuple(
    f"/api/{name}"
    for name in (
        *("chat", "generate", "tags", "show", "ps", "version", "embed", "embeddings"),
        *("create", "copy", "pull", "push", "delete"),
    )
)
"""What is Ollama's of ``/api``; the rest is the page's own."""

NS_PER_S = 10**9
NS_PER_MS = 10**6

_OPTIONS_SAME = {*SAMPLING, "stop"}

_OPTIONS_KNOWN = {
    *_OPTIONS_SAME,
    "embedding_only",
    "f16_kv",
    "logits_all",
    "low_vram",
    "main_gpu",
    "mirostat_eta",
    "mirostat_tau",
    "num_batch",
    "num_ctx",  # a session's length is the gateway's; what does not fit is refused, never cut
    "num_gpu",
    "num_keep",
    "num_predict",
    "num_thread",
    "numa",
    "penalize_newline",  # Ollama ignores it, too
    "use_mlock",
    "use_mmap",
    "vocab_only",
}

_OPTIONS_ONLY_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "mirostat": (0,),
    "tfs_z": (1,),
    "typical_p": (1,),
}

_KNOWN = {
    "format",
    "keep_alive",
    "logprobs",
    "model",
    "options",
    "shift",
    "stream",
    "think",
    "top_logprobs",
    "truncate",
}

_NAMES = {
    **{name: f"options.{name}" for name in _OPTIONS_SAME},
    "max_tokens": "options.num_predict",
    "response_format.json_schema.schema": "format",
    "reasoning_effort": "think",
    "continue_final_message": "messages",
}


def problem_body(problem: Problem) -> dict[str, Any]:
    """Return what is wrong in Ollama's envelope."""
    return {"error": problem.message}


class _Lines(ABC):
    """What both endpoints share: streams are JSON, a line each."""

    prefix, names, content_type = "ollama-", MappingProxyType(_NAMES), "application/x-ndjson"
    ping = b" "
    """White space may come before any JSON; an empty line is none."""
    known: frozenset[str]
    only_nothing: Mapping[str, tuple[Any, ...]]
    asked: str
    """Without this, a model is only to be loaded."""

    def encode(self, told: Event) -> bytes:
        """Return an event as a stream has it."""
        return f"{json.dumps(told, ensure_ascii=False)}\n".encode()

    def failed(self, problem: Problem) -> bytes:
        """Say in the middle of a stream that no more comes."""
        return self.encode(problem_body(problem))

    def check(self, body: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of parameters that nobody knows; raises Problem."""
        ignored = check_names(body, self.known, self.only_nothing)
        told = check_names(_options(body), _OPTIONS_KNOWN, _OPTIONS_ONLY_NOTHING)
        return (*ignored, *(f"options.{name}" for name in told))

    def at_once(self, head: Mapping[str, Any], body: Mapping[str, Any]) -> Event | None:
        """Return the reply to a request that only loads or unloads a model: it is open."""
        if body.get(self.asked) or body.get("suffix"):
            return None
        reason = "unload" if body.get("keep_alive") in (0, "0") else "load"
        return {**_head(head), **self.piece(), "done": True, "done_reason": reason}

    def writer(self, head: Mapping[str, Any], _: Mapping[str, Any]) -> "LineWriter":
        """Return what writes the reply."""
        return LineWriter(head, self)

    @abstractmethod
    def piece(self, **said: Any) -> dict[str, Any]:
        """Return what a line has of an answer."""


class OllamaChat(_Lines):
    """``/api/chat``."""

    known, asked = frozenset(_KNOWN | {"messages", "tools"}), "messages"
    only_nothing: Mapping[str, tuple[Any, ...]] = {"tool_choice": ("auto",)}

    def chat_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a chat request that asks the same; raises Problem."""
        listed = body.get("messages")
        if not isinstance(listed, list):
            raise invalid("messages", "must be a list of messages")
        found = _messages(listed)
        chat = {**_shared(body), "messages": found, "tools": body.get("tools")}
        return {**chat, **going_on(found)}

    def piece(self, **said: Any) -> dict[str, Any]:
        """Return what a line has of an answer."""
        return {"message": {"role": "assistant", "content": "", **said}}


class OllamaGenerate(_Lines):
    """``/api/generate``."""

    known, asked = frozenset(_KNOWN | {"prompt", "raw", "system", "suffix"}), "prompt"
    only_nothing: Mapping[str, tuple[Any, ...]] = {
        "context": ([],),
        "height": (0,),
        "images": ([],),
        "steps": (0,),
        "template": ("",),
        "width": (0,),
    }

    def chat_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a chat that asks the same, or a completion's where it is ``raw``."""
        shared, prompt, system = _shared(body), body.get("prompt"), body.get("system")
        for name in ("prompt", "system", "suffix"):
            if not isinstance(body.get(name, ""), str | None):
                raise invalid(name, "must be a text")
        raw = body.get("raw")
        if raw is not None and not isinstance(raw, bool):
            raise invalid("raw", "must be true or false")
        if raw or body.get("suffix"):
            more = {"suffix": body["suffix"]} if body.get("suffix") else {}
            return {"max_tokens": -1, **_of_completion(shared), "prompt": prompt or "", **more}
        messages = [{"role": "system", "content": system}] if system else []
        return {**shared, "messages": [*messages, {"role": "user", "content": prompt}]}

    def piece(self, **said: Any) -> dict[str, Any]:
        """Return what a line has of an answer."""
        return {"response": said.pop("content", ""), **said}


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    options = body.get("options")
    if options is not None and not isinstance(options, dict):
        raise invalid("options", "must be an object")
    return options or {}


def _shared(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what both endpoints have, in a chat's words."""
    options = _options(body)
    chat = {name: options[name] for name in _OPTIONS_SAME if name in options}
    if chat.get("seed") == -1:
        del chat["seed"]
    most = options.get("num_predict")
    if most is not None:
        is_endless = isinstance(most, int) and not isinstance(most, bool) and -2 <= most <= 0
        chat["max_tokens"] = -1 if is_endless else most
    streams = body.get("stream")
    chat["stream"] = True if streams is None else streams
    for name in ("model", "logprobs", "top_logprobs"):
        if name in body:
            chat[name] = body[name]
    return {**chat, **_format(body.get("format")), **_think(body.get("think"))}


def _of_completion(chat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same in a completion's words: it has log-probabilities by their number."""
    left_out = ("logprobs", "top_logprobs", "enable_thinking", "reasoning_effort")
    found = {name: value for name, value in chat.items() if name not in left_out}
    if chat.get("logprobs"):
        found["logprobs"] = chat.get("top_logprobs") or 0
    return found


def _format(wanted: Any) -> dict[str, Any]:
    if wanted is None or wanted == "":
        return {}
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(wanted, dict):
        raise invalid("format", "must be json or a JSON schema")
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": wanted}}}


def _think(wanted: Any) -> dict[str, Any]:
    if wanted is None:
        return {}
    if isinstance(wanted, bool):
        return {"enable_thinking": wanted}
    if not isinstance(wanted, str):
        raise invalid("think", "must be true, false, or a word such as low or high")
    return {"enable_thinking": True, "reasoning_effort": wanted}


def _messages(listed: list[Any]) -> list[dict[str, Any]]:
    """Return messages as a chat has them, whose calls have ids: results follow in their order."""
    found: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []
    numbered = 0
    for at, each in enumerate(listed):
        where = f"messages[{at}]"
        if not isinstance(each, dict):
            raise invalid(where, "must be an object")
        if each.get("images"):
            raise invalid(f"{where}.images", "must be empty: the model reads text alone")
        message: dict[str, Any] = {"role": each.get("role"), "content": each.get("content")}
        if each.get("thinking"):
            message["reasoning_content"] = each["thinking"]
        if calls := each.get("tool_calls"):
            message["tool_calls"], waiting = [], []
            for call in calls if isinstance(calls, list) else [calls]:
                function = call.get("function") if isinstance(call, dict) else None
                if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                    raise invalid(f"{where}.tool_calls", "must be a list of functions' calls")
                known = call.get("id") or f"call{numbered:05}"
                numbered += 1
                waiting.append((known, function["name"]))
                message["tool_calls"].append({"id": known, "function": function})
        if message["role"] == "tool":
            name = each.get("tool_name")
            known = next(
                (id_ for id_, of in waiting if of == name), waiting[0][0] if waiting else ""
            )
            known = each.get("tool_call_id") or known or f"call{numbered:05}"
            waiting = [pair for pair in waiting if pair[0] != known]
            message |= {"tool_call_id": known, "name": name}
        found.append(message)
    return found


def _head(head: Mapping[str, Any]) -> dict[str, Any]:
    created = datetime.fromtimestamp(head["created"], UTC)
    return {"model": head["model"], "created_at": f"{created:%Y-%m-%dT%H:%M:%SZ}"}


class LineWriter:
    """Writes an answer as Ollama's clients read it."""

    def __init__(self, head: Mapping[str, Any], interface: _Lines) -> None:
        self._id, self._head, self._interface = head["id"], _head(head), interface
        self._said: dict[str, Any] = {}
        self._scores: list[Any] = []
        self.whole: Event = {}

    def begin(self, _prompt_tokens: int, _reused_tokens: int) -> Iterator[Event]:
        """Say nothing before an answer's first part."""
        yield from ()

    def take(self, part: Part) -> Iterator[Event]:
        """Yield what a part adds."""
        match part:
            case Thinks(_, text):
                self._said["thinking"] = self._said.get("thinking", "") + text
                yield self._line(thinking=text)
            case Said(_, text, scores):
                self._said["content"] = self._said.get("content", "") + text
                told = chat_scores(scores)
                self._scores += told["content"] if told else []
                yield self._line(content=text) | ({"logprobs": told["content"]} if told else {})
            case Calls(choice, number, call):
                function = {"index": number, "name": call.name}
                function["arguments"] = object_of(call.arguments)
                known = call_id(self._id, choice, number)
                self._said.setdefault("tool_calls", []).append({"id": known, "function": function})
                yield self._line(tool_calls=self._said["tool_calls"][-1:])
            case Finished():
                scored = {"logprobs": self._scores} if self._scores else {}
                end = _end(part)
                self.whole = {**self._head, **self._interface.piece(**self._said), **scored, **end}
                yield {**self._head, **self._interface.piece(), **end}

    def _line(self, **said: Any) -> Event:
        return {**self._head, **self._interface.piece(**said), "done": False}


def _end(found: Finished) -> dict[str, Any]:
    answer = found.answer
    prompt_ns = round(answer.time_to_first_token_ms * NS_PER_MS)
    answer_ns = _decoding_ns(answer)
    return {
        "done": True,
        "done_reason": "length" if found.finish == "length" else "stop",
        "total_duration": prompt_ns + answer_ns,
        "load_duration": 0,
        "prompt_eval_count": answer.prompt_tokens,
        "prompt_eval_duration": prompt_ns,
        "eval_count": answer.tokens,
        "eval_duration": answer_ns,
        "p2pinfer": account_of(found),
    }


def _decoding_ns(answer: Answer) -> int:
    """Return how long an answer's tokens took, the first one not counted."""
    speed = answer.tokens_per_second
    return round((answer.tokens - 1) / speed * NS_PER_S) if speed and answer.tokens > 1 else 0
