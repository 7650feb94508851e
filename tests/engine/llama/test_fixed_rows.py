"""Fixed numbers of rows: what is narrow runs row by row, in the bits of single rows."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio

from p2pinfer.core.limits import WIDE_ROWS_MAX
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import NextToken
from p2pinfer.engine.gguf.layer_kinds import kinds_digest
from p2pinfer.engine.llama.binding import Settings, Slice, Span, Tokens
from p2pinfer.engine.llama.engine import open_ends, open_stage
from p2pinfer.engine.llama.probe import Probe, Tries, probe
from tests.support.fake_engines import submit
from tests.support.tiny_models import TINY, quantise, write_tiny
from tests.support.whole import Model, open_model

CONTEXT = 128
WAIT_S_MAX = 300.0


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Give a tiny model in a quantisation whose rows differ between one row and several."""
    full, path = tmp_path / "F32.gguf", tmp_path / "Q4_K_M.gguf"
    write_tiny(TINY["llama"], full)
    quantise(full, path, "Q4_K_M")
    return open_model(path, tmp_path)


def fix(path: Path) -> None:
    """Have the next engine take it that only fixed numbers of rows are exact."""
    found = Probe(Settings(fixed=True), regimes_agree=False, blocks=True, numerics_class="ab" * 16)
    tries = Tries(lambda settings: found if settings == Settings() else None, lambda _: [])
    probe(tries, 1, Path(f"{path}.probe-1.json"), kinds_digest(path))


def rows_of(part: Slice, tokens: Tokens, counts: list[int], pad_to: int = 0) -> bytes:
    """Decode tokens in spans; return the last rows."""
    found, at = [], 0
    for count in counts:
        span = Span(0, at, tokens[at : at + count])
        found.append(part.decode([span], pad_to=pad_to)[0].copy())
        at += count
    return np.concatenate(found).tobytes()


def test_narrow_rows_have_the_bits_of_single_ones(model: Model) -> None:
    """In any number, and of several sessions; with logits the last row's come out."""
    first, _ = model.ends(1)
    usual, fixed = Settings(repack=True), Settings(repack=True, fixed=True)

    def load(path: Path, settings: Settings, *, logits: bool = False) -> Slice:
        return Slice(path, logits=logits, settings=settings, sessions=2, context=CONTEXT)

    tokens = np.arange(3, 15, dtype=np.int32)
    with closing(load(first, usual)) as one, closing(load(first, fixed)) as two:
        single = rows_of(one, tokens, [1] * 12)
        assert rows_of(two, tokens, [5, 7]) == single
        assert rows_of(two, tokens, [12], WIDE_ROWS_MAX) == rows_of(one, tokens, [12], 48)
        together = two.decode([Span(0, 0, tokens[:1]), Span(1, 0, tokens[:1])])
        assert [each.tobytes() for each in together] == [single[: 4 * one.width]] * 2
    with (
        closing(load(model.path, usual, logits=True)) as one,
        closing(load(model.path, fixed, logits=True)) as two,
    ):
        expected = [one.decode([Span(0, at, tokens[at : at + 1])])[0].copy() for at in range(5)]
        (found,) = two.decode([Span(0, 0, tokens[:5])])
        assert found.tobytes() == expected[-1].tobytes()


async def test_a_stage_runs_narrow_rows_one_by_one(model: Model) -> None:
    """As the rows of drafts, which come several at once."""
    path = model.stage(2, 4)
    fix(path)
    with trio.fail_after(WAIT_S_MAX):
        async with open_stage(path, 2, sessions=2, context=CONTEXT) as engine:
            assert engine.numerics_class == "ab" * 16
            random = np.random.default_rng(1)
            rows = random.standard_normal((4, engine.width)).astype(np.float32)
            one, two, narrow = engine.open(4), engine.open(4), Regime.NARROW
            single = [
                (await submit(one, at, rows[at : at + 1].tobytes(), regime=narrow).wait()).rows
                for at in range(4)
            ]
            several = await submit(two, 0, rows.tobytes(), regime=narrow).wait()
            assert several.rows == b"".join(single)


async def test_ends_sample_from_the_last_of_several_narrow_rows(model: Model) -> None:
    """Whose logits are the only ones that are left."""
    first, last = model.ends(1)
    for path in (first, last):
        fix(path)
    with trio.fail_after(WAIT_S_MAX):
        async with open_ends(first, last, 7, sessions=1, context=CONTEXT) as ends:
            random = np.random.default_rng(1)
            rows = random.standard_normal((3, ends.width)).astype(np.float32)

            async def told(sampling: Sampling, *, together: bool) -> NextToken:
                cells = ends.open()
                cells.start(sampling, [])
                await cells.embed(0, [3, 4, 5], regime=Regime.NARROW)
                if not together:
                    for at in range(2):
                        row = rows[at : at + 1].tobytes()
                        await cells.absorb(at, row, regime=Regime.NARROW)
                at = 0 if together else 2
                found = await cells.next(at, rows[at:].tobytes(), regime=Regime.NARROW)
                cells.close()
                return replace(found, decoding_us=0)

            for sampling in (
                Sampling(temperature=0.0),
                Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=3),
            ):
                expected = await told(sampling, together=False)
                assert await told(sampling, together=True) == expected
