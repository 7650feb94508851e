"""Texts for the steps before a node serves or answers."""

from collections.abc import Callable
from pathlib import Path

Step = Callable[[str], None]
"""Called with the step that begins; its text ends with an ellipsis."""


def ignore(_: str) -> None:
    """Ignore a step."""


def loading(what: str, paths: tuple[Path, ...], threads: int) -> str:
    """Return the text for loading slices, or for probing them, the first time on a machine."""
    if all(any(path.parent.glob(f"{path.name}.probe-{threads}*")) for path in paths):
        return f"loading {what} …"
    return f"probing {what} for settings that are fast and exact (once on this machine) …"
