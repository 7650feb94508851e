"""Official clients of three interfaces, and the page that shows them, on a gateway with peers.

The model is the default one, which is small: so tools are forced, and shapes are given.
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import ollama
import openai
import pydantic
import pytest

from tests.support.gateways import RunningGateway, running_gateway
from tests.support.page_code import ADDRESS, run_section

pytestmark = pytest.mark.real

SAY: list[Any] = [{"role": "user", "content": "Which weather is it in Lima?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Lima", "Quito"]}},
    "required": ["city"],
    "additionalProperties": False,
}
CITIES = ({"city": "Lima"}, {"city": "Quito"})
MORE: dict[str, Any] = {"model": "default"}


class Weather(pydantic.BaseModel):
    """What the weather is like."""

    sky: Literal["clear", "grey"]
    city: Literal["Lima", "Quito"]


@pytest.fixture(scope="module")
def gateway(home: Path) -> Iterator[RunningGateway]:
    """Provide a gateway with three peers of its own."""
    with running_gateway(home, "--local", "3", "--context", "1024") as running:
        yield running


@pytest.mark.parametrize("name", ["curl", "openai", "anthropic", "ollama"])
def test_code_on_the_page_runs(name: str, gateway: RunningGateway, tmp_path: Path) -> None:
    """As it stands, against the gateway that it names."""
    run_section(name, {ADDRESS: gateway.url}, sys.executable, {**os.environ}, tmp_path)


def test_openai_responses(gateway: RunningGateway) -> None:
    """A forced call, its result in a response that goes on from it, a stream, a parsed shape."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        tool: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
        first = client.responses.create(
            **MORE, input="Which weather?", tools=[tool], tool_choice="required"
        )
        call = first.output[-1]
        assert call.type == "function_call"
        assert json.loads(call.arguments) in CITIES
        given: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Grey."}
        with client.responses.stream(
            **MORE, input=[given], previous_response_id=first.id, max_output_tokens=1
        ) as stream:
            events: list[Any] = list(stream)
        last = events[-1].response
        assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
        assert last.output_text
        assert last.usage
        assert last.usage.output_tokens == 1
        assert last.usage.output_tokens_details.reasoning_tokens == 0
        parsed = client.responses.parse(**MORE, input="Which weather?", text_format=Weather)
        assert isinstance(parsed.output_parsed, Weather)
        with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
            client.embeddings.create(model="default", input="x")


