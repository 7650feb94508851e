"""One contract for every StageEngine: the fake that peers' tests use, and llama.cpp's.

Everything is compared bit for bit. An engine under test has layers 10:13 and three sessions of 128
positions, and is not shared.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import trio

from p2pinfer.core.attention import ATTENTIONS
from p2pinfer.core.errors import EngineError
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.base import EngineBusy, EngineSession, StageEngine, Superseded
from p2pinfer.engine.llama.engine import open_stage
from tests.support.fake_engines import FakeStage, submit
from tests.support.whole import open_model

SESSIONS, CONTEXT = 3, 128
WAIT_S_MAX = 300.0
"""For what takes a second on an idle machine."""

OpenEngine = Callable[[], AbstractAsyncContextManager[StageEngine]]


@pytest.fixture(scope="module")
def middle_slice(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide three layers of the default model."""
    return open_model(default_model, tmp_path_factory.mktemp("slices")).stage(10, 13)


@pytest.fixture(params=["fake", pytest.param("llama.cpp", marks=pytest.mark.real)])
def open_engine(request: pytest.FixtureRequest) -> OpenEngine:
    """Provide a function that opens an engine: a new fake, or one in a worker process."""

    @asynccontextmanager
    async def fake() -> AsyncIterator[StageEngine]:
        yield FakeStage(10, 13, sessions=SESSIONS, context=CONTEXT)

    @asynccontextmanager
    async def real() -> AsyncIterator[StageEngine]:
        path = request.getfixturevalue("middle_slice")
        with trio.fail_after(WAIT_S_MAX):
            async with open_stage(path, 10, sessions=SESSIONS, context=CONTEXT) as engine:
                yield engine

    return {"fake": fake, "llama.cpp": real}[request.param]


class Rows:
    """Inputs for an engine, drawn from a seed, and its outputs."""

    def __init__(self, engine: StageEngine, seed: int, count: int = 100) -> None:
        random = np.random.default_rng(seed)
        self.inputs = random.standard_normal((count, engine.width)).astype("<f4")

    async def run(self, cells: EngineSession, *bounds: int, regime: Regime) -> bytes:
        """Run rows from the first bound to the last, submitted at once in chunks between them."""
        decodings = [
            submit(cells, a, self.inputs[a:b].tobytes(), regime=regime) for a, b in pairwise(bounds)
        ]
        return b"".join([(await decoding.wait()).rows for decoding in decodings])


