"""What clients may ask for, and in which words they are refused."""

import re
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.api.parameter_names import UNKNOWN_TOLD_MAX
from p2pinfer.api.problems import Problem
from p2pinfer.api.questions import TOKENS_MAX, Question, chat_question, completion_question
from p2pinfer.client.answer import ChatOptions
from p2pinfer.client.grammars import Shape, json_shape
from p2pinfer.client.tool_calls import Tool, Tools
from p2pinfer.core.sampling import REPEAT_LAST_N_MAX, Sampling

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
    """Clients send null for that; others must have said something."""
    said = [*HELLO, {"role": "assistant", "content": None}, *HELLO]
    assert ask(messages=said).messages[1] == {"role": "assistant", "content": ""}
    for message in (
        {"role": "user", "content": None},
        {"role": "system"},
        {"role": [], "content": "x"},
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
    completion = {"model": "x", "prompt": "x", "parse_special": True}  # as completions always do
    assert completion_question(completion, DEFAULTS, 7).how == complete("x").how


@pytest.mark.parametrize(
    ("name", "value"),
    [("guided_json", {"type": "object"}), ("functions", [{"name": "f"}]), ("audio", {})],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(name: str, value: Any) -> None:
    """Rather than ignored: the answer would not be what was asked for."""
    found = refusal(**{name: value})
    assert (found.status, found.code, found.param) == (400, "unsupported_parameter", name)
    assert name in found.message


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 100.1), ("temperature", "hot"), ("temperature", float("nan")), ("top_p", True),
     ("temperature", float("inf")), ("temperature", 10**400),
     ("max_tokens", 0), ("max_tokens", -2), ("max_tokens", 1.5), ("top_k", -2),
     ("n", 9), ("stop", [1]), ("stop", ["x"] * 17),
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
    [{}, {"role": "tool", "content": "x"}, {"role": "function", "content": "x"},
     {"role": "user"}, {"role": "user", "content": 5},
     {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
     {"role": "assistant", "content": "x", "tool_calls": [{}]}],
)  # fmt: skip
def test_messages_that_a_text_model_cannot_read_are_refused(message: Any) -> None:
    """Images, calls that are none, and what is no message."""
    assert "messages[0]" in str(refusal(messages=[message]).param)


def test_slip_of_the_pen_is_refused_and_what_is_meant_is_named() -> None:
    """Its author wants an answer that they would not get."""
    for slip, meant in (
        ("tempurature", "temperature"),
        ("max_token", "max_tokens"),
        ("topp_p", "top_p"),
        ("stream_option", "stream_options"),
    ):
        found = refusal(**{slip: 1})
        assert found.code == "unknown_parameter"
        assert found.message == f"Unknown parameter: '{slip}'. Is '{meant}' meant?"
    assert refusal(messages=None).code == "missing_required_parameter"


@pytest.mark.parametrize(
    ("name", "value"),
    [("cache_prompt", True), ("keep_alive", "5m"), ("session_id", "x"), ("min_tokens", 0),
     ("stop_token_ids", []), ("ignore_eos", False), ("mirostat", 0), ("typical_p", 1.0),
     ("dry_multiplier", 0.0), ("dry_base", 1.75), ("add_generation_prompt", True),
     ("stream_options", {"continuous_usage_stats": True}), ("id_slot", -1), ("tools", []),
     ("xtc_probability", 0), ("xtc_threshold", 0.1), ("audio", None), ("best_of", 1)],
)  # fmt: skip
def test_what_changes_no_answer_is_taken(name: str, value: Any) -> None:
    """Other servers know it, so clients send it."""
    assert replace(ask(**{name: value}), ignored=()) == ask()


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_tokens", 5), ("stop_token_ids", [2]), ("ignore_eos", True), ("mirostat", 2),
     ("typical_p", 0.5), ("dry_multiplier", 0.8), ("xtc_probability", 0.5), ("best_of", 2),
     ("echo", True), ("suffix", "}"), ("options", {"temperature": 0}), ("ignore_eos", 0),
     ("structured_outputs", {})],
)  # fmt: skip
def test_what_other_servers_do_with_an_answer_is_refused_by_name(name: str, value: Any) -> None:
    """Nobody is to take our answer for what they asked for."""
    found = refusal(**{name: value})
    assert (found.code, found.param) == ("unsupported_parameter", name)


