"""LangChain's own tests of chat models, which their authors ask every integration to pass.

Run by ``tests/interop/test_clients.py`` in the clients' environment, where asyncio has the async
tests. The model is a scripted stand-in, unless ``SWARM_ADDRESS`` and ``SWARM_NETWORK`` name a peer
of a real swarm: a small model copies no Chinese, and does not choose tools.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from p2pinfer import connect
from p2pinfer.client.joining import SyncSwarm
from p2pinfer.langchain import ChatP2pinfer
from tests.support.stand_in import MARK, plain_stand_in

REAL = os.environ.get("SWARM_ADDRESS")
_OPEN: list[SyncSwarm] = []
JOKE = ("setup", "punchline")
"""What their prompt asks for where JSON may be of any kind."""


def instance(schema: dict[str, Any], words: str) -> Any:
    """Return what fits a simple schema."""
    if "anyOf" in schema:
        return instance(schema["anyOf"][0], words)
    match schema.get("type"):
        case "object":
            named = schema.get("properties", {name: {"type": "string"} for name in JOKE})
            return {name: instance(inner, words) for name, inner in named.items()}
        case "integer":
            return 3
        case _:
            return schema.get("enum", [words])[0]


def speak(prompt: str) -> str:
    """Call the first tool unless it has just given something; quoted words are its arguments."""
    *_, last = prompt.removesuffix(MARK.format("assistant")).split("<|")
    role, _, said = last.partition("|>")
    offered, _, _ = prompt.partition("\n")
    if role != "user" or not offered.startswith("tools: "):
        return "A magic answer, in a few words."
    tool = json.loads(offered.removeprefix("tools: "))[0]["function"]
    quoted = re.search(r"'([^']+)'", said)
    arguments = instance(tool["parameters"], quoted[1] if quoted else "words")
    call = json.dumps({"name": tool["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def fit(grammar: str) -> str:
    """Say what fits the schema of an answer; where tools are held to, ``speak`` does."""
    if "tool_call" in grammar:
        return ""
    schema, _ = json.JSONDecoder().raw_decode(grammar.partition("%json ")[2])
    return json.dumps(instance(schema, "words"))


@pytest.fixture(autouse=True, scope="session")
def _swarm() -> Iterator[None]:
    if REAL:
        network = os.environ["SWARM_NETWORK"]
        with connect([REAL], network=network, context=1024) as swarm:
            _OPEN.append(swarm)
            yield
    else:
        with plain_stand_in(speak, fit) as (swarm, _, _prompts):
            _OPEN.append(swarm)
            yield


class _Tested:
    """What both are told of the model."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """What is tested."""
        return ChatP2pinfer

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Its arguments."""
        return {"swarm": _OPEN[0]}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """Those that many have: all but one, as sessions that are lost are replaced anyway."""
        return {"temperature": 0, "max_tokens": 100, "timeout": 60, "stop": []}

    @property
    def supports_model_override(self) -> bool:
        """A swarm that is joined serves one model."""
        return False

    @property
    def supports_json_mode(self) -> bool:
        """JSON of any kind can be held to."""
        return not REAL  # the test wants properties that nothing but the prompt names


class TestUnit(_Tested, ChatModelUnitTests):  # type: ignore[misc] # not in our environment
    """Without an answer."""


class TestIntegration(_Tested, ChatModelIntegrationTests):  # type: ignore[misc] # as above
    """With answers."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Those that answers need, as nothing else is given here."""
        return {"swarm": _OPEN[0], "max_tokens": 100, "temperature": 0}

    @pytest.mark.xfail(bool(REAL), reason="the default model is too small to choose tools")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        """As there."""
        super().test_agent_loop(model)

    @pytest.mark.xfail(bool(REAL), reason="the default model cannot copy Chinese")
    def test_unicode_tool_call_integration(self, model: BaseChatModel) -> None:
        """As there."""
        super().test_unicode_tool_call_integration(model)
