"""Teaching a model at home: lessons in, a model with an adapter out.

    data/learning/KEY/rows-N.f32     the rows of a lesson in front of the trained layers
    data/learning/KEY/state.npz      where the learning stands, every ``KEEP_S``
    data/learning/KEY/noise          what the noise is made of, where there is any
    data/learning/KEY/lock           held by the process that learns

KEY is a hash over everything that the result depends on. So a run that was killed goes on when the
same is asked for again, and ends with the same adapter. The folder is removed at the end.
"""

import fcntl
import json
import os
import shutil
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import numpy as np
import trio
from blake3 import blake3
from threadpoolctl import threadpool_limits

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.llama.memory import available_bytes, check_runs, swap_bytes
from p2pinfer.engine.store.adapters import Matrices, adapter_bytes, keep_adapter
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.engine.store.disk import size_text
from p2pinfer.engine.training.descent import (
    SECRET_BYTES,
    Course,
    Example,
    LearningState,
    learn,
    mean_loss,
)
from p2pinfer.engine.training.network import Network
from p2pinfer.engine.training.weights import MATRICES, Floats, read_top, top_bytes
from p2pinfer.node.lesson_rows import ComputeRows, RowsKept, Worded
from p2pinfer.places import data_dir

KEEP_S: Final = 10.0
"""Between two times that the state is kept: at most so much work is lost."""

_KEY_CONTEXT: Final = "p2pinfer 1 what an adapter is learned from"


@dataclass(frozen=True)
class Options:
    """What is learned, and how."""

    layers: int
    """The last ones of the model, which are trained."""
    rank: int
    course: Course
    held_out: float
    """The share of lessons that are not learned, to see what else was."""
    threads: int = 1
    """For matrices."""


@dataclass(frozen=True, slots=True)
class LearningProgress:
    """How far it is."""

    what: str
    """``rows`` while they are computed, then ``learning``."""
    done: int
    total: int
    loss: float | None = None
    """Of the latest step's lessons."""


@dataclass
class Report:
    """What came of it; losses are means of natural logarithms per token."""

    lessons: int
    held_out: int
    steps: int = 0
    resumed_at: int = 0
    """How many of the steps an earlier run had taken."""
    loss_before: float = 0.0
    loss_after: float = 0.0
    held_out_before: float | None = None
    held_out_after: float | None = None
    matrices: Matrices = field(default_factory=dict, repr=False)
    """The adapter's A and B."""


@contextmanager
def workplace(model: ModelId, data: bytes, options: Options) -> Iterator[Path]:
    """Give the folder of a task, which no other process uses meanwhile.

    Args:
        model: what learns.
        data: the lessons' file.
        options: how.

    Raises:
        UserError: another process is at it.
    """
    how = asdict(options)
    if not options.course.noise:  # as before there was any: a task that was begun then goes on
        del how["course"]["noise"]
    said = json.dumps([model, how], sort_keys=True, default=attrs.asdict).encode()
    key = blake3(said + b"\0" + data, derive_key_context=_KEY_CONTEXT).hexdigest(length=16)
    folder = data_dir() / "learning" / key
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError("another process is learning the same already") from error
        yield folder


def needed_bytes(model: PartsModel, worded: Sequence[Worded], options: Options) -> int:
    """Return about how much memory the learning takes, besides Python itself."""
    weights = top_bytes(model.manifest, options.layers)
    rows, width = max(len(each.tokens) for each in worded), model.info.width
    answer = max(len(each.tokens) - each.start for each in worded)
    shapes = [row.shape for row in model.manifest.tensors if row.name.startswith("blk.0.")]
    sizes = [shape for shape in shapes if len(shape) == 2]
    passed = rows * sum(sum(shape) for shape in sizes)  # what each matrix takes and gives
    heads = model.header.integer(f"{model.info.architecture}.attention.head_count") or 1
    passed += 4 * heads * rows * rows
    trained = sum(shape[1] * options.rank for shape in sizes)
    logits = 4 * answer * model.info.vocabulary_tokens
    half = options.layers * (passed + 8 * trained)  # gradients, their means, and what makes them
    return weights + 4 * (half + logits + 8 * rows * width)


def check_memory(model: PartsModel, needed: int) -> None:
    """Raise UserError if the learning cannot fit in memory."""
    check_runs(
        f"learning the last layers of {model.info.name}", needed, available_bytes(), swap_bytes()
    )


async def compute_rows(
    kept: RowsKept,
    worded: Sequence[Worded],
    compute: ComputeRows,
    tell: Callable[[LearningProgress], None],
) -> None:
    """Compute and keep the rows that are not here yet; raises as ``compute``."""
    for index, each in enumerate(worded):
        tell(LearningProgress("rows", index, len(worded)))
        if not kept.holds(index, each):
            rows = await compute(each.tokens[:-1])
            if len(rows) != kept.size_of(each):
                raise UserError(f"{len(rows):,} bytes are not the rows of a lesson: try again")
            kept.keep(index, rows)
    tell(LearningProgress("rows", len(worded), len(worded)))


async def teach(
    folder: Path,
    model: PartsModel,
    worded: Sequence[Worded],
    held_out: set[int],
    options: Options,
    tell: Callable[[LearningProgress], None],
    may_work: Callable[[], Awaitable[None]],
) -> Report:
    """Learn from lessons whose rows are kept, or go on where a killed run was.

    Args:
        folder: of the task.
        model: what learns; its last layers and its head are here.
        worded: the lessons.
        held_out: which of them are not learned.
        options: how.
        tell: called with the progress.
        may_work: waits before each step as long as the machine is needed otherwise.

    Raises:
        UnsupportedModel, UserError: the model's layers cannot be trained, or it has fewer.
        MissingChunk, DamagedPart: one of their parts is not here, or no longer.
        OSError: the disk is full.
    """
    with threadpool_limits(options.threads, user_api="blas"):
        return await _teach(folder, model, worded, held_out, options, tell, may_work)


