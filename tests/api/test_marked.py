"""Answers are marked at the machine that keeps them, and by nobody else."""

from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from p2pinfer.node import marked
from p2pinfer.node.marked import read_marked
from tests.support.fake_gateway import fake_gateway, http

TALK = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]
HERE = "http://localhost/api/marked"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))


async def test_an_answer_is_kept(autojump_clock: MockClock) -> None:
    """It says how many there are."""
    async with fake_gateway() as (_, _, app), http(app) as ask:
        reply = await ask.post(HERE, json={"messages": TALK})
        assert (reply.status_code, reply.json()) == (200, {"marked": 1})
    assert read_marked() == [TALK]


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://192.168.1.7/api/marked", {}),
        (HERE, {"x-forwarded-for": "203.0.113.9"}),
        (HERE, {"forwarded": "for=203.0.113.9"}),
        (HERE, {"origin": "https://elsewhere.example"}),
    ],
)
async def test_others_mark_nothing(
    url: str, headers: dict[str, str], autojump_clock: MockClock
) -> None:
    """Neither through a proxy, nor by another name, nor from a page of another site."""
    async with fake_gateway() as (_, _, app), http(app) as ask:
        reply = await ask.post(url, json={"messages": TALK}, headers=headers)
        assert reply.status_code == 403
    assert read_marked() == []


@pytest.mark.parametrize(
    "body", [{}, {"messages": 5}, {"messages": ["x"]}, {"messages": TALK[:1]}, {"messages": [{}]}]
)
async def test_what_is_no_conversation_is_refused(body: Any, autojump_clock: MockClock) -> None:
    """In a sentence."""
    async with fake_gateway() as (_, _, app), http(app) as ask:
        reply = await ask.post(HERE, json=body)
        assert reply.status_code == 400
        assert reply.json()["error"]["message"]
    assert read_marked() == []


async def test_a_full_disk_is_said(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """And nothing else happens."""

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(marked, "replace_text", full)
    async with fake_gateway() as (_, _, app), http(app) as ask:
        reply = await ask.post(HERE, json={"messages": TALK})
        assert reply.status_code == 507
        assert "No space" in reply.json()["error"]["message"]
