"""Tools and thoughts through the gateway: a scripted stand-in speaks for a model that can."""

import json
from typing import Any

import pytest
from trio.testing import MockClock

from p2pinfer.client.harmony import NO_THOUGHTS
from p2pinfer.engine import template
from tests.client.test_harmony import CALL as HARMONY_CALL
from tests.client.test_harmony import TEMPLATE as HARMONY
from tests.client.test_harmony import THOUGHT, WORDS
from tests.support.fake_gateway import Call, fake_gateway, http

TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'
TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }} {% endfor %}{% for m in messages %}{{ m.role }}: "
    "{{ m.content }} {% for c in m.tool_calls or [] %}{{ c.function.arguments.at }} {% endfor %}"
    "{% endfor %}assistant: {% if enable_thinking is not defined or enable_thinking %}"
    "{{ '<think>' }}{% endif %}"
)


pytestmark = pytest.mark.usefixtures("prompts")


def body(**more: Any) -> dict[str, Any]:
    """Ask with a tool."""
    said = [{"role": "user", "content": "Look."}]
    return {"model": "default", "messages": said, "tools": [TOOL], "max_tokens": 99, **more}


async def asked(script: str, source: str = TEMPLATE, **more: Any) -> tuple[dict[str, Any], Any]:
    """Ask whole and streamed; returns the message, and what the pieces add up to."""
    path = "/v1/chat/completions"
    async with fake_gateway(chat_template=source) as (_, client, app), http(app) as ask:
        client.made.ends.script[:] = [script, script]
        reply = await ask.post(path, json=body(**more))
        assert reply.status_code == 200, reply.text
        call = Call(path, body(**more, stream=True))
        await call.run(app)
    (choice,) = reply.json()["choices"]
    streamed: dict[str, Any] = {"content": "", "finish_reason": None}
    for event in call.events:
        (part,) = event["choices"]
        assert streamed["finish_reason"] is None or part["delta"] == {}
        streamed["finish_reason"] = part["finish_reason"] or streamed["finish_reason"]
        for name, value in part["delta"].items():
            if name in {"content", "reasoning_content"}:
                streamed[name] = streamed.get(name, "") + value
            elif name == "tool_calls":
                (piece,) = value
                calls = streamed.setdefault(name, [])
                if piece["index"] == len(calls):
                    assert piece["function"]["arguments"] == ""
                    calls.append(piece)
                else:
                    assert piece.keys() == {"index", "function"}
                    said = calls[piece["index"]]["function"]
                    said["arguments"] += piece["function"]["arguments"]
                    streamed["pieces"] = streamed.get("pieces", 0) + 1
    message = {**choice["message"], "finish_reason": choice["finish_reason"]}
    return message, streamed


async def test_calls_come_apart_from_words(autojump_clock: MockClock) -> None:
    """Whole and streamed alike, with why the answer ended."""
    message, streamed = await asked(f"Hm.</think>Well. {CALL}\n{CALL}")
    for found in (message, streamed):
        assert found["reasoning_content"] == "Hm."
        assert found["content"] == "Well."
        assert found["finish_reason"] == "tool_calls"
        assert [json.loads(c["function"]["arguments"]) for c in found["tool_calls"]] == [
            {"at": "é"}
        ] * 2
        assert {c["function"]["name"] for c in found["tool_calls"]} == {"look"}
        ids = {c["id"] for c in found["tool_calls"]}
        assert len(ids) == 2
        assert all(len(each) == 9 and each.isalnum() for each in ids)
    assert [call["index"] for call in streamed["tool_calls"]] == [0, 1]
    assert streamed["pieces"] > 4
    for call, whole in zip(streamed["tool_calls"], message["tool_calls"], strict=True):
        assert call["function"] == whole["function"]


async def test_call_that_is_cut_short_is_told_as_far_as_it_goes(autojump_clock: MockClock) -> None:
    """And that it was cut, whole and streamed."""
    message, streamed = await asked(f"</think>{CALL}", max_tokens=20)
    for found in (message, streamed):
        assert found["finish_reason"] == "length"
        (call,) = found["tool_calls"]
        assert call["function"]["name"] == "look"
        assert '{"at": "é"}'.startswith(call["function"]["arguments"])


