"""OpenAI's Responses interface in a chat's words, and answers in its own."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from p2pinfer.api.gateway import CallOpens, CallPiece, Calls, Finished, Part, Said, Thinks
from p2pinfer.api.parameter_names import check_names
from p2pinfer.api.problems import Problem, invalid, missing
from p2pinfer.api.replies import account_of, call_id
from p2pinfer.api.streams import event
from p2pinfer.api.translation import SAMPLING, Event, ServerEvents, is_whole, text_of

KEPT_MAX = 256
"""Conversations that ``previous_response_id`` can go on from; the oldest make room."""

KEPT_CHARS_MAX = 16 * 1024 * 1024
"""All of them together, counting a message once for each conversation that it is in."""

_SAME = ("model", "stream", "parallel_tool_calls", *SAMPLING)

_KNOWN = {
    *_SAME,
    "client_metadata",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "metadata",
    "previous_response_id",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "stream_options",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "truncation",
    "user",
}

_ONLY_NOTHING: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "logit_bias": ({},),
    "max_completion_tokens": (),
    "max_tokens": (),
    "max_tool_calls": (),
    "messages": ([],),
    "moderation": (),
    "n": (1,),
    "prompt": (),
    "response_format": ({"type": "text"},),
    "stop": ([],),
}

_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}

_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")

Messages = list[dict[str, Any]]


class ResponsesInterface(ServerEvents):
    """``/v1/responses``; it keeps the conversations that may be gone on with."""

    prefix, names = "resp_", MappingProxyType(_NAMES)

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Messages, int]] = OrderedDict()
        self._chars = 0

    def check(self, body: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of parameters that nobody knows; raises Problem."""
        return check_names(body, _KNOWN, _ONLY_NOTHING)

    def failed(self, problem: Problem) -> bytes:
        """Say in the middle of a stream that no more comes."""
        told = {"type": "error", "code": problem.code, "message": problem.message, "param": None}
        return event({**told, "error": problem.body["error"]}, "error")

    def chat_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a chat request that asks the same; raises Problem."""
        chat = {name: body[name] for name in _SAME if name in body}
        if (most := body.get("max_output_tokens")) is not None:
            chat["max_tokens"] = most
        if (told := body.get("instructions")) is not None and not isinstance(told, str):
            raise invalid("instructions", "must be a text")
        system = [{"role": "system", "content": told}] if told else []
        chat["messages"] = [*system, *self._conversation(body)]
        return {**chat, **_tools(body), **_shape(body), **_reasoning(body), **_logprobs(body)}

    def writer(self, head: Mapping[str, Any], body: Mapping[str, Any]) -> "ResponseWriter":
        """Return what writes the reply; a finished one is kept unless ``store`` is false."""
        is_kept = body.get("store") is not False
        said = self._conversation(body)

        def keep(output: list[dict[str, Any]]) -> None:
            if is_kept:
                self.keep(head["id"], [*said, *messages_of(output)])

        return ResponseWriter(head, body, keep)

    def keep(self, name: str, messages: Messages) -> None:
        """Keep a conversation; the oldest make room."""
        size = sum(len(str(each)) for each in messages)
        self._kept[name], self._chars = (messages, size), self._chars + size
        while self._kept and (len(self._kept) > KEPT_MAX or self._chars > KEPT_CHARS_MAX):
            _, (_, gone) = self._kept.popitem(last=False)
            self._chars -= gone

    def _conversation(self, body: Mapping[str, Any]) -> Messages:
        before = body.get("previous_response_id")
        said: Messages = []
        if before is not None:
            if not isinstance(before, str) or before not in self._kept:
                text = "Previous response not found: it was not kept, or made room for newer ones."
                name = "previous_response_id"
                raise Problem(400, text, "previous_response_not_found", name)
            self._kept.move_to_end(before)
            said = self._kept[before][0]
        given = body.get("input")
        if given is None:
            raise missing("input")
        if isinstance(given, str):
            return [*said, {"role": "user", "content": given}]
        if not isinstance(given, list) or not given:
            raise invalid("input", "must be a text or a list of items")
        return [*said, *messages_of(given)]


def messages_of(items: list[Any]) -> Messages:
    """Return items as messages: all that the assistant does in a turn is one; raises Problem."""
    found: Messages = []
    is_turn = False
    for at, item in enumerate(items):
        where = f"input[{at}]"
        if not isinstance(item, dict):
            raise invalid(where, "must be an object")
        kind = item.get("type", "message")
        role = item.get("role")
        if kind in ("function_call", "reasoning") or (kind == "message" and role == "assistant"):
            if not is_turn or (kind != "function_call" and found[-1].get("tool_calls")):
                found.append({"role": "assistant", "content": ""})
                is_turn = True
            _add(found[-1], kind, item, where)
            continue
        is_turn = False
        if kind == "message":
            content = text_of(item.get("content"), f"{where}.content", _TEXTS)
            found.append({"role": role, "content": content})
        elif kind == "function_call_output":
            given = text_of(item.get("output"), f"{where}.output", _TEXTS)
            known = item.get("call_id")
            found.append({"role": "tool", "tool_call_id": known, "content": given})
        else:
            raise invalid(f"{where}.type", "is of a kind that the model cannot read here")
    return found


def _add(turn: dict[str, Any], kind: Any, item: Mapping[str, Any], where: str) -> None:
    if kind == "message":
        text = text_of(item.get("content"), f"{where}.content", _TEXTS)
        turn["content"] = f"{turn['content']}\n{text}" if turn["content"] else text
    elif kind == "reasoning":
        content = item.get("content") or item.get("summary") or []
        if text := text_of(content, f"{where}.content", _TEXTS):
            turn["reasoning_content"] = text
    else:
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    listed, choice = body.get("tools"), body.get("tool_choice")
    found: dict[str, Any] = {}
    if listed is not None:
        if not isinstance(listed, list):
            raise invalid("tools", "must be a list of tools")
        # Codex always offers a search that runs at OpenAI's, and tools in namespaces: the model is
        # told of neither, so it calls neither. To ask for one by ``tool_choice`` is refused.
        told = [_tool(each, f"tools[{at}]") for at, each in enumerate(listed)]
        found["tools"] = [tool for tool in told if tool]
    if isinstance(choice, dict) and choice.get("type") != "function":
        raise invalid("tool_choice", "must be auto, none, required, or name a function")
    if choice is not None:
        found["tool_choice"] = choice
    return found


def _tool(value: Any, where: str) -> dict[str, Any] | None:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise invalid(where, "must be an object with a type")
    if value["type"] != "function":
        return None
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {n: value[n] for n in names if n in value}}


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise invalid(name, "must be an object")
    return value or {}


def _shape(body: Mapping[str, Any]) -> dict[str, Any]:
    wanted = _object(body, "text").get("format")
    if not isinstance(wanted, dict):
        return {} if wanted is None else {"response_format": wanted}
    if wanted.get("type") != "json_schema":
        return {"response_format": wanted}
    told = {name: wanted[name] for name in ("name", "schema", "strict") if name in wanted}
    return {"response_format": {"type": "json_schema", "json_schema": told}}


def _reasoning(body: Mapping[str, Any]) -> dict[str, Any]:
    effort = _object(body, "reasoning").get("effort")
    return {} if effort is None else {"reasoning_effort": effort}


def _logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    include, top = body.get("include"), body.get("top_logprobs")
    if include is not None and not isinstance(include, list):
        raise invalid("include", "must be a list of texts")
    if top or "message.output_text.logprobs" in (include or []):
        raise Problem(
            400,
            "Unsupported parameter: 'top_logprobs' is supported by /v1/chat/completions alone.",
            "unsupported_parameter",
            "top_logprobs",
        )
    return {}


_ARGUMENTS = "response.function_call_arguments"


class ResponseWriter:
    """Writes an answer as items, with the events of OpenAI's order."""

    def __init__(self, head: Mapping[str, Any], body: Mapping[str, Any], keep: Any) -> None:
        self._id, self._keep = head["id"], keep
        self._output: list[dict[str, Any]] = []
        self._is_open, self._number = False, 0
        self.whole: Event = {
            "id": head["id"],
            "object": "response",
            "created_at": head["created"],
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "model": head["model"],
            "output": self._output,
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "previous_response_id": body.get("previous_response_id"),
            "reasoning": body.get("reasoning"),
            "store": body.get("store") is not False,
            "temperature": body.get("temperature"),
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "top_p": body.get("top_p"),
            "usage": None,
        }

    def begin(self, _prompt_tokens: int, _reused_tokens: int) -> Iterator[Event]:
        """Yield what comes before an answer's first part."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response={**self.whole, "output": []})

    def take(self, part: Part) -> Iterator[Event]:
        """Yield what a part adds."""
        match part:
            case Thinks(_, text):
                yield from self._add("reasoning", text)
            case Said(_, text):
                yield from self._add("message", text)
            case CallOpens(choice, number, name):
                known = call_id(self._id, choice, number)
                item = {"type": "function_call", "call_id": known, "name": name}
                yield from self._open({**item, "arguments": ""}, "fc")
            case CallPiece(_, _, text):
                self._output[-1]["arguments"] += text
                yield self._event(f"{_ARGUMENTS}.delta", delta=text, **self._place())
            case Calls(_, _, call):
                whole = {"arguments": call.arguments, "name": call.name}
                yield self._event(f"{_ARGUMENTS}.done", **whole, **self._place())
                yield from self._close("completed" if is_whole(call.arguments) else "incomplete")
            case Finished():
                yield from self._close()
                yield self._finish(part)

    def _event(self, kind: str, **more: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **more}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _add(self, kind: str, text: str) -> Iterator[Event]:
        is_thought = kind == "reasoning"
        if not self._is_open or self._output[-1]["type"] != kind:
            more: dict[str, Any] = {"summary": []} if is_thought else {"role": "assistant"}
            yield from self._open(
                {"type": kind, **more, "content": []}, "rs" if is_thought else "msg"
            )
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
            if not is_thought:
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            added = {"part": dict(part), "content_index": 0, **self._place()}
            yield self._event("response.content_part.added", **added)
            self._output[-1]["content"] = [part]
        self._output[-1]["content"][0]["text"] += text
        scored: dict[str, Any] = {} if is_thought else {"logprobs": []}
        place = {"content_index": 0, **self._place()}
        yield self._event(f"{_text_event(kind)}.delta", delta=text, **scored, **place)

    def _open(self, item: dict[str, Any], prefix: str) -> Iterator[Event]:
        yield from self._close()
        name = f"{prefix}_{self._id.partition('_')[2]}{len(self._output)}"
        self._output.append({"id": name, **item, "status": "in_progress"})
        self._is_open = True
        place = {"output_index": len(self._output) - 1}
        yield self._event("response.output_item.added", item=dict(self._output[-1]), **place)

    def _close(self, status: str = "completed") -> Iterator[Event]:
        if not self._is_open:
            return
        self._is_open = False
        item = self._output[-1]
        item["status"] = status
        if item["type"] != "function_call":
            part = item["content"][0]
            place = {"content_index": 0, **self._place()}
            scored: dict[str, Any] = {} if item["type"] == "reasoning" else {"logprobs": []}
            kind = _text_event(item["type"])
            yield self._event(f"{kind}.done", text=part["text"], **scored, **place)
            yield self._event("response.content_part.done", part=part, **place)
        place = {"output_index": len(self._output) - 1}
        yield self._event("response.output_item.done", item=item, **place)

    def _finish(self, found: Finished) -> Event:
        answer, is_cut = found.answer, found.finish == "length"
        status = "incomplete" if is_cut else "completed"
        self.whole |= {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "usage": {
                "input_tokens": answer.prompt_tokens,
                "input_tokens_details": {"cached_tokens": answer.reused_tokens},
                "output_tokens": answer.tokens,
                "output_tokens_details": {"reasoning_tokens": found.thought_tokens},
                "total_tokens": answer.prompt_tokens + answer.tokens,
            },
            "p2pinfer": account_of(found),
        }
        self._keep(self._output)
        return self._event(f"response.{status}", response=self.whole)


def _text_event(kind: str) -> str:
    return "response.reasoning_text" if kind == "reasoning" else "response.output_text"
