"""Sizes as a person writes them."""

import re

from p2pinfer.core.errors import UserError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


BARE_BYTES_MIN = 1_000_000
"""A smaller number without a unit is one of which the unit was left out."""


def parse_bytes(name: str, text: str | None) -> int | None:
    """Return the bytes that ``2GiB``, ``500M`` or a bare number stands for; raises UserError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", text.strip().lower())
    if not found or found[2] not in _UNITS:
        raise UserError(f"--{name} {text} is not a size such as 2GiB or 500MB")
    size = int(float(found[1]) * _UNITS[found[2]])
    if not found[2] and 0 < size < BARE_BYTES_MIN:
        raise UserError(f"--{name} {text} lacks its unit: write {found[1]}GiB, for example")
    return size


def check_range(name: str, value: float, least: float, most: float = float("inf")) -> None:
    """Raise UserError unless an option's value lies in its range."""
    if not least <= value <= most:
        bounds = f"at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise UserError(f"--{name} must be {bounds}, not {value}")