async def test_only_calls_have_no_content(autojump_clock: MockClock) -> None:
    """As OpenAI has it."""
    message, streamed = await asked(f"</think>{CALL}")
    assert message["content"] is None
    assert streamed["content"] == ""
    message, streamed = await asked("</think>Nothing there.")
    assert "tool_calls" not in message
    assert (message["content"], message["finish_reason"]) == ("Nothing there.", "stop")
    assert streamed["content"] == "Nothing there."


async def test_thinking_is_switched_off_by_request(
    autojump_clock: MockClock, prompts: list[str]
) -> None:
    """Where the template knows how, and where it opens thoughts whatever it is told."""
    message, _ = await asked("Yes.", chat_template_kwargs={"enable_thinking": False}, tools=None)
    assert message["content"] == "Yes."
    assert "reasoning_content" not in message
    assert prompts[-1].endswith("assistant: ")
    always = "{{ messages[0].content }}{{ '<think>\\n' }}"
    message, _ = await asked("Yes.", always, think=False, tools=None)
    assert message["content"] == "Yes."
    message, _ = await asked("Hm.", always, tools=None)
    assert (message["content"], message["reasoning_content"]) == ("", "Hm.")


@pytest.mark.parametrize(
    "more",
    [{"thinking": {"type": "disabled"}}, {"reasoning": {"enabled": False, "exclude": True}},
     {"reasoning": {"effort": "none"}}, {"reasoning_effort": "none"}],
)  # fmt: skip
async def test_thinking_is_switched_off_in_others_words(
    more: dict[str, Any], autojump_clock: MockClock, prompts: list[str]
) -> None:
    """Of DeepSeek, OpenRouter and OpenAI; what is not understood is refused by name."""
    message, _ = await asked("Yes.", tools=None, **more)
    assert message["content"] == "Yes."
    (name,) = more
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        for wrong in ({"effort": 3}, {"tpye": "x"}, "low", {"type": "sometimes"}):
            reply = await ask.post("/v1/chat/completions", json=body(**{name: wrong}))
            assert reply.status_code == (200 if wrong == "low" and "effort" in name else 400)


async def test_model_calls_among_allowed_tools(
    autojump_clock: MockClock, prompts: list[str]
) -> None:
    """In OpenAI's words; what names none of the tools is refused."""
    other = {"function": {"name": "other", "parameters": {}}}
    named = [{"type": "function", "function": {"name": "look"}}]
    async with fake_gateway(chat_template=TEMPLATE) as (_, client, app), http(app) as ask:
        for allowed, wanted in (
            ({"mode": "required", "tools": named}, 200),
            ({"mode": "required", "tools": []}, 400),
            ({"mode": "auto", "tools": [{"function": {"name": "fly"}}]}, 400),
        ):
            client.made.ends.script[:] = ["Hi"]
            choice = {"type": "allowed_tools", "allowed_tools": allowed}
            asked_so = body(tools=[TOOL, other], tool_choice=choice)
            reply = await ask.post("/v1/chat/completions", json=asked_so)
            assert reply.status_code == wanted, reply.text
        (started,) = client.made.ends.started
    assert "start: calls" in started.grammar or "start: thoughts" in started.grammar
    assert "look" in started.grammar
    assert "other" not in started.grammar


async def test_same_seed_gives_the_same_tokens(autojump_clock: MockClock) -> None:
    """Whole and streamed, with tools and without, and in every other choice's company."""
    async with fake_gateway(chat_template="x {{ tools and 1 }}") as (_, _client, app):
        for tools in (None, [TOOL]):
            asked_so = body(tools=tools, temperature=1.5, seed=7, max_tokens=20)
            texts = []
            for more in ({}, {"stream": True}, {}, {"n": 2}):
                call = Call("/v1/chat/completions", {**asked_so, **more})
                await call.run(app)
                if "stream" in more:
                    deltas = [each["choices"][0]["delta"] for each in call.events]
                    texts.append("".join(each.get("content", "") for each in deltas))
                else:
                    choices = json.loads(call.body)["choices"]
                    texts.append(choices[0]["message"]["content"])
            assert len(set(texts)) == 1
            assert len({choice["message"]["content"] for choice in choices}) == 2


