"""Schemas that answers are held to."""

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.client.grammars import closed

NAMED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = {**NAMED, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        (NAMED, CLOSED),
        (
            {"properties": {"properties": {"type": "string"}, "default": NAMED}},
            {
                "properties": {"properties": {"type": "string"}, "default": CLOSED},
                "additionalProperties": False,
            },
        ),
        ({"type": "array", "items": NAMED}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [NAMED, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        (
            {"$defs": {"x": NAMED}, "properties": {"y": {"$ref": "#/$defs/x"}}},
            {
                "$defs": {"x": CLOSED},
                "properties": {"y": {"$ref": "#/$defs/x"}},
                "additionalProperties": False,
            },
        ),
    ],
)
def test_objects_have_what_is_named_alone(schema: dict[str, Any], found: dict[str, Any]) -> None:
    """Wherever they stand."""
    assert closed(schema) == found


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**NAMED, "additionalProperties": True},
        {**NAMED, "patternProperties": {"^x": {}}},
        {**NAMED, "required": ["b"]},
        {**NAMED, "minProperties": 2},
        {**NAMED, "anyOf": [{"properties": {"b": {}}, "required": ["b"]}]},
        {"allOf": [NAMED, {"properties": {"b": {}}}]},
        {"not": NAMED},
        {"const": {"properties": {"a": {}}}},
        {"enum": [NAMED]},
    ],
)
def test_others_stay_where_they_may_be_meant(schema: dict[str, Any]) -> None:
    """By the object itself, or by another part of the schema."""
    assert closed(schema) == schema


VALUES = st.recursive(
    st.integers(0, 2) | st.none(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner) | st.lists(inner, max_size=2),
    max_leaves=5,
)
SCHEMAS: Any = st.recursive(
    st.sampled_from([{}, {"type": "integer"}, {"type": "null"}, {"const": {"a": 1}}]),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
            "additionalProperties": inner,
        },
    ),
    max_leaves=8,
)


@given(SCHEMAS, VALUES)
def test_what_fits_the_closed_schema_fits_the_schema(schema: dict[str, Any], value: Any) -> None:
    """It only says less."""
    if jsonschema.Draft202012Validator(closed(schema)).is_valid(value):
        assert jsonschema.Draft202012Validator(schema).is_valid(value)
