"""A conversation: what was said is kept, and gone on from, though peers go away."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from trio.testing import MockClock

from p2pinfer.client.conversation import open_conversation
from p2pinfer.client.library import Swarm, open_swarm
from p2pinfer.core.errors import NobodyServes, NotVerified, UserError
from p2pinfer.core.trust import Trust
from p2pinfer.engine.template import Message
from p2pinfer.node.requester import Client
from tests.client.test_harmony import TEMPLATE as HARMONY
from tests.client.test_harmony import THOUGHT, WORDS
from tests.support.fake_gateway import GREEDY, FakeClient
from tests.support.swarm import CONTEXT, swarm


@pytest.fixture(autouse=True)
def _renders_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make prompts without a template: its process would not wait for a mock clock."""

    async def prompt_of(swarm: Swarm, messages: Sequence[Message], **_: object) -> list[int]:
        return await swarm.tokenize(" ".join(each["content"] for each in messages))

    monkeypatch.setattr(Swarm, "prompt_of", prompt_of)


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


async def test_an_answer_is_as_long_as_the_session_has_room_for(autojump_clock: MockClock) -> None:
    """Where nobody says how long; it ends as one that became too long, and all of it is shown."""
    async with swarm() as made:
        client = FakeClient(made)
        how = replace(GREEDY, max_tokens=None)
        async with open_conversation(cast("Client", client), how, lambda _: None) as talk:
            answer = await talk.ask("Count.", lambda _: None)
    assert answer.finish == "length"
    assert answer.prompt_tokens + answer.tokens - 1 == CONTEXT


async def test_one_session_serves_all_that_is_asked(autojump_clock: MockClock) -> None:
    """What is forgotten is overwritten in it; once it is given back another one is opened."""
    async with swarm() as made:
        client = FakeClient(made)
        async with open_conversation(cast("Client", client), GREEDY, lambda _: None) as talk:
            for question in ("Count.", "Go on.", "Once more."):
                await talk.ask(question, lambda _: None)
            talk.reset()
            answer = await talk.ask("Zebras, on the other hand?", lambda _: None)
            assert (len(talk.messages), client.opened) == (2, 1)
            await talk.close()
            again = await talk.ask("Zebras?", lambda _: None)
            assert (again.reused_tokens, client.opened) == (0, 2)
        assert answer.finish == "length"


async def test_what_is_too_long_is_refused_and_not_remembered(autojump_clock: MockClock) -> None:
    """With what to do about it; the conversation goes on."""
    async with swarm() as made:
        client = cast("Client", FakeClient(made))
        async with open_conversation(client, GREEDY, lambda _: None) as talk:
            with pytest.raises(UserError, match=r"holds 256 tokens: shorten it, or .*--context"):
                await talk.ask("x " * 300, lambda _: None)
            assert talk.messages == []
            assert (await talk.ask("Count.", lambda _: None)).tokens == GREEDY.max_tokens


async def test_certificate_is_written_or_the_answer_not_trusted(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A request for a certificate is answered in words where there can be none."""
    file = tmp_path / "certificate"
    how = replace(GREEDY, certificate=file)
    async with swarm() as made:
        client = FakeClient(made)
        async with open_conversation(cast("Client", client), how, lambda _: None) as talk:
            client.trust = Trust(3, 5, 0.1)
            answer = await talk.ask("Count.", lambda _: None)
            assert file.read_bytes() == answer.certificate
            client.trust = None
            with pytest.raises(NotVerified):
                await talk.ask("Go on.", lambda _: None)
            assert len(talk.messages) == 4


async def test_thinking_is_switched_off_and_on_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template is told so from the next question on, and nothing as long as it is wanted."""
    told: list[object] = []

    async def prompt_of(swarm: Swarm, messages: Sequence[Message], **how: object) -> list[int]:
        told.append(how["options"])
        return await swarm.tokenize("x")

    monkeypatch.setattr(Swarm, "prompt_of", prompt_of)
    async with swarm() as made:
        client = cast("Client", FakeClient(made))
        async with open_conversation(client, GREEDY, lambda _: None) as talk:
            for wanted in (True, False, True):
                talk.think(wanted=wanted)
                await talk.ask("Count.", lambda _: None)
    assert told == [{}, {"enable_thinking": False}, {}]


async def test_channels_are_shown_as_thoughts_and_words(autojump_clock: MockClock) -> None:
    """And what is remembered of gpt-oss's answers is what its template wants: the words."""
    async with swarm() as made:
        client, shown = FakeClient(made), list[str]()
        client.ends.script[:] = [THOUGHT + WORDS, WORDS]
        asker = cast("Client", client)
        how = replace(GREEDY, max_tokens=60)
        async with open_conversation(asker, how, lambda _: None, HARMONY) as talk:
            await talk.ask("Look.", shown.append)
            assert "".join(shown) == "<think>\nHm <b>.\n</think>\n\nIt is dark."
            assert talk.messages[-1]["content"] == "It is dark."
        async with open_swarm(asker, 1, chat_template=HARMONY) as opened:
            said = [text async for text in opened.chat([{"role": "user", "content": "Look."}])]
            assert "".join(said) == "It is dark."
