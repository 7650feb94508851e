"""Arguments that are written one by one between marks, as Qwen3-Coder has them.

    <function=NAME>
    <parameter=NAME>
    VALUE
    </parameter>
    </function>

A value that may be a text stands as it is; any other is JSON. So it takes the tool's schema to know
what a value is.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from p2pinfer.client.grammars import json_rule
from p2pinfer.core.errors import UserError

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>\n?(.*?)(?:</function>\s*|\Z)", re.DOTALL)
_PARAMETER = re.compile(
    r"\s*<parameter=([^>\n]+)>\n?(.*?)(?:\n?</parameter>|(?=<parameter=)|\Z)", re.DOTALL
)

_TEXT_LIMITS = ("pattern", "format", "minLength", "maxLength")
"""What a schema may ask of a text that stands as it is, and no grammar here holds it to."""


def read_functions(text: str) -> list[tuple[str, dict[str, str]]]:
    """Return the names of the functions called, and their arguments as they stand.

    Empty where anything else stands between them.
    """
    found, at = [], 0
    while text[at:].strip():
        function = _FUNCTION.match(text, at)
        if not function or function.end() == at:
            return []
        values, inner = {}, 0
        body = function[2]
        while body[inner:].strip():
            parameter = _PARAMETER.match(body, inner)
            if not parameter or parameter.end() == inner:
                return []
            values[parameter[1]], inner = parameter[2], parameter.end()
        found.append((function[1], values))
        at = function.end()
    return found


def typed(values: Mapping[str, str], schema: Mapping[str, Any]) -> str:
    """Return the JSON of arguments: texts where the schema wants texts, else what they spell."""
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    return json.dumps(
        {name: _value(text, known.get(name)) for name, text in values.items()}, ensure_ascii=False
    )


def _value(text: str, schema: Any) -> Any:
    types = _types(schema)
    if "string" in types and not ("null" in types and text == "null"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _types(schema: Any) -> set[str]:
    """Return the types that a schema names; none where it does not say, or is none."""
    if not isinstance(schema, dict):
        return set()
    named = schema.get("type")
    found = {
        each
        for each in ([named] if isinstance(named, str) else _items(named))
        if isinstance(each, str)
    }
    for word in ("anyOf", "oneOf"):
        for each in _items(schema.get(word)):
            found |= _types(each)
    one_of = [*_items(schema.get("enum")), schema.get("const")]
    return found | ({"string"} if any(isinstance(each, str) for each in one_of) else set())


def _items(value: Any) -> list[Any]:
    """Return a list that a schema may have; an empty one in place of anything else."""
    return value if isinstance(value, list) else []


def argument_rules(schema: Mapping[str, Any], name: str, *, strict: bool) -> Iterator[str]:
    """Yield grammar rules for a call's arguments, the first of which is called ``name``.

    They come in the order of the schema; what it does not require may be missing.

    Raises:
        UserError: a strict schema asks of a text what a text between marks cannot be held to.
    """
    properties, required = schema.get("properties"), _items(schema.get("required"))
    if not isinstance(properties, dict):
        yield rf'{name}: ("<parameter=" /[\w.-]+/ ">\n" {name}_text)*'
        yield from _text_rule(name)
        return
    needs_text = False
    parts = []
    for at, (called, wanted) in enumerate(properties.items()):
        head = json.dumps(f"<parameter={called}>\n", ensure_ascii=False)
        if isinstance(wanted, dict) and (choices := _texts(wanted)):
            value = f"({' | '.join(json.dumps(each, ensure_ascii=False) for each in choices)})"
            value += ' "\\n</parameter>\\n"'
        elif "string" in _types(wanted):
            if strict and any(word in wanted for word in _TEXT_LIMITS):
                raise UserError(f"{called!r}: this model writes texts that cannot be held to more")
            value, needs_text = f"{name}_text", True
        else:
            value = f'{name}_{at} "\\n</parameter>\\n"'
        parts.append(f"({head} {value}){'' if called in required else '?'}")
    yield f"{name}: " + (" ".join(parts) or '""')
    for at, wanted in enumerate(properties.values()):
        if "string" not in _types(wanted):
            more = {word: schema[word] for word in ("$defs", "definitions") if word in schema}
            whole = {**more, **wanted} if isinstance(wanted, dict) else {}
            yield f"{name}_{at}: {json_rule(whole, strict=strict)}"
    if needs_text:
        yield from _text_rule(name)


def _texts(schema: Mapping[str, Any]) -> list[str]:
    """Return the texts that a value may be, where these are all that it may be."""
    listed = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return [each for each in _items(listed) if all(isinstance(each, str) for each in listed)]


def _text_rule(name: str) -> Iterator[str]:
    yield rf"{name}_text[lazy]: /(.|\n)*\n<\/parameter>\n/"