async def test_template_reads_tools_and_what_they_gave(
    autojump_clock: MockClock, prompts: list[str]
) -> None:
    """As objects; one that knows no tools is told all in words."""
    function = {"name": "look", "arguments": '{"at": "x"}'}
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "Dark."},
    ]
    await asked("</think>So.", messages=said)
    assert prompts[-1].startswith('{"type": "function"')
    assert "user: Look. assistant:  x tool: Dark. assistant:" in prompts[-1]
    await asked(
        "So.", "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}", messages=said
    )
    assert "# Tools" in prompts[-1]
    assert '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}' in prompts[-1]
    assert "user: <tool_response>\nDark." in prompts[-1]


async def test_what_must_be_called_is_held_to(autojump_clock: MockClock) -> None:
    """And what may be, once it has begun; nothing without tools."""
    async with fake_gateway(chat_template="x {{ tools }}") as (_, client, app), http(app) as ask:
        started = client.made.ends.started
        for choice, wanted in (("required", "start: calls"), ("auto", "mark[lazy]"), ("none", "")):
            client.made.ends.script[:] = ["Hi"]
            reply = await ask.post("/v1/chat/completions", json=body(tool_choice=choice))
            assert reply.status_code == 200
            assert wanted in started[-1].grammar
            assert bool(wanted) == bool(started[-1].grammar)


async def test_schema_that_cannot_be_held_to_leaves_its_tool_callable(
    autojump_clock: MockClock,
) -> None:
    """With any arguments, and the others with theirs; a strict one is refused by name."""
    odd = {"name": "odd", "parameters": {"type": "object", "pattern": "bad"}}
    fine = {"name": "fine", "parameters": {"type": "object", "title": "fine"}}
    tools = [{"function": odd}, {"function": fine}]
    async with fake_gateway() as (_, client, app), http(app) as ask:
        reply = await ask.post("/v1/chat/completions", json=body(tools=tools))
        assert reply.status_code == 200
        grammar = client.made.ends.started[-1].grammar
        assert "odd" in grammar
        assert "bad" not in grammar
        assert '"title": "fine"' in grammar
        strict = [{"function": {**odd, "strict": True}}]
        reply = await ask.post("/v1/chat/completions", json=body(tools=strict))
    assert reply.status_code == 400
    assert "tool odd: the grammar or schema cannot be kept to" in reply.json()["error"]["message"]


async def test_unknown_names_are_told_in_a_header(autojump_clock: MockClock) -> None:
    """They changed nothing, and their sender can see it."""
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        reply = await ask.post("/v1/chat/completions", json=body(vendor_hint=1, other_hint=2))
        assert reply.headers["x-p2pinfer-ignored"] == "vendor_hint, other_hint"
        reply = await ask.post("/v1/chat/completions", json=body(cache_prompt=True))
        assert "x-p2pinfer-ignored" not in reply.headers


async def test_special_tokens_in_tools_are_text(prompts: list[str]) -> None:
    """Nobody's description becomes somebody's turn."""
    compiled = template._Compiled("{{ tools | tojson }}{{ '<|x|>' }}", "", "", ["<|x|>"])
    tools = [{"<|x|>": ["a <|x|>"]}]
    text, literal = compiled.render(
        [{"role": "user", "content": "x"}], 0, parse_special=False, tools=tools
    )
    assert text == '[{"<|x|>": ["a <|x|>"]}]<|x|>'
    assert literal == [3, 15]


async def test_arguments_are_text_where_the_template_wants_text() -> None:
    """DeepSeek's joins them to its own."""
    source = "{{ 'A' + messages[1].tool_calls[0].function.arguments }}"
    call = {"function": {"name": "f", "arguments": '{"x": 1}'}}
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    text, _ = template._Compiled(source, "", "", []).render(said, 0, parse_special=False)
    assert text == 'A{"x": 1}'


