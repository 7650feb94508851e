"""Sessions longer than usual: in cells of their own, with the bits of any other."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pinfer.core.errors import EngineError
from p2pinfer.core.limits import BLOCK_ROWS
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import EngineBusy, Room
from p2pinfer.engine.llama.engine import LocalStage, open_ends, open_stage
from tests.engine.llama.test_worker import WAIT_S_MAX, inputs, run
from tests.support.model_factory import Recipe, write_model
from tests.support.recipes import CASES
from tests.support.tiny_models import quantise
from tests.support.whole import open_model

USUAL, LONG = 128, 1024
ROWS = 700
"""Past 512 cells, where llama.cpp attends in another way."""


@pytest.fixture(
    scope="module", params=["seed_oss", pytest.param("gpt-oss", marks=pytest.mark.long)]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a tiny model: without windows, and with some."""
    folder = tmp_path_factory.mktemp("long")
    recipe: Recipe = CASES[request.param].recipe
    write_model(recipe, folder / "full.gguf")
    quantise(folder / "full.gguf", folder / "model.gguf", "Q8_0")
    return folder / "model.gguf"


@asynccontextmanager
async def opened(model: Path, usual: int, long: int) -> AsyncIterator[LocalStage]:
    """Run three of its layers."""
    path = open_model(model, model.parent).stage(1, 4)
    with trio.fail_after(WAIT_S_MAX):
        async with open_stage(
            path, 1, sessions=3, context=usual, long_context=long, long_cells=long
        ) as engine:
            yield engine


async def talk(engine: LocalStage, seed: int, rows: int, context: int) -> bytes:
    """Read a prompt in blocks, and then single rows."""
    told = inputs(engine, seed, rows)
    cells = engine.open(engine.end, context)
    try:
        prompt = (rows - 9) // BLOCK_ROWS * BLOCK_ROWS
        found = await run(cells, told[:prompt], 0, BLOCK_ROWS, regime=Regime.BLOCK)
        return found + await run(cells, told, prompt, 1, regime=Regime.NARROW)
    finally:
        cells.close()


async def test_a_long_session_has_the_bits_of_one_among_equals(model: Path) -> None:
    """Also while usual sessions run beside it, whose bits do not change either."""
    async with opened(model, LONG, 0) as engine:
        expected = await talk(engine, 1, ROWS, LONG)
        beside = await talk(engine, 2, USUAL, USUAL)
    async with opened(model, USUAL, LONG) as engine:
        assert engine.room == Room(USUAL, LONG, LONG)
        assert engine.context == LONG
        found: dict[tuple[int, int], bytes] = {}

        async def one(seed: int, rows: int, context: int) -> None:
            found[seed, rows] = await talk(engine, seed, rows, context)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 1, ROWS, LONG)
            nursery.start_soon(one, 2, USUAL, USUAL)
        assert found == {(1, ROWS): expected, (2, USUAL): beside}


async def test_long_sessions_share_what_there_is(model: Path) -> None:
    """A second one is refused until the first ends; usual ones go on, and stay as short."""
    async with opened(model, USUAL, LONG) as engine:
        long = engine.open(engine.end, LONG)
        with pytest.raises(EngineBusy, match="0 positions are left for long sessions"):
            engine.open(engine.end, USUAL + 1)
        usual = engine.open(engine.end)
        rows = inputs(engine, 3, USUAL + 1)
        with pytest.raises(EngineError, match=f"the context of {USUAL} positions is full"):
            await run(usual, rows, 0, 43, regime=Regime.WIDE)
        long.close()
        again = await talk(engine, 1, USUAL + 10, LONG)
        assert again == await talk(engine, 1, USUAL + 10, LONG)


@pytest.mark.parametrize("model", ["seed_oss"], indirect=True)
async def test_ends_say_the_same_in_a_long_session(model: Path) -> None:
    """Embedding, sampling and the limit of positions are the long session's."""
    files = open_model(model, model.parent)
    first, last = files.ends(1)
    layers = files.info.layers
    said = {}
    for usual, long in ((LONG, 0), (USUAL, LONG)):
        async with open_ends(
            first, last, layers, sessions=2, context=usual, long_context=long, long_cells=long
        ) as ends:
            assert ends.context == LONG
            cells = ends.open(LONG)
            cells.start(Sampling(), [])
            for at in range(0, 10 * BLOCK_ROWS, BLOCK_ROWS):
                tokens = [3 + (at + n) % 200 for n in range(BLOCK_ROWS)]
                rows = (await cells.embed(at, tokens, regime=Regime.BLOCK)).rows
                following = await cells.next(at, rows, regime=Regime.BLOCK)
            said[usual] = (rows, following.token, following.rows)
            cells.close()
    assert said[LONG] == said[USUAL]
