"""A long decode pauses between layers, others decode meanwhile, and nobody's bits change."""

from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from p2pinfer.core.errors import EngineError
from p2pinfer.core.limits import BLOCK_ROWS
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.gguf.slicing import extents, plan_stage, write_slice
from p2pinfer.engine.llama.binding import Rows, Settings, Slice, Span
from tests.support.tiny_models import TINY, write_tiny

pytestmark = pytest.mark.real

FIRST, END = 1, 6
CONTEXT = 256
FULL_BLOCKS = 2
READER, STREAM, SESSIONS = 1, 3, 4
"""Whose prompt is read, and who is answered meanwhile."""
ASIDE, SESSIONS_ASIDE = 1, 2


@pytest.fixture(scope="module", params=sorted(TINY))
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write some layers of a tiny model of each architecture."""
    folder = tmp_path_factory.mktemp("pauses")
    whole, found = folder / "whole.gguf", folder / "stage.gguf"
    write_tiny(TINY[request.param], whole)
    header = read_header(whole)
    write_slice(plan_stage(header, FIRST, END), extents(header, whole), found)
    return found


def load(path: Path, sessions: int = SESSIONS, like: Slice | None = None) -> Slice:
    """Load the slice, or make more cells for it."""
    return Slice(
        path, logits=False, settings=Settings(), sessions=sessions, context=CONTEXT, like=like
    )


def drawn(part: Slice, seed: int) -> Rows:
    """Draw rows of a residual stream."""
    rows = np.random.default_rng(seed).standard_normal((CONTEXT, part.width))
    return rows.astype(np.float32)


def spans(rows: Rows) -> list[Span]:
    """Return a prompt in blocks and a wide rest, and some rows of its answer."""
    ends = [*range(0, (FULL_BLOCKS + 1) * BLOCK_ROWS, BLOCK_ROWS)]
    ends += [ends[-1] + 30, *range(ends[-1] + 31, ends[-1] + 35)]
    return [Span(READER, a, rows[a:b]) for a, b in pairwise(ends)]


def test_rows_in_the_pauses_change_nothing(stage: Path) -> None:
    """A prompt read in cells of its own, while another session is answered in each pause."""
    with closing(load(stage)) as part, closing(load(stage, SESSIONS_ASIDE, part)) as beside:
        if not part.can_move:
            pytest.skip("llama.cpp moves no more of its windowed layers than their windows")
        prompt, stream = drawn(part, 1), drawn(part, 2)
        expected = [part.decode([each])[0].copy() for each in spans(prompt)]
        others = [
            part.decode([Span(STREAM, at, stream[at : at + 1])])[0].copy() for at in range(CONTEXT)
        ]
        part.truncate(READER, 0)
        part.truncate(STREAM, 0)
        answered: list[Rows] = []

        def answer() -> None:
            at = len(answered)
            answered.append(part.decode([Span(STREAM, at, stream[at : at + 1])])[0].copy())

        found = []
        for number, each in enumerate(spans(prompt)):
            if number == 1:  # it began alone
                part.move(READER, beside, ASIDE)
            elif number == FULL_BLOCKS + 1:
                beside.move(ASIDE, part, READER)
            if 1 <= number <= FULL_BLOCKS:
                there = replace(each, slot=ASIDE)
                found.append(beside.decode([there], pause=answer)[0].copy())
            else:
                found.append(part.decode([each])[0].copy())
        assert len(answered) == FULL_BLOCKS * (part.layers - 1)
        for one, other in zip(found, expected, strict=True):
            assert one.tobytes() == other.tobytes()
        for one, other in zip(answered, others, strict=False):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("shared", [2 * BLOCK_ROWS, 2 * BLOCK_ROWS + 32])
def test_a_copy_goes_on_with_the_same_bits(stage: Path, shared: int) -> None:
    """Of a session at home, windowed layers too, or aside; the other session goes on as well."""
    with closing(load(stage)) as part, closing(load(stage, SESSIONS_ASIDE, part)) as beside:
        prompt = drawn(part, 1)
        all_spans = spans(prompt)
        expected = [part.decode([each])[0].copy() for each in all_spans]
        part.inherit(STREAM, part, READER, shared)
        part.decode([Span(READER, 40, drawn(part, 3)[:40])])  # which must not show in the copy
        sources = [(part, STREAM)]
        if part.can_move:
            part.copy(STREAM, beside, ASIDE)
            sources.append((beside, ASIDE))
        for source, slot in sources:
            part.inherit(0, source, slot, shared)
            for each, rows in zip(all_spans, expected, strict=True):
                if each.position >= shared:
                    found = part.decode([replace(each, slot=0)])[0]
                    assert found.tobytes() == rows.tobytes()
        with pytest.raises(EngineError, match="hold"):
            part.inherit(0, part, STREAM, shared + 1)
