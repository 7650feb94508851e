"""A small file that is there whole or not at all, whatever ends the process that writes it."""

import secrets
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file in place of the one that is there, if any.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.touch(mode=0o600)  # nobody else's business
        draft.write_text(text)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