def test_openai_chat_with_tools_and_shapes(gateway: RunningGateway) -> None:
    """A forced call, whole and streamed; its result is answered; a parsed shape."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        tool: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
        asked: dict[str, Any] = {**MORE, "tools": [tool], "tool_choice": "required", "seed": 3}
        asked["parallel_tool_calls"] = False
        whole = client.chat.completions.create(**asked, messages=SAY).choices[0]
        assert whole.finish_reason == "tool_calls"
        assert whole.message.tool_calls
        (call,) = whole.message.tool_calls
        assert json.loads(call.function.arguments) in CITIES
        with client.chat.completions.stream(**asked, messages=SAY) as stream:
            streamed = stream.get_final_completion().choices[0]
        assert streamed.message.tool_calls
        assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
        said = [*SAY, whole.message, {"role": "tool", "tool_call_id": call.id, "content": "Grey."}]
        end = client.chat.completions.create(**MORE, messages=said, max_tokens=4)
        assert end.choices[0].message.content
        parsed = client.chat.completions.parse(**MORE, messages=SAY, response_format=Weather)
        assert isinstance(parsed.choices[0].message.parsed, Weather)


def test_openai_async(gateway: RunningGateway) -> None:
    """Under asyncio: chats and responses, whole, streamed and parsed; a forced call; a refusal."""

    async def main() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key="none", max_retries=0
        ) as client:
            short: dict[str, Any] = {**MORE, "messages": SAY, "max_tokens": 5, "temperature": 0}
            whole = await client.chat.completions.create(**short)
            stream = await client.chat.completions.create(**short, stream=True)
            pieces = [piece.choices[0].delta.content or "" async for piece in stream]
            assert whole.choices[0].message.content
            assert "".join(pieces) == whole.choices[0].message.content
            tool: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
            called = await client.chat.completions.create(
                **MORE, messages=SAY, tools=[tool], tool_choice="required"
            )
            assert called.choices[0].message.tool_calls
            call: Any = called.choices[0].message.tool_calls[0]
            assert json.loads(call.function.arguments) in CITIES
            chat = await client.chat.completions.parse(
                **MORE, messages=SAY, response_format=Weather
            )
            assert isinstance(chat.choices[0].message.parsed, Weather)
            asked: dict[str, Any] = {**MORE, "input": "Which weather?", "temperature": 0}
            response = await client.responses.create(**asked, max_output_tokens=4)
            async with client.responses.stream(**asked, max_output_tokens=4) as events:
                kinds = [event.type async for event in events]
            assert response.output_text
            assert kinds[-1] == "response.incomplete"
            parsed = await client.responses.parse(**MORE, input="Which?", text_format=Weather)
            assert isinstance(parsed.output_parsed, Weather)
            with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
                await client.embeddings.create(model="default", input="x")

    asyncio.run(main())


def test_anthropic_sync(gateway: RunningGateway) -> None:
    """Streamed and whole alike; a forced tool and its result; words to go on from."""
    with anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {**MORE, "max_tokens": 5, "extra_body": {"temperature": 0}}
        whole: Any = client.messages.create(**asked, messages=SAY)
        with client.messages.stream(**asked, messages=SAY) as stream:
            text = "".join(stream.text_stream)
            last = stream.get_final_message()
        assert whole.content[0].type == "text"
        assert text == whole.content[0].text
        assert (last.stop_reason, last.usage.output_tokens) == ("max_tokens", 5)
        counted = client.messages.count_tokens(**MORE, messages=SAY)
        usage = whole.usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        tool: Any = {"name": "weather", "input_schema": SCHEMA}
        forced = client.messages.create(
            **MORE, max_tokens=200, messages=SAY, tools=[tool], tool_choice={"type": "any"}
        )
        use = forced.content[-1]
        assert use.type == "tool_use"
        assert use.input in CITIES
        result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "Grey."}
        said: list[Any] = [*SAY, {"role": "assistant", "content": forced.content}]
        end = client.messages.create(
            **asked, messages=[*said, {"role": "user", "content": [result]}]
        )
        assert end.content
        begun: Any = {"role": "assistant", "content": "It is"}
        assert client.messages.create(**asked, messages=[*SAY, begun]).content
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**{**asked, "model": "gpt"}, messages=SAY)


def test_anthropic_async(gateway: RunningGateway) -> None:
    """Under asyncio: two streams at once, a whole message, a forced tool, a count."""

    async def main() -> None:
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none") as client:

            async def ask() -> str:
                async with client.messages.stream(
                    **MORE, max_tokens=5, messages=SAY, extra_body={"temperature": 0}
                ) as stream:
                    return await stream.get_final_text()

            one, other = await asyncio.gather(ask(), ask())
            assert one
            assert one == other
            asked: dict[str, Any] = {**MORE, "messages": SAY}
            whole = await client.messages.create(
                **asked, max_tokens=5, extra_body={"temperature": 0}
            )
            assert whole.content[0].type == "text"
            assert whole.content[0].text == one
            tool: Any = {"name": "weather", "input_schema": SCHEMA}
            forced = await client.messages.create(
                **asked, max_tokens=200, tools=[tool], tool_choice={"type": "any"}
            )
            use = forced.content[-1]
            assert use.type == "tool_use"
            assert use.input in CITIES
            assert (await client.messages.count_tokens(**asked)).input_tokens > 0

    asyncio.run(main())


def test_ollama_sync(gateway: RunningGateway) -> None:
    """Models, a chat whole and streamed alike, a text that goes on, a shape."""
    with ollama.Client(gateway.url) as client:
        (model,) = client.list().models
        assert model.model
        shown = client.show(model.model)
        assert shown.modelinfo
        assert shown.modelinfo["llama.context_length"] == 1024
        assert 134e6 < shown.modelinfo["general.parameter_count"] < 136e6
        options = {"num_predict": 5, "temperature": 0}
        whole = client.chat(model.model, SAY, options=options)
        parts = list(client.chat(model.model, SAY, options=options, stream=True))
        assert whole.message.content
        assert "".join(part.message.content or "" for part in parts) == whole.message.content
        assert (whole.eval_count, whole.done_reason) == (5, "length")
        raw = client.generate(model.model, "The sky is", raw=True, options=options)
        assert raw.response
        shaped = client.chat(model.model, SAY, format=Weather.model_json_schema())
        Weather.model_validate_json(shaped.message.content or "")


def test_ollama_async(gateway: RunningGateway) -> None:
    """Under asyncio: a text streamed, a chat whole and streamed alike."""

    async def main() -> None:
        options = {"num_predict": 4, "temperature": 0}
        async with ollama.AsyncClient(gateway.url) as client:
            parts = await client.generate("default", "Hi", stream=True, options=options)
            assert "".join([part.response or "" async for part in parts])
            whole = await client.chat("default", SAY, options=options)
            pieces = await client.chat("default", SAY, options=options, stream=True)
            text = "".join([piece.message.content or "" async for piece in pieces])
            assert text == whole.message.content

    asyncio.run(main())