class TestStageEngine:
    """What every stage engine promises."""

    async def test_it_describes_itself(self, open_engine: OpenEngine) -> None:
        """Layers, width, context and numerics class are known."""
        async with open_engine() as engine:
            assert (engine.first, engine.end, engine.context) == (10, 13, CONTEXT)
            assert len(engine.numerics_class) == 32
            cells = engine.open(engine.end)
            rows = Rows(engine, 0)
            found = np.frombuffer(await rows.run(cells, 0, 5, regime=Regime.WIDE), "<f4")
            assert found.size == 5 * engine.width
            assert np.isfinite(found).all()

    async def test_a_session_may_stop_at_an_earlier_layer(self, open_engine: OpenEngine) -> None:
        """Its rows are those after its layer, also beside a session that runs all layers."""
        async with open_engine() as engine:
            whole, part = engine.open(engine.end), engine.open(11)
            rows = Rows(engine, 1)
            found = await rows.run(part, 0, 48, 49, 50, regime=Regime.WIDE)
            full = await rows.run(whole, 0, 48, 49, 50, regime=Regime.WIDE)
            assert len(found) == len(full)
            assert found != full
            part.close()
            whole.close()
            both = engine.open(11), engine.open(engine.end)
            waiting = [
                submit(
                    cells,
                    at,
                    rows.inputs[at : at + n].tobytes(),
                    regime=Regime.WIDE if n > 1 else Regime.NARROW,
                )
                for at, n in ((0, 48), (48, 1), (49, 1))
                for cells in both
            ]
            again = [(await each.wait()).rows for each in waiting]
            assert b"".join(again[0::2])[: 48 * 4 * engine.width] == found[: 48 * 4 * engine.width]
            assert b"".join(again[1::2])[: 48 * 4 * engine.width] == full[: 48 * 4 * engine.width]

    async def test_chunking_does_not_matter(self, open_engine: OpenEngine) -> None:
        """Wide chunks of any size give the same rows, and so do narrow ones."""
        async with open_engine() as engine:
            rows = Rows(engine, 1)
            one, other = engine.open(engine.end), engine.open(engine.end)
            wide = await rows.run(one, 0, 48, 96, 100, regime=Regime.WIDE)
            assert wide == await rows.run(other, 0, 8, 41, 42, 90, 100, regime=Regime.WIDE)
            narrow = await rows.run(one, *range(21), regime=Regime.NARROW)
            assert narrow == await rows.run(other, 0, 7, 14, 17, 20, regime=Regime.NARROW)

    async def test_rows_that_are_overwritten_while_they_wait_need_not_run(
        self, open_engine: OpenEngine
    ) -> None:
        """They say so, or give what they would; all the others run."""
        async with open_engine() as engine:
            rows = Rows(engine, 1)
            one, other = engine.open(engine.end), engine.open(engine.end)
            due = await rows.run(one, *range(12), regime=Regime.NARROW)
            size, inputs = 4 * engine.width, [row.tobytes() for row in rows.inputs]
            before = [submit(other, at, inputs[at], regime=Regime.NARROW) for at in range(6)]
            drafts = [submit(other, at, inputs[50 + at], regime=Regime.NARROW) for at in (6, 7, 8)]
            after = [submit(other, at, inputs[at], regime=Regime.NARROW) for at in range(6, 11)]
            found = b"".join([(await each.wait()).rows for each in (*before, *after)])
            assert found == due
            for each in drafts:
                with suppress(Superseded):
                    assert len((await each.wait()).rows) == size

    async def test_rows_depend_on_what_came_before(self, open_engine: OpenEngine) -> None:
        """The same row after another one, or at another position, gives another output."""
        async with open_engine() as engine:
            one, other = engine.open(engine.end), engine.open(engine.end)
            rows, changed = Rows(engine, 2), Rows(engine, 2)
            changed.inputs[0] *= -1
            first = await rows.run(one, 0, 20, regime=Regime.WIDE)
            second = await changed.run(other, 0, 20, regime=Regime.WIDE)
            size = 4 * engine.width
            assert first[-size:] != second[-size:]

    async def test_a_copy_goes_on_with_the_same_bits(self, open_engine: OpenEngine) -> None:
        """It begins with another session's cells, and neither one changes the other's rows."""
        async with open_engine() as engine:
            rows, detour = Rows(engine, 5), Rows(engine, 6)
            one, other, third = (engine.open(engine.end) for _ in range(3))
            whole = await rows.run(one, 0, 48, 96, 100, regime=Regime.WIDE)
            size = 4 * engine.width
            await other.inherit(one, 70)
            await detour.run(one, 50, 90, regime=Regime.WIDE)
            assert await rows.run(other, 70, 100, regime=Regime.WIDE) == whole[70 * size :]
            await third.inherit(other, 60)
            other.close()
            with pytest.raises(EngineError):
                await third.inherit(other, 60)
            assert await rows.run(third, 60, 100, regime=Regime.WIDE) == whole[60 * size :]
            late = engine.open(engine.end)
            with pytest.raises(EngineError, match="hold"):
                await late.inherit(third, 101)
            assert await rows.run(late, 0, 48, regime=Regime.WIDE) == whole[: 48 * size]

    async def test_going_back_gives_the_same_bits(self, open_engine: OpenEngine) -> None:
        """A position before the end drops the cells from there on, without a trace."""
        async with open_engine() as engine:
            rows, detour = Rows(engine, 3), Rows(engine, 4)
            cells = engine.open(engine.end)
            whole = await rows.run(cells, 0, 48, 60, regime=Regime.WIDE)
            await detour.run(cells, 30, 78, regime=Regime.WIDE)
            await detour.run(cells, 40, 41, 42, regime=Regime.NARROW)
            await rows.run(cells, 30, 40, regime=Regime.WIDE)
            again = await rows.run(cells, 20, 60, regime=Regime.WIDE)
            assert again == whole[20 * 4 * engine.width :]

    async def test_a_gap_is_refused(self, open_engine: OpenEngine) -> None:
        """Only the job past the end fails; the session continues from its end."""
        async with open_engine() as engine:
            rows = Rows(engine, 5)
            cells, other = engine.open(engine.end), engine.open(engine.end)
            await rows.run(cells, 0, 10, regime=Regime.WIDE)
            with pytest.raises(EngineError, match="gap"):
                await rows.run(cells, 11, 12, regime=Regime.NARROW)
            after = await rows.run(cells, 10, 20, regime=Regime.WIDE)
            whole = await rows.run(other, 0, 20, regime=Regime.WIDE)
            assert after == whole[10 * 4 * engine.width :]

    async def test_a_full_context_is_refused(self, open_engine: OpenEngine) -> None:
        """The last position may be filled, but not the one after it; existing cells stay."""
        async with open_engine() as engine:
            rows = Rows(engine, 6, count=CONTEXT + 1)
            cells = engine.open(engine.end)
            whole = await rows.run(cells, 0, 48, 96, CONTEXT, regime=Regime.WIDE)
            with pytest.raises(EngineError, match="full"):
                await rows.run(cells, CONTEXT, CONTEXT + 1, regime=Regime.WIDE)
            last = await rows.run(cells, CONTEXT - 1, CONTEXT, regime=Regime.WIDE)
            assert last == whole[-4 * engine.width :]

    async def test_order_is_kept(self, open_engine: OpenEngine) -> None:
        """Jobs submitted at once are answered in order, whichever answer is awaited first."""
        async with open_engine() as engine:
            rows = Rows(engine, 7)
            cells, other = engine.open(engine.end), engine.open(engine.end)
            whole = await rows.run(cells, 0, 30, regime=Regime.WIDE)
            parts = [
                submit(other, at, rows.inputs[at : at + 10].tobytes(), regime=Regime.WIDE)
                for at in range(0, 30, 10)
            ]
            backwards = [(await part.wait()).rows for part in reversed(parts)]
            assert b"".join(reversed(backwards)) == whole

    async def test_blocks_are_exact_however_they_are_cut(self, open_engine: OpenEngine) -> None:
        """At any offset, padded or full, after and before rows of other regimes."""
        async with open_engine() as engine:
            rows = Rows(engine, 12, 128)
            one, other = engine.open(engine.end), engine.open(engine.end)
            assert engine.blocks
            whole = await rows.run(one, 0, 64, 128, regime=Regime.BLOCK)
            assert whole == await rows.run(other, 0, 37, 101, 102, 128, regime=Regime.BLOCK)
            mixed = []
            for cells, cuts in ((one, (20, 84)), (other, (20, 30, 84))):
                found = await rows.run(cells, 0, 20, regime=Regime.WIDE)
                found += await rows.run(cells, *cuts, regime=Regime.BLOCK)
                found += await rows.run(cells, *range(84, 90), regime=Regime.NARROW)
                mixed.append(found + await rows.run(cells, 89, 128, regime=Regime.BLOCK))
            assert mixed[0] == mixed[1]

    async def test_padding_leaves_no_traces(self, open_engine: OpenEngine) -> None:
        """After a padded block, up to the full context, rows are the same as after a full one."""
        async with open_engine() as engine:
            rows = Rows(engine, 13, CONTEXT + 1)
            padded, full = engine.open(engine.end), engine.open(engine.end)
            await rows.run(padded, 0, 10, regime=Regime.BLOCK)
            await rows.run(full, 0, 64, regime=Regime.BLOCK)
            for bounds, regime in (
                ((10, 17), Regime.NARROW),
                ((17, 60), Regime.WIDE),
                ((60, CONTEXT - 5), Regime.BLOCK),
                ((CONTEXT - 5, CONTEXT), Regime.BLOCK),
            ):
                cuts = range(*bounds, regime.rows_max)
                found = await rows.run(padded, *cuts, bounds[1], regime=regime)
                assert found == await rows.run(full, *cuts, bounds[1], regime=regime)
            with pytest.raises(EngineError):
                await rows.run(full, CONTEXT, CONTEXT + 1, regime=Regime.BLOCK)

    async def test_sessions_do_not_see_each_other(self, open_engine: OpenEngine) -> None:
        """Three sessions at once, prompts beside single rows, each get the same as alone."""
        async with open_engine() as engine:
            everyone = [Rows(engine, seed) for seed in (8, 9, 10)]
            alone: list[tuple[bytes, bytes]] = []
            for rows in everyone:
                cells = engine.open(engine.end)
                prompt = await rows.run(cells, 0, 48, 80, regime=Regime.WIDE)
                alone.append((prompt, await rows.run(cells, *range(80, 101), regime=Regime.NARROW)))
                cells.close()
            together: dict[int, tuple[bytes, bytes]] = {}

            async def talk(number: int) -> None:
                cells, rows = engine.open(engine.end), everyone[number]
                prompt = await rows.run(cells, 0, 48, 80, regime=Regime.WIDE)
                together[number] = (
                    prompt,
                    await rows.run(cells, *range(80, 101), regime=Regime.NARROW),
                )

            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(talk, number)
            assert [together[number] for number in range(3)] == alone

    async def test_without_a_free_session_it_is_busy(self, open_engine: OpenEngine) -> None:
        """One session too many is refused; closing one makes room for exactly one."""
        async with open_engine() as engine:
            taken = [engine.open(engine.end) for _ in range(SESSIONS)]
            with pytest.raises(EngineBusy, match=f"all {SESSIONS} sessions"):
                engine.open(engine.end)
            taken[1].close()
            taken[1].close()
            engine.open(engine.end)
            with pytest.raises(EngineBusy):
                engine.open(engine.end)

    async def test_a_closed_session_leaves_nothing(self, open_engine: OpenEngine) -> None:
        """Its waiting jobs never call ``done``, and the next session in its cells begins at 0."""
        async with open_engine() as engine:
            rows = Rows(engine, 11)
            first = engine.open(engine.end)
            whole = await rows.run(first, 0, 48, 60, regime=Regime.WIDE)
            late: list[object] = []
            for at in (0, 20, 40, 60):
                part = rows.inputs[at : at + 20].tobytes()
                first.submit(at, part, late.append, regime=Regime.WIDE)
            first.close()
            second = engine.open(engine.end)
            with pytest.raises(EngineError, match="gap"):
                await rows.run(second, 1, 2, regime=Regime.WIDE)
            assert await rows.run(second, 0, 48, 60, regime=Regime.WIDE) == whole
            assert late == []

    async def test_a_copy_shows_what_the_layers_computed(self, open_engine: OpenEngine) -> None:
        """In every regime a row's steps end in its own bits; its cells can be read."""
        async with open_engine() as engine:
            rows = Rows(engine, 14, 90)
            cells, size = engine.open(engine.end), 4 * engine.width
            sent = await rows.run(cells, 0, 48, regime=Regime.WIDE)
            sent += await rows.run(cells, 48, 80, regime=Regime.BLOCK)
            sent += await rows.run(cells, *range(80, 85), regime=Regime.NARROW)
            copy = await cells.copy(82)
            assert copy.attention in ATTENTIONS
            for at, regime in (
                (81, Regime.NARROW),
                (0, Regime.WIDE),
                (47, Regime.WIDE),
                (60, Regime.BLOCK),
            ):
                row = rows.inputs[at].tobytes()
                steps = await copy.trace(at, row, regime=regime)
                assert len(steps) == 12 * 3
                assert steps[2, "out"] == sent[at * size : (at + 1) * size]
            keys, values = await copy.read(1, 0, 82)
            assert keys != values
            parts = [await copy.read(1, at, end) for at, end in ((0, 7), (7, 40), (40, 82))]
            assert (keys, values) == tuple(map(b"".join, zip(*parts, strict=True)))
            assert len(parts[0][0]) * 82 == len(keys) * 7
            copy.close()
            copy.close()

    async def test_a_copy_stands_while_its_session_goes_on(self, open_engine: OpenEngine) -> None:
        """The session may go back, and close; it and all others have the same bits as without."""
        async with open_engine() as engine:
            rows, detour = Rows(engine, 15), Rows(engine, 16)
            cells, other = engine.open(engine.end), engine.open(engine.end)
            whole = await rows.run(cells, 0, 48, 90, regime=Regime.WIDE)
            copy = await cells.copy(90)
            before = [await copy.read(layer, 0, 90) for layer in range(3)]
            await detour.run(cells, 10, 50, regime=Regime.WIDE)
            await copy.trace(20, rows.inputs[20].tobytes(), regime=Regime.WIDE)
            again = await rows.run(cells, 10, 50, 90, regime=Regime.WIDE)
            assert again == whole[10 * 4 * engine.width :]
            cells.close()
            assert await rows.run(other, 0, 48, 90, regime=Regime.WIDE) == whole
            assert [await copy.read(layer, 0, 90) for layer in range(3)] == before
            steps = await copy.trace(89, rows.inputs[89].tobytes(), regime=Regime.WIDE)
            assert steps[2, "out"] == whole[-4 * engine.width :]
            copy.close()

    async def test_rows_beside_a_trace_are_the_same(self, open_engine: OpenEngine) -> None:
        """Sessions that are answered in its pauses get the bits that they get alone."""
        async with open_engine() as engine:
            rows = Rows(engine, 17)
            cells, other = engine.open(engine.end), engine.open(engine.end)
            whole = await rows.run(cells, 0, 48, regime=Regime.WIDE)
            whole += await rows.run(cells, *range(48, 90), regime=Regime.NARROW)
            await rows.run(other, 0, 48, regime=Regime.WIDE)
            copy, found = await cells.copy(89), list[bytes]()

            async def answered() -> None:
                for at in range(48, 89):
                    found.append(await rows.run(other, at, at + 1, regime=Regime.NARROW))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answered)
                for at in range(0, 48, 4):
                    await copy.trace(at, rows.inputs[at].tobytes(), regime=Regime.BLOCK)
            assert b"".join(found) == whole[48 * 4 * engine.width :]
            copy.close()

    async def test_one_copy_at_a_time(self, open_engine: OpenEngine) -> None:
        """A second one is refused until the first is closed, and so are positions not decoded."""
        async with open_engine() as engine:
            rows = Rows(engine, 18)
            cells, other = engine.open(engine.end), engine.open(11)
            await rows.run(cells, 0, 10, regime=Regime.WIDE)
            await rows.run(other, 0, 10, regime=Regime.WIDE)
            with pytest.raises(EngineError, match="holds 10 positions"):
                await cells.copy(11)
            copy = await cells.copy(10)
            with pytest.raises(EngineBusy, match="another"):
                await other.copy(10)
            copy.close()
            part = await other.copy(10)
            steps = await part.trace(9, rows.inputs[9].tobytes(), regime=Regime.WIDE)
            assert {layer for layer, _ in steps} == {0}
            part.close()

    async def test_what_a_copy_lacks_is_refused(self, open_engine: OpenEngine) -> None:
        """Neither the copy nor anybody's session is lost by a question about something else."""
        async with open_engine() as engine:
            rows = Rows(engine, 19)
            cells, row = engine.open(engine.end), rows.inputs[12].tobytes()
            whole = await rows.run(cells, 0, 10, regime=Regime.WIDE)
            copy = await cells.copy(10)
            for layer, first, end in ((3, 0, 10), (-1, 0, 10), (0, 0, 11), (0, 10, 12)):
                with pytest.raises(EngineError, match="none such"):
                    await copy.read(layer, first, end)
            with pytest.raises(EngineError):
                await copy.trace(12, row, regime=Regime.WIDE)
            assert await copy.read(2, 0, 10)
            copy.close()
            assert await rows.run(cells, 0, 10, regime=Regime.WIDE) == whole
