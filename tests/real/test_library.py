"""The library with three real peers: from trio, and from code without trio."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pinfer import connect
from p2pinfer.client.answer import Answer
from p2pinfer.core.errors import NobodyServes, UserError
from p2pinfer.core.sampling import Sampling
from tests.support.page_code import run_section
from tests.support.processes import CONTEXT, NETWORK, Peer

pytestmark = pytest.mark.real

ASKED = [{"role": "user", "content": "Name a colour."}]


async def test_streaming_under_trio(swarm: list[Peer]) -> None:
    """The answer's report is filled in."""
    answer = Answer()
    async with connect([swarm[0].address], network=NETWORK, context=CONTEXT) as joined:
        pieces = [piece async for piece in joined.chat(ASKED, max_tokens=6, answer=answer)]
    assert "".join(pieces) == answer.text
    assert answer.tokens <= 6
    assert answer.trust
    assert answer.trust.held


def test_streaming_without_trio_from_several_threads(swarm: list[Peer]) -> None:
    """All threads get the same greedy answer, also after one was abandoned halfway."""
    with connect([swarm[1].address], network=NETWORK, context=CONTEXT) as joined:
        assert "smollm" in joined.model_name.lower()
        left = joined.chat(ASKED, max_tokens=50)
        next(left)
        left.close()

        def ask(_: int) -> str:
            return "".join(joined.chat(ASKED, sampling=Sampling(), max_tokens=6))

        with ThreadPoolExecutor(3) as threads:
            answers = set(threads.map(ask, range(3)))
    assert len(answers) == 1
    assert answers.pop()


def test_streaming_under_asyncio(swarm: list[Peer], tmp_path: Path) -> None:
    """As docs/clients.md shows it."""
    here = {"ADDRESS": swarm[2].address, '"main"': f'"{NETWORK}"'}
    assert run_section("Python without a gateway", here, sys.executable, {**os.environ}, tmp_path)


def test_a_chat_model_for_langchain(swarm: list[Peer], tmp_path: Path) -> None:
    """As docs/clients.md shows it: a stream, an answer of a shape, and a call."""
    here = {"ADDRESS": swarm[0].address, '"main"': f'"{NETWORK}"'}
    section = "LangChain without a gateway"
    said = run_section(section, here, sys.executable, {**os.environ}, tmp_path)
    *_, shaped, given, told = said.splitlines()
    assert "metres=" in shaped
    assert "It is sunny in" in given
    assert "'layers': '19:29'" in told


def test_errors_are_raised_in_the_caller(swarm: list[Peer]) -> None:
    """For an address without a peer, no address, and an impossible request."""
    nowhere = f"/ip4/127.0.0.1/tcp/1/p2p/{swarm[0].id}"
    with pytest.raises(NobodyServes), connect([nowhere]):
        pass
    with pytest.raises(UserError), connect(mdns=False):
        pass
    with pytest.raises(UserError, match="audit_rate"):
        connect([nowhere], audit_rate=2)
    with pytest.raises(UserError, match="network key"):
        connect([nowhere], network_key="no/such/file")
