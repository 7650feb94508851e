"""Anthropic's interface and OpenAI's newer one, with a scripted stand-in for a model that can."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pinfer.api import responses
from p2pinfer.api.gateway import Access
from p2pinfer.api.messages import MessagesInterface, problem_body
from p2pinfer.api.problems import Problem
from p2pinfer.api.responses import ResponsesInterface, messages_of
from tests.support.fake_gateway import Call, fake_gateway, http

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'
SCRIPT = f"Hm.</think>Well. {CALL}"
TEMPLATE = (
    "{{ tools }}{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>' }}{% endif %}"
)
SCHEMA = {"type": "object", "properties": {}}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "messages": [{"role": "user", "content": "Look."}],
        "max_tokens": 99,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"name": "look", "input_schema": SCHEMA}],
    },
    "/v1/responses": {
        "input": "Look.",
        "tools": [{"type": "function", "name": "look", "parameters": SCHEMA}],
    },
    "/api/chat": {
        "messages": [{"role": "user", "content": "Look."}],
        "options": {"num_predict": 2},
    },
    "/api/generate": {"prompt": "Look.", "options": {"num_predict": 2}},
}


pytestmark = pytest.mark.usefixtures("prompts")


async def asked(path: str, script: str = SCRIPT, **more: Any) -> tuple[Any, list[Any]]:
    """Ask whole and streamed; returns the reply and the events."""
    body = {"model": "default", **ASKED[path], **more}
    async with fake_gateway(chat_template=TEMPLATE) as (_, client, app), http(app) as ask:
        client.made.ends.script[:] = [script, script]
        reply = await ask.post(path, json=body)
        assert reply.status_code == 200, reply.text
        call = Call(path, {**body, "stream": True})
        await call.run(app)
    assert call.status == 200
    for each in call.events:
        assert f"event: {each['type']}\n".encode() in call.body
    return reply.json(), call.events


async def test_message_is_made_of_blocks(autojump_clock: MockClock) -> None:
    """Thoughts, text and a tool's use; the stream's blocks are those of the whole."""
    whole, events = await asked("/v1/messages")
    thought, text, use = whole["content"]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assert text == {"type": "text", "text": "Well."}
    assert (use["type"], use["name"], use["input"]) == ("tool_use", "look", {"at": "é"})
    assert whole["stop_reason"] == "tool_use"
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
    assert events[0]["message"]["usage"]["input_tokens"] > 0
    built: list[Any] = []
    pieces = 0
    for each in events[1:-2]:
        assert each["index"] == len(built) - (each["type"] != "content_block_start")
        match each["type"]:
            case "content_block_start":
                built.append({**each["content_block"]})
            case "content_block_delta":
                delta = each["delta"]
                name = delta["type"].removesuffix("_delta")
                if name == "input_json":
                    built[-1]["input"] = (built[-1]["input"] or "") + delta["partial_json"]
                    pieces += 1
                else:
                    built[-1][name] += delta[name]
            case "content_block_stop" if built[-1]["type"] == "tool_use":
                built[-1]["input"] = json.loads(built[-1]["input"])
    assert pieces > 1
    assert [{**each, "id": 0} for each in built] == [{**each, "id": 0} for each in whole["content"]]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


async def test_message_goes_on_from_the_assistants_last_words(
    autojump_clock: MockClock, prompts: list[str]
) -> None:
    """Its text is what comes behind them; they count as the prompt's."""
    said = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": "It is"}]
    body = {"model": "default", "max_tokens": 9, "messages": said}
    async with fake_gateway(chat_template=TEMPLATE) as (_, client, app), http(app) as ask:
        client.made.ends.script[:] = [" dark."]
        counted = (await ask.post("/v1/messages/count_tokens", json=body)).json()
        whole = (await ask.post("/v1/messages", json=body)).json()
        assert whole["content"] == [{"type": "text", "text": " dark."}]
        assert counted["input_tokens"] == whole["usage"]["input_tokens"]
        use = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
        said[-1]["content"] = [use]  # type: ignore[assignment] # on purpose
        refused = await ask.post("/v1/messages", json=body)
        assert "words of the assistant alone" in refused.json()["error"]["message"]
    assert "assistant: It is" not in prompts[-1]


