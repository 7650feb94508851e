"""Anthropic's Messages interface in a chat's words, and answers in its own."""

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from p2pinfer.api.gateway import CallOpens, CallPiece, Calls, Finished, Part, Said, Thinks
from p2pinfer.api.parameter_names import check_names
from p2pinfer.api.problems import Problem, invalid, missing
from p2pinfer.api.replies import account_of, call_id
from p2pinfer.api.streams import event
from p2pinfer.api.translation import SAMPLING, Event, ServerEvents, going_on, object_of, text_of

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

_SAME = ("model", "max_tokens", "stream", *SAMPLING)

# ``context_management`` lets a server drop what was said long ago: here nothing is dropped.
_KNOWN = {
    *_SAME,
    "anthropic_version",
    "betas",
    "cache_control",
    "context_management",
    "diagnostics",
    "inference_geo",
    "messages",
    "metadata",
    "output_config",
    "output_format",
    "service_tier",
    "speed",
    "stop_sequences",
    "system",
    "thinking",
    "tool_choice",
    "tools",
    "user_profile_id",
    "workspace_id",
}

_ONLY_NOTHING: dict[str, tuple[Any, ...]] = {
    "container": (),
    "logit_bias": ({},),
    "max_completion_tokens": (),
    "mcp_servers": ([],),
    "n": (1,),
    "response_format": ({"type": "text"},),
    "stop": ([],),
}

_NAMES = {
    "messages": "messages",
    "stop": "stop_sequences",
    "response_format.json_schema": "output_config.format",
    "reasoning_effort": "output_config.effort",
}

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def problem_body(problem: Problem) -> dict[str, Any]:
    """Return what is wrong in Anthropic's envelope."""
    message = problem.message
    if problem.code == "context_length_exceeded":
        message = f"prompt is too long: {message}"  # by these words agents know to shorten it
    error = {"type": _KINDS.get(problem.status, "api_error"), "message": message}
    return {"type": "error", "error": error}


