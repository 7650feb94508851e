"""What official clients make of thoughts and of calls that a model chose, streamed.

The model is a scripted stand-in, behind the gateway's own code on a socket.
"""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.support.fake_gateway import FakeClient
from tests.support.scripted_server import scripted_server

TEMPLATE = (
    "{{ tools }}{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>' }}{% endif %}"
)
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'
SCRIPT = f"Hm.</think>Well. {CALL}"
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"at": {"type": "string"}}}
SAY: list[Any] = [{"role": "user", "content": "Look."}]
GIVEN = {"at": "é"}


@pytest.fixture
def server(prompts: list[str]) -> Iterator[tuple[str, FakeClient]]:
    """Provide a gateway whose model thinks, speaks and calls, and then has seen."""
    with scripted_server(TEMPLATE) as (url, client):
        client.made.ends.script[:] = [SCRIPT, "So.</think>Dark."]
        yield url, client


def test_anthropic_builds_blocks_of_a_stream(
    server: tuple[str, FakeClient], prompts: list[str]
) -> None:
    """They go back as they came, with the tool's result."""
    asked: dict[str, Any] = {
        "model": "default",
        "max_tokens": 99,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"name": "look", "input_schema": SCHEMA}],
    }
    with anthropic.Anthropic(base_url=server[0], api_key="none", max_retries=0) as client:
        with client.messages.stream(**asked, messages=SAY) as stream:
            message = stream.get_final_message()
        thought, text, use = message.content
        assert thought.type == "thinking"
        assert thought.thinking == "Hm."
        assert text.type == "text"
        assert text.text == "Well."
        assert use.type == "tool_use"
        assert (use.name, use.input, message.stop_reason) == ("look", GIVEN, "tool_use")
        result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "Night."}
        said = [
            *SAY,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [result]},
        ]
        end = client.messages.create(**asked, messages=said)
        assert [each.type for each in end.content] == ["thinking", "text"]
    assert "assistant: Well. tool: Night." in prompts[-1]


def test_openai_builds_items_of_a_stream(
    server: tuple[str, FakeClient], prompts: list[str]
) -> None:
    """Thoughts, words and the call; the output goes back as it came."""
    tool: Any = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}
    asked: dict[str, Any] = {"model": "default", "tools": [tool]}
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        with client.responses.stream(**asked, input=SAY) as stream:
            response = stream.get_final_response()
        thought, _words, call = response.output
        assert thought.type == "reasoning"
        assert thought.content
        assert thought.content[0].text == "Hm."
        assert response.output_text == "Well."
        assert call.type == "function_call"
        assert json.loads(call.arguments) == GIVEN
        assert response.usage
        assert response.usage.output_tokens_details.reasoning_tokens > 0
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Night."}
        output: list[Any] = [each.to_dict() for each in response.output]
        end = client.responses.create(**asked, input=[*SAY, *output, result])
        assert end.output_text == "Dark."
    assert "assistant: Well. tool: Night." in prompts[-1]


def test_ollama_loop_with_a_python_function(
    server: tuple[str, FakeClient], prompts: list[str]
) -> None:
    """The client describes the function, and its result goes back."""

    def look(at: str) -> str:
        """Look somewhere.

        Args:
            at: where
        """
        return f"Night at {at}."

    with ollama.Client(server[0]) as client:
        first = client.chat("default", SAY, tools=[look])
        assert first.message.tool_calls
        (call,) = first.message.tool_calls
        result = look(**call.function.arguments)
        said: list[Any] = [*SAY, first.message, {"role": "tool", "content": result}]
        parts = client.chat("default", said, tools=[look], stream=True)
        assert "".join(part.message.content or "" for part in parts) == "Dark."
    assert "Look somewhere." in prompts[0]
    assert "tool: Night at é." in prompts[-1]
