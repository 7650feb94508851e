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
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from p2pinfer.client.call_reading import GrowingText, NotACall, Reading, Schemas, told
from p2pinfer.client.grammars import json_rule
from p2pinfer.core.errors import UserError

_TEXT_LIMITS = ("pattern", "format", "minLength", "maxLength")
"""What a schema may ask of a text that stands as it is, and no grammar here holds it to."""


def read_functions(source: GrowingText, schemas: Schemas, *, known: bool) -> Reading:
    """Read functions one behind the other; as ``call_reading.read_objects``."""
    while (yield from source.skip_spaces()):
        if not (yield from source.skip("<function=")):
            return
        name = yield from source.up_to(">")
        yield from source.skip_spaces()
        is_empty = yield from source.skip("</function>")
        is_call = is_empty or (yield from source.skip("<parameter="))
        if not is_call or (known and name not in schemas):
            raise NotACall
        pieces = iter(()) if is_empty else _arguments(source, schemas.get(name, {}))
        yield from told(name, pieces)
        source.drop()


def _arguments(source: GrowingText, schema: Mapping[str, Any]) -> Iterator[str | None]:
    """Yield the JSON of arguments, behind the first one's mark.

    They are texts where the schema wants texts, else what they spell.
    """
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    yield "{"
    lead, goes_on = "", True
    while goes_on:
        try:
            key = yield from source.up_to(">")
        except NotACall:
            return
        yield f"{lead}{json.dumps(key, ensure_ascii=False)}: "
        if not (yield from _typed(source, known.get(key))):
            return
        lead = ", "
        yield from source.skip_spaces()
        goes_on = yield from source.skip("<parameter=")
    yield from source.skip("</function>")
    yield "}"


def _typed(source: GrowingText, schema: Any) -> Generator[str | None, None, bool]:
    """Yield the JSON of a value; a text as it comes. Returns whether it came to an end."""
    end = "\n</parameter>" if (yield from source.skip("\n")) else "</parameter>"
    types = _types(schema)
    value, is_text = "", "string" in types
    is_begun = is_text and "null" not in types
    if is_begun:
        yield '"'
    pieces = source.pieces(end)
    while True:
        try:
            piece = next(pieces)
        except StopIteration as ended:
            is_whole = bool(ended.value)
            break
        if piece is None:
            yield None
        elif is_begun:
            yield _inner(piece)
        else:
            value += piece
            if is_text and not "null".startswith(value):
                is_begun = True
                yield f'"{_inner(value)}'
    if is_begun:
        yield '"' if is_whole else ""
    elif is_whole:
        yield json.dumps(_value(value, schema), ensure_ascii=False)
    return is_whole


def _inner(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


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
