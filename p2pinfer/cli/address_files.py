"""Files of addresses, for ``--bootstrap``: one a line, and what follows a # does not count."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from p2pinfer.core.errors import UserError

FILE_BYTES_MAX: Final = 64 * 1024

LINES_MAX: Final = 64
"""Addresses in a file: all of them are dialled at once, and one that answers is enough."""


def without_files(words: Sequence[str]) -> tuple[str, ...]:
    """Return addresses, with each file among them replaced by those in it.

    A file is named as ``@FILE``, or simply by its path.

    Raises:
        UserError: a file cannot be read, or a line of it is no address.
    """
    found: list[str] = []
    for word in words:
        path = _file(word)
        found += [word] if path is None else _addresses(path)
    return tuple(found)


def _file(word: str) -> Path | None:
    """Return the file that a word names, if it is not an address."""
    if word.startswith("@"):
        return Path(word[1:]).expanduser()
    try:
        path = Path(word).expanduser()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # what can be no file's name
        return None


def _addresses(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        text = data.decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"cannot read the addresses in {path} ({reason})") from error
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    named = [(number, line) for number, line in enumerate(lines, 1) if line]
    if len(data) > FILE_BYTES_MAX or len(named) > LINES_MAX:
        raise UserError(f"{path} has more than {LINES_MAX} addresses: one that answers is enough")
    if not named:
        raise UserError(f"{path} has no address: write one a line, as p2pinfer join prints them")
    for number, line in named:
        if not line.startswith("/") or len(line.split()) > 1:
            raise UserError(
                f"{path}, line {number}: {line[:60]!r} is not an address such as"
                " /ip4/192.0.2.1/tcp/4001/p2p/<peer id>"
            )
        yield line
