"""The words for what goes on before anything is served or answered."""

from collections.abc import Callable
from pathlib import Path

Step = Callable[[str], None]
"""Told what begins now; the text ends with an ellipsis."""


def ignore(_: str) -> None:
    """Tell nobody."""


def loading(what: str, paths: tuple[Path, ...], threads: int) -> str:
    """Say that an engine loads its slices; the first time on a machine it probes them, too."""
    if all(any(path.parent.glob(f"{path.name}.probe-{threads}*")) for path in paths):
        return f"loading {what} …"
    return f"probing {what} for settings that are fast and exact (once on this machine) …"