class MessagesInterface(ServerEvents):
    """``/v1/messages``."""

    prefix, names = "msg_", MappingProxyType(_NAMES)

    def check(self, body: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of parameters that nobody knows; raises Problem."""
        return check_names(body, _KNOWN, _ONLY_NOTHING)

    def failed(self, problem: Problem) -> bytes:
        """Say in the middle of a stream that no more comes."""
        return event(problem_body(problem), "error")

    def chat_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a chat request that asks the same; raises Problem."""
        if body.get("max_tokens") is None:
            raise missing("max_tokens")
        return self.counted_body(body)

    def counted_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the same of a request whose tokens are only counted."""
        listed = body.get("messages")
        if listed is None:
            raise missing("messages")
        if not isinstance(listed, list):
            raise invalid("messages", "must be a list of messages")
        found: list[dict[str, Any]] = []
        if (system := body.get("system")) is not None and system != []:
            found.append({"role": "system", "content": text_of(system, "system", ("text",))})
        for at, each in enumerate(listed):
            found += _messages(each, f"messages[{at}]")
        goes_on = going_on(found)
        if found and found[-1]["role"] == "assistant" and not goes_on:
            raise invalid("messages", "may end with words of the assistant alone, to go on with")
        chat = {name: body[name] for name in _SAME if name in body}
        chat["messages"] = found
        if (stops := body.get("stop_sequences")) is not None:
            chat["stop"] = stops
        return {**chat, **_tools(body), **_output(body), **_thinking(body), **goes_on}

    def writer(self, head: Mapping[str, Any], _: Mapping[str, Any]) -> "MessageWriter":
        """Return what writes the reply."""
        return MessageWriter(head)


def _messages(value: Any, where: str) -> Iterator[dict[str, Any]]:
    """Yield what one message is in a chat: a tool's results are messages of their own there."""
    if not isinstance(value, dict) or value.get("role") not in ("user", "assistant", "system"):
        raise invalid(f"{where}.role", "must be user or assistant")
    role, content = value["role"], value.get("content")
    if isinstance(content, str):
        yield {"role": role, "content": content}
        return
    if not isinstance(content, list):
        raise invalid(f"{where}.content", "must be a text or a list of blocks")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    has_results = False
    for at, block in enumerate(content):
        here = f"{where}.content[{at}]"
        kind = block.get("type") if isinstance(block, dict) else None
        match kind:
            case "text":
                texts.append(text_of([block], here, ("text",)))
            case "tool_use" if role == "assistant":
                calls.append(_call(block, here))
            case "tool_result" if role == "user":
                has_results = True
                yield _result(block, here)
            case "thinking" if role == "assistant" and isinstance(block.get("thinking"), str):
                thoughts.append(block["thinking"])
            case "redacted_thinking" if role == "assistant":
                pass
            case _:
                raise invalid(f"{here}.type", "is of a kind that the model cannot read here")
    message: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if texts or calls or not has_results:
        yield message


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, known, given = block.get("name"), block.get("id"), block.get("input", {})
    if not isinstance(name, str) or not isinstance(known, str) or not isinstance(given, dict):
        raise invalid(where, "must have an id, a name and an input that is an object")
    function = {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}
    return {"id": known, "type": "function", "function": function}


def _result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    known, content = block.get("tool_use_id"), block.get("content")
    if not isinstance(known, str):
        raise missing(f"{where}.tool_use_id")
    text = "" if content is None else text_of(content, f"{where}.content", ("text",))
    if block.get("is_error") is True:
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": known, "content": text}


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    listed, choice = body.get("tools"), body.get("tool_choice")
    found: dict[str, Any] = {}
    if listed is not None:
        if not isinstance(listed, list):
            raise invalid("tools", "must be a list of tools")
        found["tools"] = [_tool(each, f"tools[{at}]") for at, each in enumerate(listed)]
    if choice is None:
        return found
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "tool":
        found["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(kind, str) and kind in _CHOICES:
        found["tool_choice"] = _CHOICES[kind]
    else:
        raise invalid("tool_choice.type", "must be auto, any, tool or none")
    if (alone := choice.get("disable_parallel_tool_use")) is not None:
        if not isinstance(alone, bool):
            raise invalid("tool_choice.disable_parallel_tool_use", "must be true or false")
        found["parallel_tool_calls"] = not alone
    return found


def _tool(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("type") not in (None, "custom"):
        raise invalid(where, "must be a tool of the client's own: others are not there")
    if "input_schema" not in value:
        raise missing(f"{where}.input_schema")
    function = {"name": value.get("name"), "parameters": value["input_schema"]}
    more = {name: value[name] for name in ("description", "strict") if name in value}
    return {"type": "function", "function": {**function, **more}}


def _output(body: Mapping[str, Any]) -> dict[str, Any]:
    wanted = body.get("output_config")
    if wanted is not None and not isinstance(wanted, dict):
        raise invalid("output_config", "must be an object")
    wanted = wanted or {}
    shape = wanted.get("format", body.get("output_format"))
    found: dict[str, Any] = {}
    if wanted.get("effort") is not None:
        found["reasoning_effort"] = wanted["effort"]
    if shape is not None:
        if not isinstance(shape, dict) or shape.get("type") != "json_schema":
            raise invalid("output_config.format", "must be a json_schema")
        told = {"schema": shape.get("schema"), "strict": True}
        found["response_format"] = {"type": "json_schema", "json_schema": told}
    return found


def _thinking(body: Mapping[str, Any]) -> dict[str, Any]:
    """Switch thoughts off unless they are asked for: many clients read the first block alone."""
    wanted = body.get("thinking")
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind not in ("enabled", "adaptive", "disabled", None):
        raise invalid("thinking.type", "must be enabled, adaptive or disabled")
    return {"enable_thinking": kind in {"enabled", "adaptive"}}


_STOPS = {"length": "max_tokens", "tool_calls": "tool_use"}


class MessageWriter:
    """Writes an answer as Anthropic's clients read it."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._id = head["id"]
        self._content: list[dict[str, Any]] = []
        self._is_open = False
        self.whole: Event = {
            "id": head["id"],
            "type": "message",
            "role": "assistant",
            "model": head["model"],
            "content": self._content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }

    def begin(self, prompt_tokens: int, reused_tokens: int) -> Iterator[Event]:
        """Yield what comes before an answer's first part."""
        self.whole["usage"] = _usage(prompt_tokens, reused_tokens, 0)
        yield {"type": "message_start", "message": {**self.whole, "content": []}}

    def take(self, part: Part) -> Iterator[Event]:
        """Yield what a part adds."""
        match part:
            case Thinks(_, text):
                yield from self._add("thinking", text)
            case Said(_, text):
                yield from self._add("text", text)
            case CallOpens(choice, number, name):
                known = call_id(self._id, choice, number)
                yield from self._open({"type": "tool_use", "id": known, "name": name, "input": {}})
            case CallPiece(_, _, text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})
            case Calls(_, _, call):
                self._content[-1]["input"] = object_of(call.arguments)
                yield from self._close()
            case Finished():
                yield from self._close()
                yield from self._finish(part)

    def _add(self, kind: str, text: str) -> Iterator[Event]:
        if not self._is_open or self._content[-1]["type"] != kind:
            signed = {"signature": ""} if kind == "thinking" else {}
            yield from self._open({"type": kind, kind: "", **signed})
        self._content[-1][kind] += text
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _open(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._close()
        self._content.append(block)
        self._is_open = True
        yield {
            "type": "content_block_start",
            "index": len(self._content) - 1,
            "content_block": dict(block),
        }

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self._content) - 1, "delta": delta}

    def _close(self) -> Iterator[Event]:
        if self._is_open:
            self._is_open = False
            yield {"type": "content_block_stop", "index": len(self._content) - 1}

    def _finish(self, found: Finished) -> Iterator[Event]:
        answer = found.answer
        stop = answer.stream.stop if answer.stream else ""
        reason = _STOPS.get(found.finish, "stop_sequence" if stop else "end_turn")
        usage = _usage(answer.prompt_tokens, answer.reused_tokens, answer.tokens)
        ended = {"stop_reason": reason, "stop_sequence": stop or None}
        self.whole |= {**ended, "usage": usage, "p2pinfer": account_of(found)}
        yield {"type": "message_delta", "delta": ended, "usage": usage}
        yield {"type": "message_stop", "p2pinfer": account_of(found)}


def _usage(prompt: int, reused: int, made: int) -> dict[str, int]:
    return {
        "input_tokens": prompt - reused,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": reused,
        "output_tokens": made,
    }
