"""The recorded conversation of an agent is one that an agent could have."""

import json

from p2pinfer.bench.agent import TURNS_MAX, read_talk


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
