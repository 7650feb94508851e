"""Answers that keep to a grammar or a schema, drawn by the default model's own ends."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.client.grammars import json_shape
from p2pinfer.core.errors import EngineError, UserError
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import GRAMMAR_CHARS_MAX, Sampling
from p2pinfer.engine.llama.binding import Vocabulary
from p2pinfer.engine.llama.constraints import Constraint, Grammars
from p2pinfer.engine.llama.engine import LocalEnds, open_ends
from tests.support.vocabularies import write_sentencepiece, write_vocabulary
from tests.support.whole import open_model

WAIT_S_MAX = 240
TOKENS_MAX = 120
DIGITS = "start: /[0-9]{4}/"


@pytest.fixture(scope="module", params=["of bytes", "of sentencepiece's kind"])
def grammars(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Grammars:
    """Give what a vocabulary can be held to."""
    path = tmp_path_factory.mktemp("vocabulary") / "v.gguf"
    if request.param == "of bytes":
        write_vocabulary(path, ("<s>", "</s>", "<|im_end|>"), pairs=["aa"])
    else:
        write_sentencepiece(path)
    return Grammars(Vocabulary.of_file(path))


@asynccontextmanager
async def opened(model: Path, folder: Path) -> AsyncIterator[LocalEnds]:
    """Run the ends of a model."""
    first, last = open_model(model, folder).ends(1)
    with trio.fail_after(WAIT_S_MAX):
        async with open_ends(first, last, 30, sessions=2, context=512) as ends:
            yield ends


async def answer(
    ends: LocalEnds, sampling: Sampling, said: list[int] | None = None
) -> tuple[str, list[int], bool]:
    """Draw an answer's text and tokens from the ends alone, and whether it came to its end."""
    tokens = await ends.tokenize("Tell me:", special=True) + (said or [])
    cells = ends.open()
    try:
        cells.start(sampling, tokens, said or [])
        rows = (await cells.embed(0, tokens, regime=Regime.WIDE)).rows
        at, drawn, text = 0, [], b""
        for _ in range(TOKENS_MAX):
            found = await cells.next(at, rows, regime=Regime.NARROW if at else Regime.WIDE)
            drawn.append(found.token)
            if found.is_end:
                return text.decode(), drawn, True
            text += found.piece
            at, rows = at + (len(tokens) if at == 0 else 1), found.rows
        return text.decode(errors="replace"), drawn, False
    finally:
        cells.close()


async def test_answers_keep_to_a_grammar(default_model: Path, tmp_path: Path) -> None:
    """Greedy and hot, the same for the same seed; also where another session goes on."""
    async with opened(default_model, tmp_path) as ends:
        gbnf = await ends.read_grammar('root ::= "yes" | "no" [a-c]+ "."', is_gbnf=True)
        text, _, ended = await answer(ends, Sampling(grammar=gbnf))
        assert ended
        assert re.fullmatch("yes|no[a-c]+\\.", text)
        for sampling in (Sampling(grammar=DIGITS), Sampling(grammar=DIGITS, temperature=2.0)):
            text, tokens, ended = await answer(ends, sampling)
            assert ended
            assert re.fullmatch("[0-9]{4}", text)
            assert (await answer(ends, sampling))[1] == tokens
        text, tokens, _ = await answer(ends, Sampling(grammar=DIGITS))
        rest, _, ended = await answer(ends, Sampling(grammar=DIGITS), tokens[:2])
        assert ended
        assert len(rest) == len(text) - 2
        free = await answer(ends, Sampling())  # as if no grammar had ever been
        assert not re.fullmatch("[0-9]*", free[0])


async def test_grammar_that_fails_in_the_middle_ends_one_answer(
    default_model: Path, tmp_path: Path
) -> None:
    """It says so, and its neighbour goes on; nor does an unreadable one end the engine."""
    async with opened(default_model, tmp_path) as ends:
        for bad in ("start: nothing", "no grammar at all", "start: /((a{2000}){2000}){2000}/"):
            with pytest.raises(EngineError, match="cannot be kept to"):
                await answer(ends, Sampling(grammar=bad))
        with pytest.raises(EngineError, match="cannot be kept to"):
            await answer(ends, Sampling(grammar=DIGITS), [0, 5])
        assert (await answer(ends, Sampling(grammar=DIGITS)))[2]
        for bad in ("root ::= (", "root ::= nothing", "", "x", "root ::= " + "(" * 9000):
            with pytest.raises(UserError, match="cannot be kept to"):
                await ends.read_grammar(bad, is_gbnf=True)
        with pytest.raises(UserError, match="characters at most"):
            await ends.read_grammar("x" * (GRAMMAR_CHARS_MAX + 1))


async def test_biases_choose_and_forbid_tokens(default_model: Path, tmp_path: Path) -> None:
    """Whether or not the draw is greedy; what is told of likelihoods is the model's own."""
    async with opened(default_model, tmp_path) as ends:
        _, (likeliest, *_), _ = await answer(ends, Sampling())
        for sampling in (Sampling, lambda **more: Sampling(temperature=0.01, **more)):
            forbidden = sampling(logit_bias=[(likeliest, -100.0)])
            assert (await answer(ends, forbidden))[1][0] != likeliest
            wanted = sampling(logit_bias=[(4321, 100.0)])
            assert set((await answer(ends, wanted))[1]) == {4321}