def test_unknown_names_are_told_as_far_as_a_header_can() -> None:
    """Not what would break one."""
    asked = ask(**{"my_vendor_hint": 1, "x-y": {}, "ü": 1, "a b\r\n": 1, "z" * 99: 1})
    assert asked.ignored == ("my_vendor_hint", "x-y")
    assert refusal(**{f"vendor{n}": n for n in range(300)}).status == 400
    assert len(ask(**{f"vendor{n}": n for n in range(100)}).ignored) == UNKNOWN_TOLD_MAX


def test_minus_one_and_other_servers_words_are_understood() -> None:
    """No limit, no filter; a repetition penalty by its other name."""
    asked = ask(top_k=-1, max_tokens=-1, repetition_penalty=1.2, repeat_last_n=-1, temperature=2.5)
    assert asked.how.max_tokens == TOKENS_MAX
    found = asked.how.sampling
    assert (found.top_k, found.repeat_penalty, found.repeat_last_n) == (0, 1.2, REPEAT_LAST_N_MAX)
    assert found.temperature == 2.5
    assert ask(n_predict=5).how.max_tokens == 5
    assert ask(n_predict=5, max_tokens=6).how.max_tokens == 6
    assert refusal(repetition_penalty="x").param == "repetition_penalty"


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


OBJECT = {"type": "object"}
FUNCTION = {"name": "look", "description": "Look.", "parameters": OBJECT}
TOOLS = [{"type": "function", "function": FUNCTION}]


def test_tools_arrive_with_how_they_are_chosen() -> None:
    """None offers nothing; a named one is the only one, and must be called."""
    look, other = Tool("look", "Look.", OBJECT), Tool("other", "", {**OBJECT, "properties": {}})
    two = [*TOOLS, {"function": {"name": "other"}}]
    assert ask(tools=two).tools == Tools((look, other))
    assert ask(tools=two, tool_choice="required", parallel_tool_calls=False).tools == Tools(
        (look, other), must=True, several=False
    )
    named = {"type": "function", "function": {"name": "other"}}
    assert ask(tools=two, tool_choice=named).tools == Tools((other,), must=True, several=False)
    assert ask(tools=two, tool_choice="none").tools is None
    assert ask(tools=[], tool_choice="auto").tools is None


@pytest.mark.parametrize(
    "bad",
    [{"tools": {}}, {"tools": ["x"]}, {"tools": [{"type": "web_search"}]}, {"tools": TOOLS * 2},
     {"tools": [{"function": {"name": "a b"}}]}, {"tools": [{"function": {"name": ""}}]},
     {"tools": [{"function": {"name": "f", "parameters": []}}]}, {"tool_choice": "required"},
     {"tools": TOOLS, "tool_choice": "sometimes"}, {"tools": TOOLS, "tool_choice": ["auto"]},
     {"tools": TOOLS, "tool_choice": {"function": {"name": "other"}}},
     {"tools": TOOLS, "grammar": "root"}, {"tools": [{"function": {**FUNCTION, "strict": 1}}]},
     {"parallel_tool_calls": "yes"}, {"chat_template_kwargs": []}, {"think": "no"},
     {"reasoning_effort": 5}],
)  # fmt: skip
def test_tools_that_cannot_be_called_are_named(bad: Any) -> None:
    """Which parameter, and what it may be."""
    found = refusal(**bad)
    assert found.status == 400
    assert re.split(r"[.\[]", str(found.param))[0] in bad