async def test_message_names_the_stop_sequence_that_came(autojump_clock: MockClock) -> None:
    """And has no thoughts unless they are asked for."""
    more = {"thinking": None, "tools": None, "stop_sequences": ["STOP"]}
    whole, _ = await asked("/v1/messages", "One. STOP two", **more)
    assert whole["content"] == [{"type": "text", "text": "One. "}]
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", "STOP")
    whole, _ = await asked("/v1/messages", "One.", **more)
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("end_turn", None)


async def test_response_has_items_and_events_in_order(autojump_clock: MockClock) -> None:
    """Each item is added, filled and done; the last event has the whole."""
    whole, events = await asked("/v1/responses")
    thought, message, call = whole["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert message["content"][0]["text"] == "Well."
    assert (call["name"], json.loads(call["arguments"])) == ("look", {"at": "é"})
    assert whole["status"] == "completed"
    usage = whole["usage"]
    thought = len("Hm.</think>") // 3 + 1  # the script's tokens are three characters each
    assert usage["output_tokens_details"] == {"reasoning_tokens": thought}
    assert usage["output_tokens"] > thought
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    kinds = [each["type"].removeprefix("response.") for each in events]
    order = [kind for at, kind in enumerate(kinds) if not at or kinds[at - 1] != kind]
    filled = ["output_item.added", "content_part.added"]
    done = ["content_part.done", "output_item.done"]
    pieces = [each["delta"] for each in events if "arguments.delta" in each["type"]]
    assert "".join(pieces) == call["arguments"]
    assert len(pieces) > 1
    arguments = [f"function_call_arguments.{end}" for end in ("delta", "done")]
    assert order == [
        "created", "in_progress",
        *filled, "reasoning_text.delta", "reasoning_text.done", *done,
        *filled, "output_text.delta", "output_text.done", *done,
        "output_item.added", *arguments, "output_item.done",
        "completed",
    ]  # fmt: skip
    assert events[0]["response"]["status"] == "in_progress"
    told = events[-1]["response"]["output"]
    assert [each["type"] for each in told] == ["reasoning", "message", "function_call"]


async def test_response_goes_on_from_one_before(
    autojump_clock: MockClock, prompts: list[str]
) -> None:
    """From what is kept; what is not kept is said to be missing."""
    async with fake_gateway(chat_template=TEMPLATE) as (_, client, app), http(app) as ask:
        client.made.ends.script[:] = [SCRIPT, "</think>So.", "</think>No."]
        body = {"model": "default", **ASKED["/v1/responses"], "instructions": "Be kind."}
        first = (await ask.post("/v1/responses", json=body)).json()
        call = first["output"][-1]["call_id"]
        given = {"type": "function_call_output", "call_id": call, "output": "Dark."}
        more = {"model": "default", "input": [given], "previous_response_id": first["id"]}
        second = await ask.post("/v1/responses", json={**more, "store": False})
        assert second.json()["output"][-1]["content"][0]["text"] == "So."
        assert "user: Look. assistant: Well. tool: Dark." in prompts[-1]
        assert "Be kind." not in prompts[-1]
        more["previous_response_id"] = second.json()["id"]
        third = await ask.post("/v1/responses", json=more)
        assert third.status_code == 400
        assert third.json()["error"]["code"] == "previous_response_not_found"


def test_kept_conversations_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their number and by their size."""
    kept = ResponsesInterface()
    monkeypatch.setattr(responses, "KEPT_MAX", 2)
    for name in ("a", "b", "c"):
        kept.keep(name, [{"role": "user", "content": name}])
    with pytest.raises(Problem, match="not found"):
        kept.chat_body({"input": "x", "previous_response_id": "a"})
    assert len(kept.chat_body({"input": "x", "previous_response_id": "c"})["messages"]) == 2
    monkeypatch.setattr(responses, "KEPT_CHARS_MAX", 100)
    kept.keep("d", [{"role": "user", "content": "x" * 200}])
    assert kept._chars == 0


def test_what_the_assistant_does_in_a_turn_is_one_message() -> None:
    """As templates want it."""
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "Well."}]}
    found = messages_of([thought, said, call, call, {"role": "user", "content": "x"}])
    assert [each["role"] for each in found] == ["assistant", "user"]
    assert found[0]["content"] == "Well."
    assert found[0]["reasoning_content"] == "Hm."
    assert len(found[0]["tool_calls"]) == 2


def test_results_of_tools_become_messages() -> None:
    """With the user's words behind them, and errors marked."""
    use = {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}
    result = {"type": "tool_result", "tool_use_id": "1", "is_error": True, "content": "no"}
    said = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result, {"type": "text", "text": "b"}]},
    ]
    found = MessagesInterface().counted_body({"messages": said, "system": "S"})["messages"]
    assert [each["role"] for each in found] == ["system", "user", "assistant", "tool", "user"]
    assert found[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert found[3]["content"] == "Error: no"


async def test_tokens_are_counted_without_an_answer(autojump_clock: MockClock) -> None:
    """As many as the prompt has."""
    body = {"model": "default", **ASKED["/v1/messages"]}
    async with fake_gateway(chat_template=TEMPLATE) as (_, client, app), http(app) as ask:
        counted = await ask.post("/v1/messages/count_tokens", json=body)
        assert client.opened == 0
        usage = (await ask.post("/v1/messages", json=body)).json()["usage"]
    assert counted.json() == {"input_tokens": usage["input_tokens"]}


async def test_errors_have_the_shape_of_the_interface(autojump_clock: MockClock) -> None:
    """Of the guard's too; the key may come as Anthropic's clients send it."""
    body = {"model": "default", **ASKED["/v1/messages"]}
    async with fake_gateway(Access("secret")) as (_, _client, app), http(app) as ask:
        reply = await ask.post("/v1/messages", json=body, headers={"x-api-key": "wrong"})
        assert (reply.status_code, reply.json()["type"]) == (401, "error")
        assert reply.json()["error"]["type"] == "authentication_error"
        key = {"x-api-key": "secret"}
        reply = await ask.post("/v1/messages", json={**body, "model": "gpt"}, headers=key)
        assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")
        said = {"messages": [{"role": "user", "content": "x " * 300}]}
        reply = await ask.post("/v1/messages", json={**body, **said}, headers=key)
        assert reply.json()["error"]["message"].startswith("prompt is too long")
        reply = await ask.post("/v1/embeddings", json={"input": "x"}, headers=key)
        assert "makes no embeddings" in reply.json()["error"]["message"]
    assert problem_body(Problem(503, "x"))["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize(
    ("path", "more", "named"),
    [
        ("/v1/messages", {"max_tokens": None}, "max_tokens"),
        ("/v1/messages", {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ("/v1/messages", {"tools": [{"type": []}]}, "tools[0]"),
        ("/v1/messages", {"messages": [{"role": []}]}, "messages[0].role"),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": [{"type": {}}]}]},
            "messages[0].content[0].type",
        ),
        ("/v1/responses", {"input": [{"role": {}, "content": "x"}]}, "input"),
        ("/v1/responses", {"input": [{"type": []}]}, "input[0].type"),
        ("/v1/messages", {"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ("/v1/messages", {"stop_sequences": 3}, "stop_sequences"),
        ("/v1/messages", {"temperatur": 1}, "temperatur"),
        ("/v1/responses", {"background": True}, "background"),
        ("/v1/responses", {"max_tokens": 3}, "max_tokens"),
        ("/v1/responses", {"instruction": "Be kind."}, "instruction"),
        ("/v1/responses", {"tools": [{"name": "web_search"}]}, "tools[0]"),
        ("/v1/responses", {"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ("/v1/responses", {"max_output_tokens": "x"}, "max_output_tokens"),
        ("/v1/responses", {"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    path: str, more: Mapping[str, Any], named: str, autojump_clock: MockClock
) -> None:
    """In the interface's own words; a name that nobody knows is ignored."""
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        body = {"model": "default", **ASKED[path], **more}
        reply = await ask.post(path, json=body)
        assert reply.status_code == 400
        assert f"'{named}'" in reply.json()["error"]["message"]
        fine = {"model": "default", **ASKED[path], "vendor_hint": 1}
        reply = await ask.post(path, json=fine)
        assert (reply.status_code, reply.headers["x-p2pinfer-ignored"]) == (200, "vendor_hint")


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (
            "/v1/responses",
            {
                "tools": [
                    {"type": "web_search", "external_web_access": True},
                    {"type": "namespace", "name": "agents", "tools": []},
                    *ASKED["/v1/responses"]["tools"],
                ],
                "include": ["reasoning.encrypted_content"],
            },
        ),
        (
            "/v1/messages",
            {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        ),
    ],
    ids=["Codex", "Claude Code"],
)
async def test_what_agents_always_send_is_taken(
    path: str, more: Mapping[str, Any], autojump_clock: MockClock, prompts: list[str]
) -> None:
    """The model is told of the client's own tools alone, and calls them."""
    whole, _ = await asked(path, **more)
    assert "look" in json.dumps(whole)
    assert "web_search" not in prompts[0]
    assert "agents" not in prompts[0]


WORDS = st.sampled_from(
    ["type", "role", "user", "assistant", "content", "text", "tool_use", "tool_result", "id",
     "name", "input", "message", "function_call", "function_call_output", "call_id", "output",
     "reasoning", "function", "input_schema", "json_schema", "format", "effort", "enabled"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["messages", "system", "tools", "tool_choice", "thinking", "output_config", "stop_sequences",
     "input", "instructions", "text", "reasoning", "include", "previous_response_id", "metadata",
     "temperature", "top_p", "stream", "parallel_tool_calls", "store", "context_management",
     "prompt", "format", "think", "options", "raw", "suffix", "keep_alive"]
)  # fmt: skip
PATHS = st.sampled_from(
    ["/v1/messages", "/v1/messages/count_tokens", "/v1/responses", "/api/chat", "/api/generate"]
)


def check(path: str, changes: Mapping[str, Any]) -> None:
    """Ask once; a 4xx has a sentence, and there is no 5xx."""

    async def ask_it() -> None:
        async with fake_gateway() as (_, _client, app), http(app) as ask:
            base = ASKED[path.removesuffix("/count_tokens")]
            body = {"model": "default", "max_output_tokens": 2, **base, "max_tokens": 2, **changes}
            reply = await ask.post(path, content=json.dumps(body))
            assert reply.status_code < 500, reply.text
            if reply.status_code >= 400:
                error = reply.json()["error"]
                assert error if path.startswith("/api/") else error["message"]

    trio.run(ask_it, clock=trio.testing.MockClock(autojump_threshold=0))


CHANGES = st.dictionaries(NAMES, JSON, min_size=1, max_size=3)


@settings(max_examples=150)
@given(PATHS, CHANGES)
def test_no_request_is_the_gateways_own_mistake(path: str, changes: Any) -> None:
    """A 4xx with a sentence, or an answer."""
    check(path, changes)


@pytest.mark.long
@settings(max_examples=10_000)
@given(PATHS, CHANGES)
def test_none_of_ten_thousand_is_either(path: str, changes: Any) -> None:
    """As above."""
    check(path, changes)
