"""Texts for the steps before a node serves or answers."""

from collections.abc import Callable, Iterable
from pathlib import Path

from p2pinfer.engine.cores import engine_cores, label
from p2pinfer.engine.gpu import Gpu
from p2pinfer.engine.store.assemble import PartsModel

Step = Callable[[str], None]
"""Called with the step that begins; its text ends with an ellipsis."""


def ignore(_: str) -> None:
    """Ignore a step."""


def loading(what: str, paths: tuple[Path, ...], threads: int | None, gpu: Gpu | None = None) -> str:
    """Return the text for loading slices, or for probing them, the first time on a machine."""
    if are_probed(paths, threads, gpu):
        return f"loading {what} …"
    return f"probing {what} for settings that are fast and exact (once on this machine) …"


def are_probed(paths: Iterable[Path], threads: int | None, gpu: Gpu | None) -> bool:
    """Whether slices have been probed on this machine, for as many threads and this GPU."""
    named = label(threads or len(engine_cores()), is_most=threads is None)
    named += gpu.suffix if gpu else ""
    return all(path.with_name(f"{path.name}.probe-{named}.json").exists() for path in paths)


def loading_ends(
    model: PartsModel, first: int, last: int, threads: int | None, gpu: Gpu | None
) -> str:
    """Say that a requester's own layers are being loaded."""
    layers = model.info.layers
    own = f"this machine's own layers, 0:{first} and {layers - last}:{layers}"
    if not first + last:
        own = "the embedding and the head"
    return loading(own, model.end_paths(first, last), threads, gpu)
