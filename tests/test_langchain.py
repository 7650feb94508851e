"""The chat model for LangChain, before a scripted stand-in: what it makes of questions and answers.

LangChain's own tests of chat models are in tests/interop.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pydantic
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelConnectionError,
    ModelInvalidRequestError,
    ModelTimeoutError,
    OutputParserException,
)
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool

from p2pinfer.client.joining import AsyncioSwarm
from p2pinfer.core.errors import PromptTooLong, UserError
from p2pinfer.langchain import ChatP2pinfer
from tests.support.stand_in import MARK, plain_stand_in

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Lima"}}\n</tool_call>'


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"It is sunny in {city}."


class Tree(pydantic.BaseModel):
    """A tree."""

    name: str
    metres: int


class Where(pydantic.BaseModel):
    """What the weather is asked of."""

    city: str


def speak(prompt: str) -> str:
    """Call the tool if one is there, and say what it gave; else say a few words."""
    last = prompt.rsplit(MARK.format("tool"), 1)[-1]
    if prompt.count(MARK.format("tool")):
        return "So " + last.removesuffix(MARK.format("assistant"))
    called = CALL.replace("weather", "Where") if '"Where"' in prompt else CALL
    return called if prompt.startswith("tools:") else "An oak, or a beech."


def fit(grammar: str) -> str:
    """Say what keeps to the schema of a tree, unless tools are what is held to."""
    return "" if "tool_call" in grammar else '{"name": "oak", "metres": 30}'


Model = Callable[..., ChatP2pinfer]


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Model, list[str]]]:
    """Provide what makes chat models before a stand-in, and the prompts that it gets."""
    with plain_stand_in(speak, fit) as (swarm, _, prompts):
        yield (lambda **how: ChatP2pinfer(swarm=swarm, **how)), prompts


def test_an_answer_says_what_it_took_and_who_made_it(made: tuple[Model, list[str]]) -> None:
    """Whole, and in pieces that add up to the same."""
    model = made[0](temperature=0)
    whole = model.invoke([SystemMessage("Be short."), HumanMessage("Name a tree.")])
    assert whole.text == "An oak, or a beech."
    assert whole.usage_metadata
    assert whole.usage_metadata["output_tokens"] > 4
    assert whole.usage_metadata["input_token_details"]["cache_read"] == 0
    told = whole.response_metadata
    assert told["finish_reason"] == "stop"
    assert told["model_name"] == model.model_name
    assert [stage["layers"] for stage in told["route"]] == ["1:29"]
    assert "trust" in told
    assert "receipt" not in told
    pieces = [*model.stream("Name a tree.")]
    assert len(pieces) > 4
    assert isinstance(pieces[-1], AIMessageChunk)
    assert pieces[-1].chunk_position == "last"
    assert "".join(str(piece.text) for piece in pieces) == whole.text
    assert f"{MARK.format('system')}Be short.{MARK.format('user')}Name a tree." in made[1][-2]


def test_batches_are_answered_at_once(made: tuple[Model, list[str]]) -> None:
    """In several threads; each piece is told to callbacks."""
    heard: list[str] = []

    class Listens(BaseCallbackHandler):
        def on_llm_new_token(self, token: Any, **_: Any) -> None:
            heard.append(token)

    found = made[0]().batch(["Name a tree.", "Name another."], {"callbacks": [Listens()]})
    assert [each.text for each in found] == ["An oak, or a beech."] * 2
    assert "".join(sorted("".join(heard))) == "".join(sorted("An oak, or a beech." * 2))


def test_a_tool_is_called_and_what_it_gave_is_read(made: tuple[Model, list[str]]) -> None:
    """An agent's turn: the call goes back into the conversation, with its result."""
    model = made[0]().bind_tools([weather])
    asked = HumanMessage("Which weather is it in Lima?")
    called = model.invoke([asked])
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Lima"})
    assert called.response_metadata["finish_reason"] == "tool_calls"
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert model.invoke([asked, called, result]).text == "So It is sunny in Lima."
    assert '"name": "weather"' in made[1][-1]
    assert "It is sunny in Lima." in made[1][-1]


