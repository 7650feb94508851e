"""Layers that keep a state: it is dropped whole or not at all, and others do not change it."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import trio

from p2pinfer.core.errors import EngineError
from p2pinfer.core.limits import BLOCK_ROWS
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.gguf.architectures import Memory
from p2pinfer.engine.gguf.layer_facts import layer_memories
from p2pinfer.engine.gguf.model_header import model_info
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.llama.binding import Rows, Settings, Slice, Span
from p2pinfer.engine.llama.engine import open_stage
from p2pinfer.engine.llama.memory import sessions_bytes
from tests.engine.llama.test_worker import WAIT_S_MAX, inputs, run
from tests.support.model_factory import write_model
from tests.support.recipes import CASES
from tests.support.tiny_models import quantise
from tests.support.whole import open_model

ROWS = 60


@pytest.fixture(
    scope="module", params=["qwen3next", pytest.param("nemotron_h", marks=pytest.mark.long)]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a tiny hybrid."""
    folder = tmp_path_factory.mktemp("hybrid")
    write_model(CASES[request.param].recipe, folder / "full.gguf")
    quantise(folder / "full.gguf", folder / "model.gguf", "Q8_0")
    return folder / "model.gguf"


def test_positions_are_dropped_all_at_once(model: Path) -> None:
    """Any steps, some back to the beginning, give the bits of a session that never went back."""
    path = open_model(model, model.parent).stage(1, 5)
    part = Slice(path, logits=False, settings=Settings(repack=False), sessions=2, context=256)
    random = np.random.default_rng(3)
    rows: Rows = random.standard_normal((ROWS, part.width)).astype(np.float32)

    def read(slot: int, ends: Sequence[int]) -> Rows:
        found, at = [], 0
        for end in ends:
            found.append(part.decode([Span(slot, at, rows[at:end])])[0].copy())
            at = end
        return np.concatenate(found)

    with closing(part):
        assert part.keeps_state
        assert not part.can_move
        expected = read(0, [ROWS])
        for _ in range(8):
            cuts = sorted({*random.integers(1, ROWS, 4).tolist(), ROWS})
            assert read(1, cuts).tobytes() == expected.tobytes()
            with pytest.raises(EngineError, match="positions cannot be dropped"):
                part.decode([Span(1, ROWS - 1, rows[:1])])
            follows = part.decode([Span(1, ROWS, rows[:1])])[0].tobytes()
            read(1, cuts)
            assert part.decode([Span(1, ROWS, rows[:1])])[0].tobytes() == follows
        with pytest.raises(EngineError, match="padding"):
            part.decode([Span(1, 0, rows[:3])], pad_to=BLOCK_ROWS)


async def test_sessions_side_by_side_have_the_bits_of_one_alone(model: Path) -> None:
    """Whose probe finds one regime for all rows, and no blocks."""
    path = open_model(model, model.parent).stage(1, 5)
    with trio.fail_after(WAIT_S_MAX):
        async with open_stage(path, 1, sessions=3, context=256) as engine:
            assert not engine.blocks
            everyone = [inputs(engine, seed, ROWS + seed) for seed in range(3)]

            async def talk(number: int) -> bytes:
                cells, told = engine.open(engine.end), everyone[number]
                found = await run(cells, told[:40], 0, 20, regime=Regime.WIDE)
                found += await run(cells, told, 40, 1, regime=Regime.NARROW)
                cells.close()
                return found

            alone = [await talk(number) for number in range(3)]
            together: dict[int, bytes] = {}

            async def one(number: int) -> None:
                together[number] = await talk(number)

            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(one, number)
            assert [together[number] for number in range(3)] == alone


def test_states_are_counted_as_memory(model: Path) -> None:
    """They take the same for a session of any length; cells take more for a longer one."""
    header = read_header(model)
    memories = layer_memories(header, model_info(header))
    assert memories
    attending, stateful = memories.count(Memory.CELLS), memories.count(Memory.STATE)
    short, long = (sessions_bytes(header, len(memories), 1, n) for n in (1, 1001))
    row = 2 * (2 * 64 + 2 * 64)  # two heads of 64 numbers, keys and values, of two bytes
    assert long - short == pytest.approx(1000 * row * attending, abs=2)
    assert stateful
    assert short > 0
