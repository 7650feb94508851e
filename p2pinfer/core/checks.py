"""Validators for message fields: run when a message is made, and again when one arrives.

One plain function per check instead of attrs' validators nested: each runs twice per boundary and
token.
"""

from typing import Any

from attrs import Attribute
from attrs import validators as v

ADDRESSES_MAX = 8
"""Of one peer. A dialling peer tries all of them, so they are few."""

ADDRESS_CHARS_MAX = 256
LAYERS_MAX = 1024
POSITIONS_MAX = 1 << 22


def whole(low: int, high: int) -> Any:
    """Check for a whole number from ``low`` to ``high``, both included."""

    def check(_: object, attribute: "Attribute[int]", value: int) -> None:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{attribute.name} must be a whole number from {low} to {high}")

    return check


def sized(kind: type, most: int, least: int = 0, *, of: type | None = None) -> Any:
    """Check for a text, bytes, or a tuple whose items are all of type ``of``."""

    def check(_: object, attribute: "Attribute[Any]", value: Any) -> None:
        found: Any = type(value)
        if found is not kind or not least <= len(value) <= most:
            raise ValueError(f"{attribute.name} must be {kind.__name__} of {least} to {most}")
        if of and not all(type(item) is of for item in value):
            raise ValueError(f"{attribute.name} must hold only {of.__name__}")

    return check


def text(most: int, least: int = 0) -> Any:
    """Check for a text of ``least`` to ``most`` characters."""
    return sized(str, most, least)


def line(most: int, least: int = 0) -> Any:
    """Check for a text of ``least`` to ``most`` characters, with no terminal control codes."""
    is_sized = text(most, least)

    def check(instance: object, attribute: "Attribute[str]", value: str) -> None:
        is_sized(instance, attribute, value)
        if not value.isprintable():
            raise ValueError(f"{attribute.name} must be printable")

    return check


def blob(most: int, least: int = 0) -> Any:
    """Check for ``least`` to ``most`` bytes."""
    return sized(bytes, most, least)


def many(kind: type, most: int, least: int = 0) -> Any:
    """Check for a tuple of ``least`` to ``most`` items of one type."""
    return sized(tuple, most, least, of=kind)


def shown_size(data: bytes) -> str:
    """Return a replacement for bytes in a message's repr."""
    return f"<{len(data)} bytes>"


PEER = line(64, 46)
"""base58 of an Ed25519 public key has 52 characters, of a hash 46."""

HASH: Any = v.matches_re(r"[0-9a-f]{64}")
"""A BLAKE3 hash: of a manifest, a part, or anything else named by its content."""

SESSION = blob(16, 16)
NUMERICS: Any = v.matches_re(r"[0-9a-f]{32}")
ADDRESSES: Any = v.deep_iterable(line(ADDRESS_CHARS_MAX), v.max_len(ADDRESSES_MAX))
LAYER = whole(0, LAYERS_MAX)
