"""Texts for the steps before a node serves or answers."""

from collections.abc import Callable
from pathlib import Path

from p2pinfer.engine.cores import engine_cores, label

Step = Callable[[str], None]
"""Called with the step that begins; its text ends with an ellipsis."""


def ignore(_: str) -> None:
    """Ignore a step."""


def loading(what: str, paths: tuple[Path, ...], threads: int | None) -> str:
    """Return the text for loading slices, or for probing them, the first time on a machine."""
    named = label(threads or len(engine_cores()), is_most=threads is None)
    if all(path.with_name(f"{path.name}.probe-{named}.json").exists() for path in paths):
        return f"loading {what} …"
    return f"probing {what} for settings that are fast and exact (once on this machine) …"
