"""How much disk a person lends, as an option says it."""

from p2pinfer.cli.sizes import parse_bytes
from p2pinfer.core.errors import UserError

SPACE_BYTES_MIN = 16 << 20
"""For ``--space``: with less than a row or two, a peer could keep nothing."""


def parse_space(name: str, text: str) -> int:
    """Return the bytes to lend; raises UserError."""
    found = parse_bytes(name, text)
    if not found or found < SPACE_BYTES_MIN:
        raise UserError(f"--{name} {text} is too little to keep anything: lend at least 16MiB")
    return found
