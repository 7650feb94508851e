"""The recorded conversation of an agent is one that an agent could have."""

import json
from pathlib import Path

import pytest

from p2pinfer.bench.agent import PAUSE_S_MAX, TOKENS, TURNS_MAX, gaps_told, read_talk
from p2pinfer.client.tool_calls import as_text
from p2pinfer.engine.llama.tokenizer import open_tokenizer

DEFAULT_POSITIONS = 8192
"""Of the default model's context."""

MARKS_TOKENS = 8
"""Around each message, at most: who says it, and where it ends."""


def test_recording_calls_the_tools_that_it_offers() -> None:
    """Twenty turns, each a call with arguments that fit, and what it gave."""
    talk = read_talk()
    tools = {tool.name: tool.parameters for tool in talk.tools}
    system, user, *rest = talk.messages
    assert (system["role"], user["role"]) == ("system", "user")
    assert len(rest) == 2 * TURNS_MAX
    for turn, (said, gave) in enumerate(zip(rest[::2], rest[1::2], strict=True)):
        (call,) = said["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        assert arguments.keys() == {*tools[call["function"]["name"]]["required"]}
        assert (gave["role"], gave["tool_call_id"]) == ("tool", call["id"])
        assert talk.before(turn)[-1] == (rest[2 * turn - 1] if turn else user)
    assert talk.of_other()[0] == system


async def test_all_turns_fit_into_the_default_models_context(default_model: Path) -> None:
    """The whole recording is played, not as many turns as a context happens to hold."""
    talk = read_talk()
    messages = as_text(talk.before(TURNS_MAX - 1), talk.tools)
    text = "\n".join(message["content"] for message in messages)
    async with open_tokenizer(default_model) as tokenizer:
        tokens = len(await tokenizer.tokenize(text, special=False))
    assert tokens + MARKS_TOKENS * len(messages) + TOKENS < DEFAULT_POSITIONS


@pytest.mark.parametrize(
    ("gaps_s", "longest_s", "times", "share"),
    [
        ([0.02, 0.02, 0.02, 0.02], 0.02, 1.0, 0.0),
        ([0.02, 0.02, 0.02, PAUSE_S_MAX], PAUSE_S_MAX, 25.0, 0.0),
        ([0.02, 0.6, 0.02, 0.02, 0.02, 0.02, 1.3, 0.02], 1.3, 65.0, 0.25),
    ],
)
def test_report_tells_the_longest_pause_and_how_many_are_too_long(
    gaps_s: list[float], longest_s: float, times: float, share: float
) -> None:
    """Also as a ratio, which does not depend on what else the machine does."""
    told = gaps_told(gaps_s)
    assert (told["stream_gaps"], told["stream_gap_max_s"]) == (len(gaps_s), longest_s)
    assert (told["stream_gap_max_to_p50"], told["stream_pauses_share"]) == (times, share)
    assert told["stream_gap_p50_s"] == 0.02 <= told["stream_gap_p99_s"] <= longest_s
