"""Finding the model that a person names, and showing progress while a new file is added."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.engine.store.disk import size_text
from p2pinfer.engine.store.split import Progress
from p2pinfer.engine.store.store import Store
from p2pinfer.logs import note
from p2pinfer.node import hub, model_supply
from p2pinfer.node.model_supply import Choose, open_whole
from p2pinfer.node.published import PublishedName, parse_published

YES_VARIABLE = "P2PINFER_YES"
"""Agrees to downloads, as --yes does."""

PLAIN_LINE_S = 5.0
"""Between lines of progress when there is no terminal."""


def name_model(name: str, store: Store, also: Progress = lambda *_: None) -> ModelId:
    """Return the id of the model that ``--model`` names; raises as ``model_supply.name_model``.

    ``also`` is called with the progress of adding a new file, too.
    """
    with adding_progress() as on_progress:
        is_announced = parse_published(name) is not None  # little of it is stored

        def show(what: str, done: int, total: int) -> None:
            nonlocal is_announced
            if not is_announced:
                is_announced = True
                note(f"storing the model's parts, {size_text(total)} of disk in {store.root}, once")
            on_progress(what, done, total)
            also(what, done, total)

        yes = os.environ.get(YES_VARIABLE, "").lower() in ("1", "true", "yes", "y")
        return model_supply.name_model(name, store, show, partial(download, yes=yes))


def download(name: PublishedName, on_progress: Progress, *, yes: bool) -> Mapping[Path, str]:
    """Show what a download would be, ask unless told ``yes``, and do it; raises as ``hub`` does."""
    offered = hub.offer(name)
    note(hub.offered_text(offered))
    if offered.left_bytes and not yes:
        _ask(offered.name)
    return hub.download(offered, on_progress)


def _ask(name: PublishedName) -> None:
    """Ask whether to download; raises UserError if the answer is no, or there is nobody to ask."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        print("Download it? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
        raise UserError("nothing was downloaded")
    raise UserError(f"nothing was downloaded; to agree: p2pinfer model add {name} --yes")


def default_model(store: Store) -> Choose:
    """Return a function that finds the default model's id, for when it turns out to be needed."""

    async def find() -> ModelId:
        return await trio.to_thread.run_sync(name_model, "default", store)

    return find


def draft_model(name: str | None, store: Store) -> PartsModel | None:
    """Return the model that ``--draft-model`` names, if any; raises UserError."""
    return open_whole(name_model(name, store), store) if name else None


@contextmanager
def adding_progress() -> Iterator[Progress]:
    """Show progress in bytes: a bar on a terminal, elsewhere an occasional line."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_progress()
        return
    words = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    columns = (*words, TransferSpeedColumn(), TimeRemainingColumn())
    bars = Bars(*columns, console=console, transient=True)
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        bars.start()  # not earlier: a question may come first
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done)

    try:
        yield show
    finally:
        bars.stop()


def _plain_progress() -> Progress:
    said_at = time.monotonic()  # a quick transfer prints nothing

    def show(what: str, done: int, total: int) -> None:
        nonlocal said_at
        if (now := time.monotonic()) - said_at >= PLAIN_LINE_S:
            said_at = now
            note(f"{what}: {size_text(done)} of {size_text(total)}")

    return show