def test_calls_come_in_pieces(made: tuple[Model, list[str]]) -> None:
    """The name first, then the arguments; together they are the call."""
    pieces = [*made[0]().bind_tools([weather], tool_choice="any").stream("Which weather?")]
    told = [chunk for piece in pieces for chunk in piece.tool_call_chunks]  # type: ignore[attr-defined]
    assert [chunk["name"] for chunk in told if chunk["name"]] == ["weather"]
    assert len(told) > 3
    assert json.loads("".join(chunk["args"] for chunk in told)) == {"city": "Lima"}
    assert len({chunk["id"] for chunk in told} - {None}) == 1


@pytest.mark.parametrize("choice", ["weather", "any", "required", True])
def test_a_call_can_be_forced(made: tuple[Model, list[str]], choice: Any) -> None:
    """By the tool's name or not; then words alone are no answer."""
    model = made[0]()
    bound: Any = model.bind_tools([weather], tool_choice=choice)
    sent = bound.kwargs["tool_choice"]
    named = {"type": "function", "function": {"name": "weather"}}
    assert sent == (named if choice == "weather" else choice if choice == "any" else "required")
    assert bound.invoke("Hello.").tool_calls


def test_an_answer_of_a_shape(made: tuple[Model, list[str]]) -> None:
    """Of a pydantic class or a dict; with the message itself; as a tool's arguments."""
    model = made[0]()
    assert model.with_structured_output(Tree).invoke("An oak.") == Tree(name="oak", metres=30)
    schema = {**Tree.model_json_schema(), "title": "Tree"}
    assert model.with_structured_output(schema).invoke("An oak.") == {"name": "oak", "metres": 30}
    raw = model.with_structured_output(Tree, include_raw=True).invoke("An oak.")
    assert isinstance(raw, dict)
    assert isinstance(raw["raw"], AIMessage)
    assert (raw["parsed"], raw["parsing_error"]) == (Tree(name="oak", metres=30), None)
    called = model.with_structured_output(Where, method="function_calling")
    assert called.invoke("Hello.") == Where(city="Lima")
    with pytest.raises(ValueError, match="method"):
        model.with_structured_output(Tree, method="magic")
    *_, last = model.with_structured_output(schema).stream("An oak.")
    assert last == {"name": "oak", "metres": 30}


def test_json_that_is_cut_short_is_no_answer(made: tuple[Model, list[str]]) -> None:
    """Though its beginning could be mended into something that fits."""
    model = made[0](max_tokens=5).with_structured_output({**Tree.model_json_schema(), "title": "T"})
    with pytest.raises(OutputParserException, match="cut short"):
        model.invoke("An oak.")


def test_stops_and_lengths_count(made: tuple[Model, list[str]]) -> None:
    """Those of a call before those of the model."""
    model = made[0](stop=["beech"], max_tokens=100)
    assert model.invoke("Name a tree.").text == "An oak, or a "
    assert model.invoke("Name a tree.", stop=["oak"]).text == "An "
    short = model.invoke("Name a tree.", max_tokens=1)
    assert short.response_metadata["finish_reason"] == "length"
    assert short.usage_metadata
    assert short.usage_metadata["output_tokens"] == 1


def test_what_is_asked_is_judged_as_at_the_gateway(made: tuple[Model, list[str]]) -> None:
    """A sentence says what is wrong, in an error that LangChain knows and ours behind it."""
    model = made[0]()
    for more, said in (
        ({"temperature": -1}, "temperature"),
        ({"temprature": 1}, "Is 'temperature' meant"),
        ({"quokkas": 1}, "quokkas"),
        ({"n": 2}, "batch"),
        ({"tools": [{"type": "magic"}]}, "tools"),
    ):
        with pytest.raises(ModelInvalidRequestError, match=said):
            model.invoke("Hello.", **more)
    with pytest.raises(pydantic.ValidationError, match="quokkas"):
        made[0](quokkas=1)
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(ModelInvalidRequestError, match="type text"):
        model.invoke([HumanMessage([picture])])
    with pytest.raises(ContextOverflowError) as caught:
        model.invoke("word " * 2_000_000)
    assert isinstance(caught.value.__cause__, PromptTooLong | UserError)