async def _teach(
    folder: Path,
    model: PartsModel,
    worded: Sequence[Worded],
    held_out: set[int],
    options: Options,
    tell: Callable[[LearningProgress], None],
    may_work: Callable[[], Awaitable[None]],
) -> Report:
    kept = RowsKept(folder, model.info.width)
    examples = [kept.example(index, each) for index, each in enumerate(worded)]
    learned = [each for index, each in enumerate(examples) if index not in held_out]
    unseen = [examples[index] for index in sorted(held_out)]
    top = await trio.to_thread.run_sync(read_top, model, options.layers)
    network = Network(top, options.rank, options.course.seed)
    report = Report(len(learned), len(unseen))
    state, before = _kept_state(folder, network.trained.size)
    loss = partial(_mean_loss, network, may_work)
    if before is None:
        before = await loss(state, learned), await loss(state, unseen) if unseen else None
        _keep_state(folder, state, before)
    report.loss_before, report.held_out_before = before[0] or 0.0, before[1]
    report.resumed_at = state.step
    secret = noise_secret(folder) if options.course.noise else b""
    steps = learn(network, state, learned, options.course, secret)
    total, kept_s = options.course.steps(len(learned)), time.monotonic()
    tell(LearningProgress("learning", state.step, total))
    while True:
        await may_work()
        latest = await trio.to_thread.run_sync(next, steps, None)
        if latest is None:
            break
        tell(LearningProgress("learning", state.step, total, latest))
        if time.monotonic() - kept_s >= KEEP_S:
            _keep_state(folder, state, before)
            kept_s = time.monotonic()
    _keep_state(folder, state, before)
    report.steps = state.step
    report.loss_after = await loss(state, learned) or 0.0
    report.held_out_after = await loss(state, unseen) if unseen else None
    report.matrices = adapter_matrices(network, state.numbers)
    return report


def add_learned(
    model: PartsModel, report: Report, options: Options, name: str, gguf: Path | None
) -> Manifest:
    """Keep what was learned as a child of the model, and as a file of its own if one is named.

    Raises:
        UserError: it does not fit.
        OSError: the file cannot be written.
    """
    alpha = float(options.rank)  # so that B A counts as it is
    base = model.manifest
    if gguf is not None:
        draft = gguf.with_name(f".{gguf.name}.new")
        draft.write_bytes(adapter_bytes(base, report.matrices, alpha))
        draft.replace(gguf)
    return keep_adapter(model.store, base, report.matrices, alpha, name, base.license)


def noise_secret(folder: Path) -> bytes:
    """Return what the noise of a task is made of: random, and the same each time it goes on.

    If it were drawn again for a step that is taken again, both together would show more.
    """
    path = folder / "noise"
    if not path.exists():
        draft = path.with_suffix(".new")
        draft.touch(0o600)
        draft.write_bytes(os.urandom(SECRET_BYTES))
        draft.replace(path)
    return path.read_bytes()


def forget(folder: Path) -> None:
    """Remove the folder of a task that is done."""
    shutil.rmtree(folder, ignore_errors=True)


def needs_text(needed: int, worded: Sequence[Worded], width: int) -> str:
    """Say what the learning takes of this machine."""
    rows = sum(RowsKept(Path(), width).size_of(each) for each in worded)
    return f"{size_text(needed)} of memory, and {size_text(rows)} of disk until it is done"


async def _mean_loss(
    network: Network,
    may_work: Callable[[], Awaitable[None]],
    state: LearningState,
    examples: Sequence[Example],
) -> float:
    return await mean_losses(network, may_work, state.numbers, examples)


async def mean_losses(
    network: Network,
    may_work: Callable[[], Awaitable[None]],
    numbers: Floats,
    examples: Sequence[Example],
) -> float:
    """Return the mean loss of some examples; waits between them as ``may_work`` says."""
    found = []
    for example in examples:
        await may_work()
        found.append(await trio.to_thread.run_sync(mean_loss, network, numbers, [example]))
    return float(np.mean(found))


def adapter_matrices(network: Network, numbers: Floats) -> Matrices:
    """Return the adapter that some numbers make."""
    first, trained = network.shape.first, network.trained.views(numbers)
    return {
        f"blk.{first + index}.{name}": (network.frozen[index][name], trained[index][name])
        for index in range(len(network.top.layers))
        for name in MATRICES
    }


_Before = tuple[float | None, float | None]
"""The loss of what is learned, and of what is held out."""


def _keep_state(folder: Path, state: LearningState, before: _Before) -> None:
    """Write where the learning stands; the file is there whole or not at all."""
    said = json.dumps([state.step, state.losses, state.is_learned, before])
    draft = folder / "state.new.npz"
    np.savez(
        draft,
        numbers=state.numbers,
        mean=state.mean,
        squares=state.squares,
        said=np.frombuffer(said.encode(), np.uint8),
    )
    draft.replace(folder / "state.npz")


def _kept_state(folder: Path, size: int) -> tuple[LearningState, _Before | None]:
    """Read where the learning stood, and the losses before it; or begin."""
    try:
        # Opened here: NumPy leaves a file open that is no archive
        with (folder / "state.npz").open("rb") as file, np.load(file) as kept:
            step, losses, is_learned, before = json.loads(bytes(kept["said"]))
            numbers, mean, squares = (kept[name] for name in ("numbers", "mean", "squares"))
    except (
        OSError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
    ):  # there is none, or another version wrote it
        return LearningState.new(size), None
    return LearningState(numbers, mean, squares, step, losses, is_learned), (before[0], before[1])