async def test_answer_goes_on_from_the_assistants_words(
    autojump_clock: MockClock, prompts: list[str]
) -> None:
    """Its last message is no turn of its own, and nothing is thought before it goes on."""
    said = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": "I see <think>"}]
    message, streamed = await asked(
        " a tree.",
        messages=said,
        tools=[],
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert message["content"] == streamed["content"] == " a tree."
    assert "I see" not in "".join(prompts)
    async with fake_gateway(chat_template=TEMPLATE) as (gateway, client, app), http(app) as ask:
        client.made.ends.script[:] = ["x"]
        reply = await ask.post(
            "/v1/chat/completions",
            json=body(messages=said, tools=[], continue_final_message=True),
        )
        rendered = await gateway.swarm.render(said[:1])
        whole = await gateway.swarm.begun(rendered, "I see <think>")
        assert whole.text == "user: Look. assistant: <think>\n\n</think>\n\nI see <think>"
        tokens = await gateway.swarm.tokenize(whole.text, whole.literal)
        assert reply.json()["usage"]["prompt_tokens"] == len(tokens)
        client.made.ends.script[:] = ["x"]
        prefixed = [said[0], {**said[1], "prefix": True}]
        other = await ask.post("/v1/chat/completions", json=body(messages=prefixed, tools=[]))
        assert other.json()["usage"]["prompt_tokens"] == len(tokens)
        for wrong in (
            {"messages": said[:1]},
            {"add_generation_prompt": True},
            {"messages": said[1:]},
        ):
            asked_so = body(**{"messages": said, "continue_final_message": True, **wrong})
            assert (await ask.post("/v1/chat/completions", json=asked_so)).status_code == 400


async def test_channels_are_heard_and_held_to(
    autojump_clock: MockClock, prompts: list[str]
) -> None:
    """Of gpt-oss: thoughts and calls apart from words; an empty thought switches them off."""
    message, streamed = await asked(f"{THOUGHT}{HARMONY_CALL}", HARMONY)
    for found in (message, streamed):
        assert found["reasoning_content"] == "Hm <b>."
        assert found["finish_reason"] == "tool_calls"
        (call,) = found["tool_calls"]
        assert call["function"] == {"name": "look", "arguments": '{"at": 3}'}
    message, _ = await asked(WORDS, HARMONY, tools=None)
    assert message["content"] == "It is dark."
    async with fake_gateway(chat_template=HARMONY) as (gateway, client, app), http(app) as ask:
        started = client.made.ends.started
        url = "/v1/chat/completions"
        shape = {"type": "json_schema", "json_schema": {"schema": {"title": "shape"}}}
        for more, wanted in (
            ({"tool_choice": "required"}, "(call)"),
            ({}, "(final | call)"),
            ({"tools": None, "response_format": shape}, "(final)"),
            ({"tools": None}, ""),
        ):
            client.made.ends.script[:] = ["Hi"]
            assert (await ask.post(url, json=body(**more))).status_code == 200
            assert wanted in started[-1].grammar
            assert bool(wanted) == bool(started[-1].grammar)
            assert ("title" in started[-1].grammar) == ("response_format" in more)
        said = body()["messages"]
        quiet = await gateway.swarm.render(said, options={"enable_thinking": False})
        assert quiet.text.endswith(f"<|start|>assistant{NO_THOUGHTS}")
        begun = await gateway.swarm.begun(await gateway.swarm.render(said), "It")
        assert begun.text.endswith("<|start|>assistant<|channel|>final<|message|>It")
        client.made.ends.script[:] = [" is dark."]
        said = [*said, {"role": "assistant", "content": "It"}]
        reply = await ask.post(url, json=body(messages=said, continue_final_message=True))
        assert reply.json()["choices"][0]["message"]["content"] == " is dark."
        assert "step" not in started[-1].grammar