JSON_SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer", "minimum": -5, "maximum": 5000},
            {"type": "string", "maxLength": 8},
            {"enum": ["red", "green", 7, None]},
            {"const": {"a": [1]}},
        ]
    ),
    lambda inner: (
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner, "maxItems": st.integers(1, 3)}
        )
        | st.dictionaries(st.text('abcé"\\ ', min_size=1, max_size=4), inner, max_size=3).map(
            lambda found: {
                "type": "object",
                "properties": found,
                "required": sorted(found),
                "additionalProperties": False,
            }
        )
        | st.lists(inner, min_size=1, max_size=3).map(lambda found: {"anyOf": found})
    ),
    max_leaves=5,
)


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value fits a schema of the kind above."""
    if "anyOf" in schema:
        return any(is_valid(value, each) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return bool(value == schema["const"])
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return isinstance(value, int) and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "array":
            fits = isinstance(value, list) and len(value) <= schema["maxItems"]
            return fits and all(is_valid(each, schema["items"]) for each in value)
        case _:
            fits = isinstance(value, dict) and set(value) == set(schema["properties"])
            return fits and all(is_valid(value[k], v) for k, v in schema["properties"].items())


def draw(grammars: Grammars, constraint: Constraint, choose: Any) -> str | None:
    """Draw an answer of allowed tokens; None where it does not end soon."""
    vocabulary, text = grammars.vocabulary, b""
    for _ in range(400):
        allowed = constraint.allowed().nonzero()[0].tolist()
        assert allowed, text
        ending = [token for token in allowed if vocabulary.is_end(token)]
        if ending:
            return text.decode()
        token = choose(allowed)
        constraint.accept(token)
        text += vocabulary.piece(token)
    return None


@settings(max_examples=300)
@given(JSON_SCHEMAS, st.randoms(use_true_random=False))
def test_whatever_may_be_drawn_fits_the_schema(
    grammars: Grammars, schema: dict[str, Any], chance: Any
) -> None:
    """Token by token at random: nothing but the grammar keeps it in shape."""
    spaced = {**schema, "x-guidance": {"whitespace_flexible": False}}
    lark = grammars.read(f"start: %json {json.dumps(spaced)}", is_gbnf=False)
    found = draw(grammars, grammars.begin(lark), chance.choice)
    if found is not None:
        assert is_valid(json.loads(found), schema), (found, schema)


def test_what_leaves_no_choice_is_said_as_it_is(grammars: Grammars) -> None:
    """No space before it, where the tokenizer puts one at the beginning of a text."""
    lark = grammars.read('start: "ab" /[0-9]/ "ab a"', is_gbnf=False)
    found = draw(grammars, grammars.begin(lark), lambda allowed: allowed[0])
    assert re.fullmatch("ab[0-9]ab a", found or "")


def test_tokens_that_are_no_text_are_never_drawn(grammars: Grammars) -> None:
    """A grammar that allows their spelling means the text."""
    allowed = grammars.begin(grammars.read('start: "<s>" /(.|\\n)*/', is_gbnf=False)).allowed()
    pieces = [grammars.vocabulary.piece(int(each), special=True) for each in allowed.nonzero()[0]]
    assert pieces == [b"<"]


@pytest.mark.parametrize(
    ("schema", "named"),
    [({"if": {}}, "if"), ({"type": "nonsense"}, "nonsense"), ({"minimum": 5, "maximum": 3,
      "type": "integer"}, "minimum"), ({"$ref": "https://example.com/x"}, "example.com")],
)  # fmt: skip
def test_what_a_schema_says_in_vain_is_named(
    grammars: Grammars, schema: dict[str, Any], named: str
) -> None:
    """Rather than left out of what the answer keeps to."""
    with pytest.raises(UserError, match=named):
        grammars.read(f"start: %json {json.dumps(schema)}", is_gbnf=False)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("object"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "items", "enum", "anyOf", "allOf", "not", "pattern",
                 "minimum", "maxLength", "required", "$ref", "$defs", "const", "format",
                 "multipleOf"]
            )
            | st.text(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)  # fmt: skip


@given(
    st.dictionaries(st.text() | st.sampled_from(["type", "properties"]), ANY_JSON), st.booleans()
)
def test_any_json_is_a_schema_or_refused(
    grammars: Grammars, schema: dict[str, Any], strict: bool
) -> None:
    """However little sense it makes."""
    with suppress(UserError):
        grammars.read(json_shape(schema, strict=strict).grammar, is_gbnf=False)


@given(st.text() | st.text('root:=%json"{}[]()|*+?<>/\\.\n 1,'), st.booleans())
def test_any_text_is_a_grammar_or_refused(grammars: Grammars, text: str, is_gbnf: bool) -> None:
    """No text makes an error of another kind."""
    with suppress(UserError):
        grammars.read(text, is_gbnf=is_gbnf)
