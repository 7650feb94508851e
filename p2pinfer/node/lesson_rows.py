"""What a model's frozen layers make of lessons, kept on the disk while it learns.

The rows in front of the trained layers are computed once: here, where the whole model is, or by a
swarm, whose last stage sends just these rows. They are the model's view of every token of a lesson:
the peers that compute them get what they get of any prompt.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.errors import PromptTooLong, UserError
from p2pinfer.core.regimes import split
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.llama.engine import LocalEnds, open_ends
from p2pinfer.engine.special_tokens import SpecialTokens, Spellings
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.engine.template import ChatTemplate
from p2pinfer.engine.training.descent import Example
from p2pinfer.node.lessons import Lesson, refuse
from p2pinfer.node.requester import Client

LESSON_TOKENS_MAX: Final = 1024
"""Attention of a trained layer keeps tokens x tokens numbers for each head."""

GREEDY: Final = Sampling(temperature=0)

ComputeRows = Callable[[Sequence[int]], Awaitable[bytes]]
"""Returns the rows of some tokens in front of the trained layers, as float32."""


class TextToTokens(Protocol):
    """What texts become tokens by; ``LocalEnds`` has it."""

    async def tokenize(
        self, text: str, *, special: bool, literal: Sequence[int] = (), most: int | None = None
    ) -> list[int]:
        """Return a text's tokens."""
        ...

    async def special_tokens(self) -> SpecialTokens:
        """Return the vocabulary's special tokens."""
        ...


@dataclass(frozen=True)
class Worded:
    """A lesson's tokens."""

    lesson: Lesson
    tokens: tuple[int, ...]
    start: int
    """How many of them ask; the rest answers, and ends the answer."""


async def word(
    lessons: Sequence[Lesson], path: Path, model: PartsModel, vocabulary: TextToTokens
) -> list[Worded]:
    """Make tokens of lessons, as the model's chat template has it.

    Raises:
        UserError: some are too long, or the template refuses them; their lines are named.
    """
    special = await vocabulary.special_tokens()
    template = ChatTemplate(model.info.chat_template, special)
    found: list[Worded] = []
    problems: list[tuple[int, str]] = []
    try:
        for lesson in lessons:
            try:
                found.append(await _worded(lesson, model, vocabulary, template, special))
            except PromptTooLong:
                problems.append(
                    (lesson.line, f"is longer than the {LESSON_TOKENS_MAX:,} tokens of a lesson")
                )
            except UserError as error:
                problems.append((lesson.line, f"is refused ({error})"))
    finally:
        await template.end()
    refuse(path, problems)
    return found


async def _worded(
    lesson: Lesson,
    model: PartsModel,
    vocabulary: TextToTokens,
    template: ChatTemplate,
    special: SpecialTokens,
) -> Worded:
    messages = model.advice.with_system(lesson.messages)
    asked = await template.render(messages[:-1])
    whole = await template.render(messages, options={"add_generation_prompt": False})
    text, literal = whole.text, whole.literal
    if not text.startswith(asked.text):  # the template puts something else before an old answer
        text = f"{asked.text}{lesson.answer}{special.eos}"
        inside = (at for at, _ in Spellings(special.control).find(lesson.answer))
        literal = (*asked.literal, *(len(asked.text) + at for at in inside))
    ends = (
        at + len(spelled)
        for at, spelled in Spellings(special.control).find(text)
        if at >= len(asked.text) and at not in literal
    )
    text = text[: next(ends, len(text))]  # what comes after the answer's end nobody generates
    encode = partial(vocabulary.tokenize, special=True, most=LESSON_TOKENS_MAX)
    prompt = await encode(asked.text, literal=asked.literal)
    tokens = await encode(text, literal=[at for at in literal if at < len(text)])
    start = next(
        (at for at, pair in enumerate(zip(prompt, tokens, strict=False)) if pair[0] != pair[1]),
        len(prompt),
    )
    if not 0 < start < len(tokens):
        raise UserError("its answer is no token long")
    return Worded(lesson, tuple(tokens), start)


class RowsKept:
    """The rows of lessons in a folder, one file each.

    Args:
        folder: where.
        width: numbers in a row.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self._folder, self._width = folder, width

    def holds(self, index: int, worded: Worded) -> bool:
        """Whether a lesson's rows are here."""
        try:
            size = self._path(index).stat().st_size
        except FileNotFoundError:
            return False
        return size == self.size_of(worded)

    def size_of(self, worded: Worded) -> int:
        """Return the bytes of a lesson's rows."""
        return 4 * self._width * (len(worded.tokens) - 1)

    def keep(self, index: int, rows: bytes) -> None:
        """Keep a lesson's rows; the file is there whole or not at all."""
        draft = self._path(index).with_suffix(".new")
        draft.write_bytes(rows)
        draft.replace(self._path(index))

    def example(self, index: int, worded: Worded) -> Example:
        """Return a lesson as training wants it."""
        answer = np.array(worded.tokens[worded.start :], np.int32)
        return Example(partial(self._read, index), worded.start - 1, answer)

    def _read(self, index: int) -> NDArray[np.float32]:
        return np.fromfile(self._path(index), np.float32).reshape(-1, self._width)

    def _path(self, index: int) -> Path:
        return self._folder / f"rows-{index}.f32"


@asynccontextmanager
async def rows_here(model: PartsModel, layers: int) -> AsyncIterator[tuple[LocalEnds, ComputeRows]]:
    """Compute rows on this machine, which holds the whole model, while the block lasts."""
    ends = open_ends(
        *model.meeting_ends(layers), model.info.layers, sessions=1, context=LESSON_TOKENS_MAX
    )
    async with ends as opened:

        async def compute(tokens: Sequence[int]) -> bytes:
            cells = opened.open()
            try:
                rows = []
                for at, end, regime in split(0, len(tokens), blocks=opened.blocks):
                    part = await cells.embed(at, list(tokens[at:end]), regime=regime)
                    rows.append(part.rows)
                return b"".join(rows)
            finally:
                cells.close()

        yield opened, compute


async def rows_of_swarm(client: Client, tokens: Sequence[int]) -> bytes:
    """Have a swarm compute rows: those that its last stage sends for a prompt.

    Raises:
        NobodyServes, PeerError: no chain of peers, or one of them went away.
        UserError: a session there is too short, or a stage was found to have cheated.
    """
    found: dict[int, bytes] = {}
    route = await client.find_route(lambda _: None)
    async with client.open_session(route) as session:
        if len(tokens) >= session.context:
            raise UserError(
                f"a lesson has {len(tokens)} tokens, and a session of this swarm holds"
                f" {session.context}: choose a larger --context, or shorter lessons"
            )
        session.on_rows = found.__setitem__
        async for _ in session.generate(list(tokens), GREEDY, 1):
            pass
        trust = await client.examine(session)
    if trust is not None and not trust.held:
        raise UserError(f"the rows of a lesson are not to be trusted: {trust.line()}")
    return b"".join(found[at] for at in sorted(found))