def test_history_keeps_its_calls_and_what_they_gave() -> None:
    """Arguments are text; what a template does not need goes."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [{**call, "index": 0}]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "Dark."}]},
    ]
    assert ask(messages=said).messages == [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Dark.", "tool_call_id": "c1"},
    ]
    for bad in ([5], [{"id": "x"}], [{"function": {"name": "f"}}], "x",
                [{"id": "x", "function": {"name": "f", "arguments": 5}}]):  # fmt: skip
        assert refusal(messages=[{"role": "assistant", "tool_calls": bad}]).status == 400


def test_thinking_is_switched_by_any_of_its_names() -> None:
    """What the template is told."""
    for how in ({"think": False}, {"enable_thinking": False}, {"reasoning_effort": "none"},
                {"chat_template_kwargs": {"enable_thinking": False}}):  # fmt: skip
        assert ask(**how).options == {"enable_thinking": False}
    assert ask(reasoning_effort="low").options == {"reasoning_effort": "low"}
    assert ask(chat_template_kwargs={"a": [1]}).options == {"a": [1]}


@pytest.mark.parametrize(
    ("wanted", "grammar"),
    [({"response_format": {"type": "json_object"}}, json_shape(OBJECT, strict=False)),
     ({"response_format": {"type": "json_object", "schema": {"type": "array"}}},
      json_shape({"type": "array"}, strict=False)),
     ({"response_format": {"type": "json_schema", "json_schema": {
         "name": "x", "strict": True, "schema": OBJECT}}}, json_shape(OBJECT, strict=True)),
     ({"response_format": {"type": "text"}, "grammar": ""}, None),
     ({"grammar": 'root ::= "a"'}, Shape('root ::= "a"', is_gbnf=True))],
)  # fmt: skip
def test_answers_may_be_held_to_a_shape(wanted: Any, grammar: Shape | None) -> None:
    """In chats and in completions."""
    assert ask(**wanted).shape == grammar
    assert completion_question({"prompt": "x", **wanted}, DEFAULTS, 7).shape == grammar


@pytest.mark.parametrize(
    "bad",
    [{"response_format": "json"}, {"response_format": {"type": "json"}},
     {"response_format": {"type": "json_schema"}}, {"grammar": 5},
     {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
     {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}},
     {"response_format": {"type": "json_object"}, "grammar": "root"}],
)  # fmt: skip
def test_shapes_that_are_none_are_named(bad: Any) -> None:
    """Before anything is asked of a model."""
    found = refusal(**bad)
    assert found.status == 400
    assert str(found.param).split(".")[0] in bad


def test_biases_are_pairs_of_a_token_and_a_number() -> None:
    """As OpenAI writes them and as llama.cpp does; 0 asks for nothing."""
    assert ask(logit_bias={"5": -100, "7": 0.5}).how.sampling.logit_bias == ((5, -100), (7, 0.5))
    assert ask(logit_bias=[[5, 1]]).how.sampling.logit_bias == ((5, 1.0),)
    assert ask(logit_bias={"x": 0}) == ask(logit_bias={}) == ask()
    for bad in ({"x": 1}, {"5": 101}, {"5": "1"}, {"-5": 1}, {"٣": 1}, [5], 5, {"5": True}):
        assert str(refusal(logit_bias=bad).param).startswith("logit_bias")
    assert refusal(logit_bias={str(n): 1 for n in range(2000)}).param == "logit_bias"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(
        [
            "messages",
            "stop",
            "n",
            "temperature",
            "tools",
            "seed",
            "stream_options",
            "logit_bias",
            "response_format",
            "grammar",
        ]
    ),
    JSON,
)
def test_whatever_comes_is_taken_or_refused(name: str, value: Any) -> None:
    """No value of any parameter makes an error of another kind."""
    with suppress(Problem):
        ask(**{name: value})


def test_thinking_is_as_the_gateway_has_it_unless_a_request_says_so() -> None:
    """Where it is off, a request may switch it on."""
    off = replace(DEFAULTS, thinks=False)
    body = {"model": "x", "messages": HELLO}
    assert ask().options == {}
    assert chat_question(body, off, 7).options == {"enable_thinking": False}
    wanted = {**body, "enable_thinking": True, "reasoning_effort": "low"}
    told = {"enable_thinking": True, "reasoning_effort": "low"}
    assert chat_question(wanted, off, 7).options == told
