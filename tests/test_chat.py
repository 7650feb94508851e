"""A conversation whose peers go away: what was said is kept, and gone on from."""

from typing import cast

import pytest
from trio.testing import MockClock

from p2pinfer.chat import open_conversation
from p2pinfer.core.errors import NobodyServes
from p2pinfer.node import Client
from tests.api.world import GREEDY, FakeClient
from tests.peers.swarm import swarm


async def test_what_was_said_is_kept(autojump_clock: MockClock) -> None:
    """Nobody takes a lost peer's place: the answer ends with an error, and the next knows it."""
    async with swarm() as made:
        client, shown = FakeClient(made), list[str]()

        def show(text: str) -> None:
            shown.append(text)
            if len(shown) == 5:
                client.absent = "nobody serves layers 10:20"
                made.engines[1].machine.die()

        async with open_conversation(cast("Client", client), GREEDY, lambda _: None) as talk:
            with pytest.raises(NobodyServes, match="nobody serves layers 10:20"):
                await talk.ask("Count.", show)
            assert [each["role"] for each in talk.messages] == ["user", "assistant"]
            assert talk.messages[1]["content"] == "".join(shown) != ""
            client.absent = ""
            answer = await talk.ask("Go on.", lambda _: None)
            assert answer.finish == "length"
            assert len(talk.messages) == 4


async def test_a_lost_session_is_not_noticed(autojump_clock: MockClock) -> None:
    """Where others can be asked, the answer goes on in another session, and says nothing twice."""
    async with swarm() as made:
        client, shown = FakeClient(made), list[str]()

        def show(text: str) -> None:
            shown.append(text)
            if len(shown) in (5, 9):
                made.engines[len(shown) % 3].machine.die()

        async with open_conversation(cast("Client", client), GREEDY, lambda _: None) as talk:
            answer = await talk.ask("Count.", show)
        assert (answer.tokens, answer.finish) == (GREEDY.max_tokens, "length")
        assert answer.text == "".join(shown)
        assert client.opened == 3
