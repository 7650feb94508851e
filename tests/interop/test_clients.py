"""Larger clients on a gateway with real peers and the default model, as docs/clients.md shows them.

They have an environment of their own, which ``make clients`` makes; without it these are skipped.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateways import RunningGateway, running_gateway
from tests.support.page_code import ADDRESS, blocks, run_section
from tests.support.processes import NETWORK, start_peers

ENVIRONMENT = Path(__file__).parents[2] / ".venv-clients"
PYTHON = ENVIRONMENT / "bin" / "python"
IS_WHOLE = (ENVIRONMENT / "whole").exists()

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not IS_WHOLE, reason="the clients are not installed: make clients"),
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Provide a gateway with three peers of its own."""
    home = tmp_path_factory.mktemp("home")
    with running_gateway(home, "--local", "3", "--context", "1024") as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Provide what the clients find in their environment: nothing of a person, no Internet."""
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "HOME": str(tmp_path),
        "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",
        "LLM_USER_PATH": str(tmp_path / "llm"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


def run(name: str, url: str, environment: dict[str, str], folder: Path) -> list[str]:
    """Run a section of the page; return the lines that it prints."""
    return run_section(name, {ADDRESS: url}, str(PYTHON), environment, folder).splitlines()


def test_litellm(gateway: RunningGateway, environment: dict[str, str], tmp_path: Path) -> None:
    """Whole by OpenAI's interface and streamed by Anthropic's."""
    assert len(run("LiteLLM", gateway.url, environment, tmp_path)) >= 2


def test_langchain(gateway: RunningGateway, environment: dict[str, str], tmp_path: Path) -> None:
    """A stream, a bound tool's arguments, and an answer of a pydantic class."""
    *_, called, shaped = run("LangChain", gateway.url, environment, tmp_path)
    assert called.startswith("{'city': '")
    assert shaped.startswith("city='")


OURS = Path(__file__).parent / "langchain"
PASSED_MIN = 44
"""Of LangChain's own tests. The rest is of pictures and the like, which are skipped."""


def own_tests(**variables: str) -> tuple[int, str]:
    """Run LangChain's own tests of our chat model; return how many passed, and all that is said."""
    how = ["-c", str(OURS / "pytest.ini"), str(OURS / "standard.py"), "-q", "-rs"]
    root = OURS.parents[2]
    variables = {**os.environ, "PYTHONPATH": str(root), **variables}
    command = [str(PYTHON), "-m", "pytest", *how]
    done = subprocess.run(
        command, capture_output=True, text=True, env=variables, cwd=root, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    return int(passed[1]) if passed else 0, done.stdout


def test_langchains_own_tests_of_chat_models() -> None:
    """Before a scripted stand-in for the model."""
    passed, said = own_tests()
    assert passed >= PASSED_MIN, said


@pytest.mark.long
def test_langchains_own_tests_of_chat_models_on_the_real_model(tmp_path: Path) -> None:
    """But two that it is too small for, and one of JSON that only a prompt describes."""
    peers = start_peers(tmp_path, ["1:10", "10:19", "19:29"])
    try:
        passed, said = own_tests(
            SWARM_ADDRESS=peers[0].address, SWARM_NETWORK=NETWORK, P2PINFER_HOME=str(tmp_path)
        )
    finally:
        for peer in peers:
            peer.stop()
    assert passed >= PASSED_MIN - 3, said


def test_llm(gateway: RunningGateway, environment: dict[str, str], tmp_path: Path) -> None:
    """By the plugin a prompt, and an answer that keeps to a schema; a prompt without it."""
    (tmp_path / "llm").mkdir()
    printed = "\n".join(run("llm", gateway.url, environment, tmp_path))
    said, brace, rest = printed.partition("{")
    assert said
    found, end = json.JSONDecoder().raw_decode(brace + rest)
    assert isinstance(found["name"], str)
    assert isinstance(found["metres"], int)
    assert (brace + rest)[end:].strip()


def test_llama_index(gateway: RunningGateway, environment: dict[str, str], tmp_path: Path) -> None:
    """A chat, and a text that goes on, streamed."""
    assert len("".join(run("LlamaIndex", gateway.url, environment, tmp_path))) > 20


COMPLETIONS = """
from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(
    api_base="http://127.0.0.1:11550/v1", api_key="none", model="default", max_tokens=8
)
print(repr(model.complete("Once upon a time").text))
"""


def test_llama_index_as_it_is_by_default(
    gateway: RunningGateway, environment: dict[str, str], tmp_path: Path
) -> None:
    """Told nothing of chats, it asks for completions."""
    code = COMPLETIONS.replace(ADDRESS, gateway.url)
    done = subprocess.run(
        [PYTHON, "-c", code], capture_output=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout) > 10


def test_every_section_is_run() -> None:
    """By these tests, those beside them, or those in tests/real."""
    here = {"LiteLLM", "LangChain", "llm", "LlamaIndex"}
    beside = {"Claude Code", "Codex", "opencode", "qwen-code"}
    there = {
        "curl",
        "openai",
        "anthropic",
        "ollama",
        "Python without a gateway",
        "LangChain without a gateway",
    }
    assert {name for name, code in blocks().items() if code} == here | beside | there