def test_thoughts_are_told_apart_and_given_back(made: tuple[Model, list[str]]) -> None:
    """As content blocks; in a history they are the assistant's thoughts again."""
    model = made[0]()
    answer = AIMessage("Four.", additional_kwargs={"reasoning_content": "Two and two."})
    body = model._body([HumanMessage("2 + 2?"), answer, HumanMessage("Sure?")], None, {})
    assert body["messages"][1]["reasoning_content"] == "Two and two."
    call = {"type": "tool_call", "name": "weather", "args": {"city": "Lima"}, "id": "1"}
    said: list[Any] = [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "4."}]
    blocks = AIMessage([*said, call], tool_calls=[call])
    (sent,) = model._body([blocks], None, {})["messages"]
    assert (sent["content"], sent["reasoning_content"]) == ("4.", "Hm.")
    assert [each["function"]["name"] for each in sent["tool_calls"]] == ["weather"]
    with pytest.raises(ModelInvalidRequestError, match="type text"):
        model.invoke([AIMessage([{"type": "image_url", "image_url": {"url": "x"}}])])


def test_tokens_are_counted_in_the_models_own_template(made: tuple[Model, list[str]]) -> None:
    """With tools there are more."""
    model = made[0]()
    asked: list[BaseMessage] = [HumanMessage("Which weather is it in Lima? " * 20)]
    few = model.get_num_tokens_from_messages(asked)
    assert few < model.get_num_tokens_from_messages(asked, [weather])
    assert model.get_token_ids("Hello there.")
    assert model.profile
    assert model.profile["max_input_tokens"] > few


def test_under_asyncio() -> None:
    """One answer, pieces, several at once; an answer that is cancelled; other threads, too."""
    with plain_stand_in(speak, fit) as (_, thread, _prompts):

        async def use() -> None:
            model = ChatP2pinfer(swarm=AsyncioSwarm(thread.swarm, thread))
            assert (await model.ainvoke("Name a tree.")).text == "An oak, or a beech."
            pieces = [str(piece.text) async for piece in model.astream("Name a tree.")]
            assert "".join(pieces) == "An oak, or a beech."
            found = await model.abatch(["Name a tree.", "Name another."])
            assert len({each.text for each in found}) == 1
            shaped = await model.with_structured_output(Tree).ainvoke("An oak.")
            assert shaped == Tree(name="oak", metres=30)
            left = asyncio.ensure_future(model.ainvoke("Name a tree."))
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            assert (await asyncio.to_thread(model.invoke, "Name a tree.")).text == found[0].text
            with pytest.raises(ModelInvalidRequestError, match="temperature"):
                await model.ainvoke("Hello.", temperature=-1)

        asyncio.run(use())


def test_a_plain_swarm_is_asked_from_asyncio_too(made: tuple[Model, list[str]]) -> None:
    """It takes a thread."""
    answer = asyncio.run(made[0]().ainvoke("Name a tree."))
    assert answer.text == "An oak, or a beech."


def test_time_runs_out(made: tuple[Model, list[str]]) -> None:
    """An answer that takes longer than it may is left, and another one may be asked for."""
    with pytest.raises(ModelTimeoutError, match="timeout"):
        made[0](timeout=0).invoke("Name a tree.")
    assert made[0](timeout=60).invoke("Name a tree.").text


def test_a_swarm_that_was_left_says_so() -> None:
    """Whether it was asked before or not."""
    with plain_stand_in(speak) as (swarm, _, _prompts):
        model = ChatP2pinfer(swarm=swarm)
        begun = model.stream("Name a tree.")
        next(begun)
    with pytest.raises(ModelConnectionError, match="left"):
        list(begun)
    with pytest.raises(ModelConnectionError, match="left"):
        model.invoke("Name a tree.")
