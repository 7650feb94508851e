"""Whatever a client sends, it gets an answer or a sentence that says why not."""

import json
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.api import tool_parameters
from p2pinfer.api.parameter_names import CHAT_NAMES, ONLY_NOTHING
from tests.support.fake_gateway import fake_gateway, http

NAMES = sorted(
    {*CHAT_NAMES, *ONLY_NOTHING} - {"model", "max_tokens", "max_completion_tokens", "n_predict"}
)

WORDS = st.sampled_from(
    ["function", "type", "name", "parameters", "object", "json_schema", "json_object", "schema",
     "strict", "role", "tool", "user", "assistant", "content", "tool_calls", "tool_call_id", "id",
     "arguments", "auto", "required", "look", "text", "string", "properties", "$ref", "enum", "{"]
)  # fmt: skip

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)

FUNCTION = st.fixed_dictionaries(
    {"name": WORDS | JSON}, optional={"parameters": JSON, "description": JSON, "strict": JSON}
)
TOOLS = st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTION}), max_size=3
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text() | JSON,
            "function": st.fixed_dictionaries({"name": WORDS, "arguments": JSON}),
        }
    ),
    max_size=2,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": st.text() | JSON},
    optional={"tool_calls": CALLS | JSON, "tool_call_id": st.text(), "reasoning_content": JSON},
)

BODY = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, min_size=1, max_size=3)},
    optional={
        "tools": TOOLS,
        "response_format": st.fixed_dictionaries(
            {"type": st.sampled_from(["json_object", "json_schema"]), "schema": JSON}
        ),
    },
)
CHANGES = st.dictionaries(st.sampled_from(NAMES) | st.text(), JSON, max_size=2)


TEXT = st.fixed_dictionaries(
    {"prompt": st.text() | st.lists(st.integers() | st.text(), max_size=3) | JSON},
    optional={"suffix": JSON, "echo": JSON, "logprobs": JSON, "stop": JSON},
)


def check(path: str, body: Any, changes: Any) -> None:
    """Ask once; a 4xx has a sentence, and there is no 5xx."""

    async def ask_it() -> None:
        async with fake_gateway() as (_, _client, app), http(app) as ask:
            whole = {"model": "default", "max_tokens": 2, **body, **changes}
            reply = await ask.post(path, content=json.dumps(whole))
            assert reply.status_code < 500, reply.text
            if reply.status_code >= 400:
                assert reply.json()["error"]["message"]

    trio.run(ask_it, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.usefixtures("prompts")
@settings(max_examples=250)
@given(BODY, CHANGES)
def test_no_request_is_the_gateways_own_mistake(body: Any, changes: Any) -> None:
    """A 4xx with a sentence, or an answer."""
    check("/v1/chat/completions", body, changes)


@pytest.mark.usefixtures("prompts")
@settings(max_examples=50)
@given(TEXT, CHANGES)
def test_nor_is_a_completion(body: Any, changes: Any) -> None:
    """As above."""
    check("/v1/completions", body, changes)


@pytest.mark.long
@pytest.mark.usefixtures("prompts")
@settings(max_examples=10_000)
@given(BODY | TEXT, CHANGES)
def test_none_of_ten_thousand_is_either(body: Any, changes: Any) -> None:
    """As above, for chats and completions."""
    check("/v1/completions" if "prompt" in body else "/v1/chat/completions", body, changes)


DEEP: Any = "x"
for _ in range(300):
    DEEP = {"a": [DEEP]}


@pytest.mark.usefixtures("prompts")
@pytest.mark.parametrize(
    "more",
    [{"tools": [{"function": {"name": "f", "parameters": DEEP}}]}, {"chat_template_kwargs": DEEP},
     {"response_format": {"type": "json_object", "schema": DEEP}}, {"logit_bias": DEEP},
     {"tool_choice": DEEP}, {"stream_options": DEEP}, {"seed": 10**400},
     {"chat_template_kwargs": {"n": 10**400}}, {"chat_template_kwargs": {"messages": 1}},
     {"response_format": {"type": "json_object", "schema": {"maxLength": 10**400}}}],
)  # fmt: skip
async def test_what_is_nested_or_long_is_no_mistake_of_ours(more: Any, autojump_clock: Any) -> None:
    """As above, for what is rarely drawn."""
    assert tool_parameters.SCHEMA_DEPTH_MAX < 300
    async with fake_gateway() as (_, _client, app), http(app) as ask:
        body = {"model": "default", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
        reply = await ask.post("/v1/chat/completions", content=json.dumps({**body, **more}))
        assert reply.status_code < 500, reply.text
