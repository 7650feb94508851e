"""What clients may ask for, and in which words they are refused."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.api.problems import Problem
from p2pinfer.api.questions import Question, chat_question, completion_question
from p2pinfer.client.answer import ChatOptions
from p2pinfer.core.sampling import Sampling

DEFAULTS = ChatOptions(Sampling(temperature=0.5, top_k=30), max_tokens=100, stops=("END",))
HELLO = [{"role": "user", "content": "Hello"}]


def ask(**body: Any) -> Question:
    """Judge a chat request."""
    return chat_question({"model": "x", "messages": HELLO, **body}, DEFAULTS, 7)


def refusal(**body: Any) -> Problem:
    """Return why a chat request is refused."""
    with pytest.raises(Problem) as caught:
        ask(**body)
    return caught.value


def test_what_is_not_asked_for_is_as_the_gateway_has_it() -> None:
    """Defaults, null values, and a seed of the gateway's choosing."""
    assert ask() == ask(temperature=None, stop=None, n=None, logprobs=None, user="me", store=True)
    how = ask().how
    assert (how.sampling.temperature, how.sampling.top_k, how.sampling.seed) == (0.5, 30, 7)
    assert (how.max_tokens, how.stops) == (100, ("END",))


def test_every_parameter_arrives() -> None:
    """Both names for the longest answer; the newer one counts for more."""
    asked = ask(
        temperature=0,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        presence_penalty=-1,
        frequency_penalty=1.5,
        repeat_penalty=1.2,
        seed=-1,
        stop=["a", "b"],
        n=3,
        max_tokens=9,
        max_completion_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert asked.how.sampling == Sampling(
        temperature=0.0,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        presence_penalty=-1.0,
        frequency_penalty=1.5,
        repeat_penalty=1.2,
        seed=2**32 - 2,
    )
    assert (asked.how.max_tokens, asked.how.stops, asked.choices) == (8, ("a", "b"), 3)
    assert asked.stream
    assert asked.include_usage
    assert len({asked.option(choice).sampling.seed for choice in range(3)}) == 3


def test_likely_tokens_are_told_when_asked_for() -> None:
    """By OpenAI's two names in a chat, and by a number in a completion."""
    assert ask(logprobs=False, top_logprobs=0).how.sampling.top_logprobs is None
    assert ask(logprobs=True).how.sampling.top_logprobs == 0
    assert ask(logprobs=True, top_logprobs=20).how.sampling.top_logprobs == 20
    body = {"model": "x", "prompt": "Hello"}
    for told in (None, 0, 5):
        asked = completion_question({**body, "logprobs": told}, DEFAULTS, 7)
        assert asked.how.sampling.top_logprobs == told
    for bad in ({"logprobs": 6}, {"logprobs": True}, {"logprobs": 1, "top_logprobs": 1}):
        with pytest.raises(Problem):
            completion_question({**body, **bad}, DEFAULTS, 7)


def test_gateways_own_rules_hold_for_everybody() -> None:
    """What was not verified is held back; its system message stands where none is sent."""
    defaults = replace(DEFAULTS, require_verified=True, system="Be brief.")
    body = {"model": "x", "messages": HELLO}
    asked = chat_question(body, defaults, 7)
    assert asked.how.require_verified
    assert asked.messages == [{"role": "system", "content": "Be brief."}, *HELLO]
    own = [{"role": "developer", "content": "Be long."}, *HELLO]
    messages = chat_question({**body, "messages": own}, defaults, 7).messages
    assert [each["content"] for each in messages] == ["Be long.", "Hello"]


def test_messages_may_come_in_parts_and_from_developers() -> None:
    """The text parts are lines; the newer word for system is understood."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "Be."}, {"role": "user", "content": parts}]
    assert ask(messages=messages).messages == [
        {"role": "system", "content": "Be."},
        {"role": "user", "content": "a\nb"},
    ]


def test_assistant_may_have_said_nothing() -> None:
    """Clients send null for that; others must have said something, and nobody calls tools."""
    said = [*HELLO, {"role": "assistant", "content": None}, *HELLO]
    assert ask(messages=said).messages[1] == {"role": "assistant", "content": ""}
    for message in (
        {"role": "user", "content": None},
        {"role": "system"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
    ):
        assert refusal(messages=[message]).status == 400


def test_special_tokens_in_messages_are_text_unless_asked() -> None:
    """A request may say otherwise than the gateway, either way."""
    assert not ask().how.parse_special
    assert ask(parse_special=True).how.parse_special
    defaults = replace(DEFAULTS, parse_special=True)
    body = {"model": "x", "messages": HELLO}
    assert chat_question({**body, "parse_special": None}, defaults, 7).how.parse_special
    assert not chat_question({**body, "parse_special": False}, defaults, 7).how.parse_special
    assert refusal(parse_special="yes").param == "parse_special"
    with pytest.raises(Problem, match="Unknown parameter"):
        completion_question({"model": "x", "prompt": "x", "parse_special": True}, DEFAULTS, 7)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tools", [{"type": "function"}]), ("response_format", {"type": "json"}),
     ("logit_bias", {"5": 1}), ("tool_choice", "required"), ("audio", {})],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(name: str, value: Any) -> None:
    """Rather than ignored: the answer would not be what was asked for."""
    found = refusal(**{name: value})
    assert (found.status, found.code, found.param) == (400, "unsupported_parameter", name)
    assert name in found.message


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 2.1), ("temperature", "hot"), ("temperature", float("nan")), ("top_p", True),
     ("temperature", float("inf")), ("temperature", 10**400),
     ("max_tokens", 0), ("max_tokens", 1.5), ("n", 9), ("stop", [1]), ("stop", ["x"] * 17),
     ("stream", 1), ("seed", "x"), ("stream_options", []), ("messages", []), ("messages", "x"),
     ("messages", ["x"]), ("logprobs", 1), ("top_logprobs", 1), ("top_logprobs", 21)],
)  # fmt: skip
def test_values_out_of_range_are_named(name: str, value: Any) -> None:
    """The parameter, and what it may be."""
    found = refusal(**{name: value})
    assert found.status == 400
    assert found.param is not None
    assert found.param.startswith(name)


@pytest.mark.parametrize(
    "message",
    [{}, {"role": "tool", "content": "x"}, {"role": "user"}, {"role": "user", "content": 5},
     {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
     {"role": "assistant", "content": "x", "tool_calls": [{}]}],
)  # fmt: skip
def test_messages_that_a_text_model_cannot_read_are_refused(message: Any) -> None:
    """Images, tools, and what is no message."""
    assert "messages[0]" in str(refusal(messages=[message]).param)


def test_what_openai_does_not_know_is_refused_as_there() -> None:
    """In its very words."""
    found = refusal(tempurature=1)
    assert (found.message, found.code) == ("Unknown parameter: 'tempurature'.", "unknown_parameter")
    assert refusal(messages=None).code == "missing_required_parameter"


def complete(prompt: Any) -> Question:
    """Judge a completion request."""
    return completion_question({"model": "x", "prompt": prompt}, DEFAULTS, 7)


def test_prompts_are_texts_or_tokens_or_several() -> None:
    """As OpenAI takes them; sixteen tokens of answer if nothing is said."""
    assert list(complete("a").prompts) == ["a"]
    assert list(complete(["a", "b"]).prompts) == ["a", "b"]
    assert list(complete([1, 2]).prompts) == [[1, 2]]
    assert list(complete([[1], [2]]).prompts) == [[1], [2]]
    assert complete("a").how.max_tokens == 16
    bads: list[Any] = [[], [[]], ["a", 1], {"a": 1}, 5, ["a"] * 17, [True]]
    for bad in bads:
        with pytest.raises(Problem):
            complete(bad)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(
        ["messages", "stop", "n", "temperature", "tools", "seed", "stream_options", "logit_bias"]
    ),
    JSON,
)
def test_whatever_comes_is_taken_or_refused(name: str, value: Any) -> None:
    """No value of any parameter makes an error of another kind."""
    with suppress(Problem):
        ask(**{name: value})
