"""What an answer can be held to, as a grammar: JSON, a schema, a text in GBNF.

Grammars are llguidance's dialect of Lark, which knows JSON Schema by itself. What is made here is
checked by ``Tokenizer.read_grammar`` before an answer is held to it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

WHITE_SPACE = r"( |\n {0,20})?"
"""Between the parts of JSON: small models would go on with it for ever."""


class Thoughts(Enum):
    """Whether an answer begins with what the model thinks."""

    NONE = auto()
    MAY_BEGIN = auto()
    ARE_BEGUN = auto()
    """The prompt ends with the mark that opens them."""


THOUGHTS_BEGIN, THOUGHTS_END = "<think>", "</think>"
"""How the models that think out loud mark it: those of the families that can be run."""


@dataclass(frozen=True)
class Shape:
    """What an answer's text is to be."""

    grammar: str
    is_gbnf: bool = False
    is_whole: bool = True
    """It says nothing of thoughts, so they may stand before it; otherwise it allows any text."""


_VALUES = ("const", "enum", "default", "examples")
"""Of a schema: what lies below them is no schema."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
"""Of a schema: what lies below them are schemas by names of their own."""

_CONDITIONS = ("allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas")
"""Where one of these stands beside properties, what is left out may be named there."""

_FAR_CONDITIONS = ("allOf", "if", "not", "dependentSchemas", "unevaluatedProperties")
"""Where one of these stands, to close an object somewhere else may contradict it."""


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have the properties that it names, and no others.

    JSON Schema allows any others unless a schema forbids them. Who names some wants those, and a
    small model goes on with others until nothing fits any more. What fits the result fits the
    schema. An object that says something about others itself, or whose properties may be named
    elsewhere, stays as it is.
    """
    found = dict(schema)
    return found if _mentions(found, _FAR_CONDITIONS) else _closed(found)


def _mentions(schema: Any, words: tuple[str, ...]) -> bool:
    if isinstance(schema, list):
        return any(_mentions(each, words) for each in schema)
    if not isinstance(schema, dict):
        return False
    if "properties" in schema and any(word in schema for word in _CONDITIONS):
        return True
    below = [value for name, value in schema.items() if name not in (*_VALUES, *_MAPS)]
    for name in _MAPS:
        named = schema.get(name)
        below += list(named.values()) if isinstance(named, dict) else []
    return any(word in schema for word in words) or any(_mentions(each, words) for each in below)


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for name, each in schema.items():
        if name in _MAPS and isinstance(each, dict):
            found[name] = {inner: _closed(value) for inner, value in each.items()}
        else:
            found[name] = each if name in _VALUES else _closed(each)
    named, required = schema.get("properties"), schema.get("required", [])
    if (
        isinstance(named, dict)
        and named
        and not {"additionalProperties", "patternProperties", "propertyNames"} & found.keys()
        and isinstance(required, list)
        and all(isinstance(each, str) and each in named for each in required)
        and schema.get("minProperties", 0) in range(len(named) + 1)
    ):
        found["additionalProperties"] = False
    return found


def json_rule(schema: Mapping[str, Any], *, strict: bool) -> str:
    """Return the right-hand side of a rule for JSON that fits a schema.

    Args:
        schema: JSON Schema.
        strict: refuse it where it says what cannot be held to; otherwise that is left out.
    """
    how = {"whitespace_pattern": WHITE_SPACE, "lenient": not strict}
    return "%json " + json.dumps({**closed(schema), "x-guidance": how})


def json_shape(schema: Mapping[str, Any], *, strict: bool) -> Shape:
    """Hold an answer to JSON that fits a schema; as ``json_rule``."""
    return Shape(f"start: {json_rule(schema, strict=strict)}")


def with_thoughts(grammar: str, thoughts: Thoughts) -> str:
    """Return a grammar that allows thoughts before what another one asks for."""
    if thoughts is Thoughts.NONE:
        return grammar
    begin, end = THOUGHTS_BEGIN, THOUGHTS_END.replace("/", r"\/")
    is_begun = thoughts is Thoughts.ARE_BEGUN
    lead = [
        f"start: thoughts{'' if is_begun else '?'} space @shape",
        rf"thoughts[lazy]: /{'' if is_begun else begin}(.|\n)*{end}/",
        r"space: /[ \n]{0,8}/",
    ]
    shape = {"name": "shape", "lark_grammar": grammar}
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(lead)}, shape]})
