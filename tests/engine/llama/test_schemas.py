"""A thousand schemas: what a strict answer is held to, judged by a validator that is not ours."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from p2pinfer.client.grammars import json_shape
from p2pinfer.core.errors import UserError
from p2pinfer.engine.llama.binding import Vocabulary
from p2pinfer.engine.llama.constraints import Grammars
from tests.support.vocabularies import write_vocabulary

TOKENS_MAX = 400
DEFINED = {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0}}


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory) -> Grammars:
    """Give what a vocabulary of bytes can be held to: anything may be drawn."""
    path = tmp_path_factory.mktemp("vocabulary") / "v.gguf"
    write_vocabulary(path, ("<s>", "</s>", "<|im_end|>"), pairs=["aa"])
    return Grammars(Vocabulary.of_file(path))


def bounded(kind: str, least: str, most: str, limit: int) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a schema of a type with bounds, or without some."""
    return st.tuples(st.integers(0, limit), st.integers(0, limit), st.integers(0, 3)).map(
        lambda drawn: {
            "type": kind,
            **({least: min(drawn[:2])} if drawn[2] & 1 else {}),
            **({most: max(drawn[:2])} if drawn[2] & 2 else {}),
        }
    )


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a schema of objects, of whose properties some are required."""
    named = st.dictionaries(st.text('abcé"\\ $', min_size=1, max_size=4), inner, max_size=4)
    return st.tuples(named, st.randoms(use_true_random=False), st.sampled_from([False, {}])).map(
        lambda drawn: {
            "type": "object",
            "properties": drawn[0],
            "required": sorted(name for name in drawn[0] if drawn[1].random() < 0.6),
            "additionalProperties": drawn[2] if drawn[2] is False else {"type": "boolean"},
        }
    )


LEAVES = st.one_of(
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": ["string", "null"]},
            {"enum": ["red", "ü", 7, 1.5, None, [1], {"a": True}]},
            {"const": {"a": [1, "x"]}},
            {"$ref": "#/$defs/colour"},
            {"$ref": "#/$defs/count"},
            {"type": "string", "pattern": "^[a-c]{2,4}$"},
            {"type": "string", "format": "uuid"},
        ]
    ),
    bounded("integer", "minimum", "maximum", 5000),
    bounded("number", "minimum", "maximum", 50),
    bounded("string", "minLength", "maxLength", 9),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        st.tuples(inner, bounded("array", "minItems", "maxItems", 3)).map(
            lambda drawn: {**drawn[1], "items": drawn[0]}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda found: {"anyOf": found}),
    ),
    max_leaves=8,
)


def draw(grammars: Grammars, grammar: str, chance: Any) -> str | None:
    """Draw an answer at random, which ends as soon as it may; None where it does not in time."""
    constraint, vocabulary, text = grammars.begin(grammar), grammars.vocabulary, b""
    for _ in range(TOKENS_MAX):
        allowed = constraint.allowed().nonzero()[0].tolist()
        assert allowed, text
        if any(vocabulary.is_end(token) for token in allowed):
            return text.decode()
        closing = [t for t in allowed if vocabulary.piece(t) in (b'"', b"]", b"}", b",")]
        token = chance.choice(closing if closing and chance.random() < 0.3 else allowed)
        constraint.accept(token)
        text += vocabulary.piece(token)
    return None


@pytest.mark.long
def test_strict_answers_validate(grammars: Grammars) -> None:
    """A schema is refused, or its answer fits; most are answered."""
    counts = {"valid": 0, "refused": 0, "endless": 0}

    @settings(max_examples=1000, database=None)
    @given(SCHEMAS, st.randoms(use_true_random=False))
    def check(drawn: dict[str, Any], chance: Any) -> None:
        schema = {**drawn, "$defs": DEFINED}
        try:
            grammar = grammars.read(json_shape(schema, strict=True).grammar, is_gbnf=False)
        except UserError:
            counts["refused"] += 1
            return
        found = draw(grammars, grammar, chance)
        if found is None:
            counts["endless"] += 1
            return
        checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        checker.validate(json.loads(found))
        counts["valid"] += 1

    check()

    assert counts["valid"] > 800, counts
