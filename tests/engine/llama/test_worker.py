"""The real engine process: it dies, idles, is orphaned, and computes exactly."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import trio
import trio.testing
from numpy.typing import NDArray

from p2pinfer.cli.machine_options import SESSIONS_MAX
from p2pinfer.core.errors import BadModelFile, EngineDied, EngineError
from p2pinfer.core.limits import BLOCK_ROWS, WIDE_ROWS_MAX
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import CannotCopy, Decoded, EngineSession
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.gguf.slice_plan import SlicePlan
from p2pinfer.engine.gguf.slicing import extents, plan_stage, write_slice
from p2pinfer.engine.gguf.values import Value, ValueType
from p2pinfer.engine.llama.engine import LocalStage, open_ends, open_stage
from p2pinfer.engine.llama.memory import sessions_bytes
from tests.support.fake_engines import submit
from tests.support.tiny_models import TINY, quantise, write_tiny
from tests.support.whole import open_model

pytestmark = pytest.mark.real

WAIT_S_MAX = 300.0
"""For what takes a second on an idle machine."""
POLL_S = 0.01
CONTEXT = 700
PROMPT_ROWS = 620
"""Past 512 cells, where several threads would split one row's attention."""

GREEDY = Sampling(temperature=0.0)

PROC = Path("/proc")
needs_proc = pytest.mark.skipif(not (PROC / "self/stat").exists(), reason="there is no /proc")


@pytest.fixture(scope="module")
def slices(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give two layers of the default model, and two of a written one, by quantisation."""
    folder = tmp_path_factory.mktemp("slices")
    full, tiny = folder / "tiny-F32.gguf", folder / "tiny-Q4_K_M.gguf"
    write_tiny(TINY["llama"], full)
    quantise(full, tiny, "Q4_K_M")
    return {
        "Q4_1": open_model(default_model, folder).stage(10, 12),
        "Q4_K_M": open_model(tiny, folder).stage(2, 4),
    }


@asynccontextmanager
async def opened(path: Path, *, sessions: int = 2, threads: int = 1) -> AsyncIterator[LocalStage]:
    """Run a slice for a bounded time."""
    with trio.fail_after(WAIT_S_MAX):
        async with open_stage(
            path, 10, sessions=sessions, context=CONTEXT, threads=threads
        ) as engine:
            yield engine


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another process to do something."""
    with trio.fail_after(WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110 -- another process sets no event of ours
            await trio.sleep(POLL_S)


def inputs(engine: LocalStage, seed: int, rows: int = PROMPT_ROWS) -> NDArray[np.float32]:
    """Draw rows of a residual stream."""
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, engine.width)).astype("<f4")


async def run(
    cells: EngineSession, rows: NDArray[np.float32], at: int, size: int, *, regime: Regime
) -> bytes:
    """Run rows from a position on, in chunks, and return the output rows."""
    waiting = [
        submit(cells, at + n, rows[at + n :][:size].tobytes(), regime=regime)
        for n in range(0, len(rows) - at, size)
    ]
    return b"".join([(await each.wait()).rows for each in waiting])


# Death


async def test_a_killed_worker_is_replaced(slices: dict[str, Path]) -> None:
    """Waiting requests fail, its sessions are lost, and soon another process computes the same."""
    async with opened(slices["Q4_1"]) as engine:
        rows = inputs(engine, 1)
        cells = engine.open(engine.end)
        before = await run(cells, rows[:96], 0, 48, regime=Regime.WIDE)
        waiting = [submit(cells, 0, rows[:48].tobytes(), regime=Regime.WIDE) for _ in range(50)]
        pid = engine.worker.pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineDied):
            await waiting[-1].wait()
        with pytest.raises(EngineDied):
            await run(cells, rows[:1], 0, 1, regime=Regime.NARROW)
        with pytest.raises(EngineDied, match="being restarted"):
            engine.open(engine.end)
        await wait_until(lambda: engine.worker.is_running)
        assert engine.worker.pid != pid
        with pytest.raises(EngineDied, match="KV cache"):
            await run(cells, rows[:1], 0, 1, regime=Regime.NARROW)
        cells.close()
        fresh = [engine.open(engine.end) for _ in range(2)]
        assert await run(fresh[0], rows[:96], 0, 48, regime=Regime.WIDE) == before


async def test_an_abort_while_loading_is_a_typed_error(default_model: Path, tmp_path: Path) -> None:
    """llama.cpp aborts on a model without layers; the error says how the process died."""
    path = spoilt(default_model, tmp_path, without="blk.", layers=0)
    with pytest.raises(EngineError, match=r"spoilt\.gguf: .* ended on signal \d+ .* type: "):
        async with opened(path):
            pass


async def test_a_slice_that_llama_cpp_refuses_is_a_bad_file(
    default_model: Path, tmp_path: Path
) -> None:
    """A slice that lacks a tensor is refused with a sentence."""
    path = spoilt(default_model, tmp_path, without="ffn_down", layers=1)
    with pytest.raises(BadModelFile, match=r"cannot load .*spoilt\.gguf: "):
        async with opened(path):
            pass


LACKING_MEMORY = """
import resource, sys
from pathlib import Path
from p2pinfer.engine.llama.binding import Settings, Slice

resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    Slice(Path(sys.argv[1]), logits=False, settings=Settings(), sessions=8, context=200_000)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


@needs_proc  # other systems do not enforce the limit
async def test_lack_of_memory_is_no_bad_file(slices: dict[str, Path]) -> None:
    """KV cells beyond a process's limit are refused with advice."""
    command = [sys.executable, "-c", LACKING_MEMORY, str(slices["Q4_1"])]
    result = await trio.run_process(command, capture_stdout=True)
    assert result.stdout.startswith(b"EngineError: memory ran out for stage-10-12.gguf: free some")


def spoilt(model: Path, folder: Path, *, without: str, layers: int) -> Path:
    """Write a slice of one layer that claims another number, and lacks some tensors."""
    header = read_header(model)
    plan = plan_stage(header, 10, 11)
    count = Value.of(ValueType.UINT32, layers)
    metadata = {**plan.metadata, "llama.block_count": count}
    tensors = tuple(tensor for tensor in plan.tensors if without not in tensor.name)
    path = folder / "spoilt.gguf"
    write_slice(SlicePlan(metadata, tensors), extents(header, model), path)
    return path


# Idleness and orphans


def state(pid: int) -> list[str]:
    """Return a process's stat fields after its name, the state first; "Z" once it is gone."""
    try:
        return (PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z"]


def ticks(pid: int) -> int:
    """Return the processor time of a process, in ticks of the system's clock."""
    return sum(map(int, state(pid)[11:13]))


@needs_proc
async def test_an_idle_worker_uses_no_processor(slices: dict[str, Path]) -> None:
    """While another worker starts and computes, an idle one waits in the kernel."""
    async with opened(slices["Q4_1"], threads=2) as idle:
        await run(idle.open(idle.end), inputs(idle, 1, 60), 0, 48, regime=Regime.WIDE)
        before = ticks(idle.worker.pid)
        async with opened(slices["Q4_1"]) as busy:
            cells = busy.open(busy.end)
            while ticks(busy.worker.pid) < 20:
                await run(cells, inputs(busy, 2), 0, 48, regime=Regime.WIDE)
        assert ticks(idle.worker.pid) - before <= 1


NODE = """
import sys, trio
from pathlib import Path
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.llama.engine import open_stage

async def main():
    async with open_stage(Path(sys.argv[1]), 10, sessions=1, context=256) as engine:
        print(engine.worker.pid, flush=True)
        cells = engine.open(engine.end)
        rows = bytes(48 * 4 * engine.width)
        for _ in range(int(sys.argv[2])):
            cells.submit(0, rows, lambda _: None, regime=Regime.WIDE)
        await trio.sleep_forever()

trio.run(main)
"""


@needs_proc
@pytest.mark.parametrize("steps", [0, 2000], ids=["idle", "busy"])
async def test_no_orphan_is_left(slices: dict[str, Path], steps: int) -> None:
    """A worker whose node is killed exits by itself, even with much work queued."""
    command = [sys.executable, "-c", NODE, str(slices["Q4_1"]), str(steps)]
    async with trio.open_nursery() as nursery:
        node = await nursery.start(partial(trio.run_process, command, stdout=PIPE, check=False))
        try:
            with trio.fail_after(WAIT_S_MAX):
                pid = int(await node.stdout.receive_some())
            assert state(pid)[0] != "Z"
        finally:
            node.kill()
    await wait_until(lambda: state(pid)[0] == "Z")


# Bits


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("quantisation", ["Q4_1", "Q4_K_M"])
async def test_four_sessions_get_the_bits_of_one(
    slices: dict[str, Path], quantisation: str, threads: int
) -> None:
    """Prompts of 620 rows and then single rows give the same at once as alone."""
    async with opened(slices[quantisation], sessions=4, threads=threads) as engine:
        everyone = [inputs(engine, seed, PROMPT_ROWS + 12 + seed) for seed in range(4)]

        async def talk(rows: NDArray[np.float32]) -> bytes:
            cells = engine.open(engine.end)
            found = await run(cells, rows[:300], 0, WIDE_ROWS_MAX, regime=Regime.WIDE)
            found += await run(cells, rows[:PROMPT_ROWS], 300, BLOCK_ROWS, regime=Regime.BLOCK)
            for at in range(PROMPT_ROWS, len(rows)):  # one at a time, as tokens arrive
                found += await run(cells, rows[: at + 1], at, 1, regime=Regime.NARROW)
            cells.close()
            return found

        alone = [await talk(rows) for rows in everyone]
        together = {}

        async def one_session(number: int) -> None:
            together[number] = await talk(everyone[number])

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(one_session, number)
        assert [number for number in range(4) if together[number] != alone[number]] == []


@pytest.mark.parametrize(("blocks", "before"), [(1, 0), (9, 5)])
async def test_a_row_waits_for_one_layer_of_anothers_prompt(
    slices: dict[str, Path], blocks: int, before: int
) -> None:
    """One block behind which it came is not done before it, nor are nine, and no bits change.

    Nine are more than the socket holds: some are done before the node has sent all.
    """
    async with opened(slices["Q4_1"], sessions=4) as engine:
        end = blocks * BLOCK_ROWS
        prompt, answer = inputs(engine, 8), inputs(engine, 9, 3)
        reader, answered = engine.open(engine.end), engine.open(engine.end)
        alone = await run(reader, prompt[:end], 0, BLOCK_ROWS, regime=Regime.BLOCK)
        follows = await run(reader, prompt[: end + 1], end, 1, regime=Regime.NARROW)
        expected = await run(answered, answer, 0, 1, regime=Regime.NARROW)
        await run(answered, answer[:2], 0, 1, regime=Regime.NARROW)
        found: dict[str, bytes] = {}

        def done(what: str, outcome: Decoded | EngineError) -> None:
            assert isinstance(outcome, Decoded)
            found[what] = outcome.rows

        os.kill(engine.worker.pid, signal.SIGSTOP)  # so that all of it waits
        for at in range(0, end, BLOCK_ROWS):
            rows = prompt[at : at + BLOCK_ROWS].tobytes()
            reader.submit(at, rows, partial(done, f"block {at}"), regime=Regime.BLOCK)
        row = answer[2:].tobytes()
        answered.submit(2, row, partial(done, "row"), regime=Regime.NARROW)
        os.kill(engine.worker.pid, signal.SIGCONT)
        await wait_until(lambda: len(found) == blocks + 1)
        assert list(found).index("row") <= before
        assert found.pop("row") == expected[-4 * engine.width :]
        assert b"".join(found.values()) == alone
        assert follows == await run(reader, prompt[: end + 1], end, 1, regime=Regime.NARROW)


async def test_a_session_may_end_while_its_prompt_is_read_aside(slices: dict[str, Path]) -> None:
    """Another one that takes its slot, and the one that was answered meanwhile, lose nothing."""
    async with opened(slices["Q4_1"], sessions=4) as engine:
        prompt, answer = inputs(engine, 8), inputs(engine, 9, 40)
        answered = engine.open(engine.end)
        expected = await run(answered, answer, 0, 1, regime=Regime.NARROW)
        alone = engine.open(engine.end)
        short = await run(alone, prompt[:130], 0, BLOCK_ROWS, regime=Regime.BLOCK)
        alone.close()
        for _ in range(3):
            reader = engine.open(engine.end)
            for at in range(0, 576, BLOCK_ROWS):
                rows = prompt[at : at + BLOCK_ROWS].tobytes()
                reader.submit(at, rows, lambda _: None, regime=Regime.BLOCK)
            assert expected == await run(answered, answer, 0, 1, regime=Regime.NARROW)
            reader.close()
            again = engine.open(engine.end)
            assert short == await run(again, prompt[:130], 0, BLOCK_ROWS, regime=Regime.BLOCK)
            again.close()


async def test_regimes_are_kept_apart(slices: dict[str, Path]) -> None:
    """If they differ, three wide rows equal those of a wide chunk of 48; narrow rows do not."""
    async with opened(slices["Q4_K_M"]) as engine:
        assert not engine.worker.parts[0].regimes_agree
        rows = inputs(engine, 5, 96)
        cells = engine.open(engine.end)
        chunk = await run(cells, rows, 0, 48, regime=Regime.WIDE)
        size = 4 * engine.width
        three = await run(cells, rows[:51], 48, 3, regime=Regime.WIDE)
        assert three == chunk[48 * size : 51 * size]
        narrow = await run(cells, rows[:51], 48, 3, regime=Regime.NARROW)
        assert narrow != three
        assert narrow == await run(cells, rows[:51], 48, 1, regime=Regime.NARROW)


@pytest.mark.parametrize("quantisation", ["Q4_1", "Q4_K_M"])
async def test_blocks_are_exact_past_512_cells(slices: dict[str, Path], quantisation: str) -> None:
    """In other chunks and beside another session, with each row in its first run's regime."""
    async with opened(slices[quantisation], sessions=4) as engine:
        assert engine.blocks
        rows, size = inputs(engine, 7, PROMPT_ROWS + 12), 4 * engine.width
        cells, again, beside = (engine.open(engine.end) for _ in range(3))
        whole = await run(cells, rows[:PROMPT_ROWS], 0, BLOCK_ROWS, regime=Regime.BLOCK)
        told = await run(cells, rows, PROMPT_ROWS, 1, regime=Regime.NARROW)
        first = await run(again, rows[:37], 0, 37, regime=Regime.BLOCK)
        waiting = [
            submit(beside, 0, rows[:64].tobytes(), regime=Regime.BLOCK),
            submit(again, 37, rows[37:101].tobytes(), regime=Regime.BLOCK),
            submit(beside, 64, rows[64:65].tobytes(), regime=Regime.NARROW),
            submit(again, 101, rows[101:150].tobytes(), regime=Regime.BLOCK),
        ]
        second = [(await each.wait()).rows for each in waiting]
        rest = await run(again, rows[:PROMPT_ROWS], 150, 50, regime=Regime.BLOCK)
        assert first + second[1] + second[3] + rest == whole
        assert second[0] == whole[: 64 * size]
        assert told == await run(again, rows, PROMPT_ROWS, 7, regime=Regime.NARROW)
        part = await run(again, rows[: PROMPT_ROWS - 9], PROMPT_ROWS - 30, 21, regime=Regime.BLOCK)
        assert part == whole[(PROMPT_ROWS - 30) * size : (PROMPT_ROWS - 9) * size]


async def test_regimes_agree_on_the_default_model(slices: dict[str, Path]) -> None:
    """For Q4_1 a row is the same in any decode."""
    async with opened(slices["Q4_1"]) as engine:
        assert engine.worker.parts[0].regimes_agree
        rows = inputs(engine, 6, 20)
        cells = engine.open(engine.end)
        wide = await run(cells, rows, 0, 20, regime=Regime.WIDE)
        assert wide == await run(cells, rows, 0, 1, regime=Regime.NARROW)


# What is kept, and the ends


async def test_the_probe_is_kept_beside_the_slice(slices: dict[str, Path]) -> None:
    """A second load reads the first one's result, and has the same class."""
    path = slices["Q4_1"]
    cache = Path(f"{path}.probe-1.json")
    async with opened(path) as engine:
        first = engine.numerics_class
    written_ns = modified_ns(cache)
    async with opened(path) as engine:
        assert engine.numerics_class == first
    assert modified_ns(cache) == written_ns


def modified_ns(path: Path) -> int:
    """Return when a file was last written."""
    return path.stat().st_mtime_ns


@needs_proc
async def test_unopened_sessions_take_no_memory(slices: dict[str, Path]) -> None:
    """Their cells would take many times the weights; a used session takes only its own."""
    path, sessions, context = slices["Q4_1"], SESSIONS_MAX, 4096
    cells_bytes = sessions_bytes(read_header(path), 2, sessions, context)
    assert cells_bytes > 250 << 20  # more than twice everything else
    async with open_stage(path, 10, sessions=sessions, context=context) as engine:
        assert resident_bytes(engine.worker.pid) < cells_bytes // 2
        cells = engine.open(engine.end)
        await run(cells, inputs(engine, 3), 0, WIDE_ROWS_MAX, regime=Regime.WIDE)
        assert resident_bytes(engine.worker.pid) < cells_bytes // 2


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory in bytes."""
    return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_the_ends_of_the_default_model_speak(default_model: Path, tmp_path: Path) -> None:
    """Tokens become rows, and rows through the last layer become a token, its text and its rows."""
    first, last = open_model(default_model, tmp_path).ends(1)
    with trio.fail_after(WAIT_S_MAX):
        async with open_ends(first, last, 30, sessions=1, context=CONTEXT) as ends:
            tokens = await ends.tokenize("Hello there, how are you?", special=True)
            assert len(tokens) == len(
                await ends.tokenize("Hello there, how are you?", special=False)
            )
            told = []
            for sampling in (
                GREEDY,
                GREEDY,
                Sampling(temperature=9.0, top_k=0, top_p=1.0, min_p=0.0, seed=7),
            ):
                cells = ends.open()
                cells.start(sampling, tokens)
                embedded = await cells.embed(0, tokens, regime=Regime.WIDE)
                assert len(embedded.rows) == len(tokens) * 4 * ends.width
                told.append(await cells.next(0, embedded.rows, regime=Regime.WIDE))
                cells.close()
            assert replace(told[0], decoding_us=0) == replace(told[1], decoding_us=0)
            assert told[0].token != told[2].token
            assert len(told[0].rows) == 4 * ends.width


# Copies


async def test_who_is_answered_does_not_wait_for_a_trace(slices: dict[str, Path]) -> None:
    """A row that comes just behind one that is traced is answered before it: the trace pauses."""
    async with opened(slices["Q4_1"]) as engine:
        rows = inputs(engine, 5, 100)
        cells, other = engine.open(engine.end), engine.open(engine.end)
        await run(cells, rows[:64], 0, 64, regime=Regime.BLOCK)
        sent = await run(other, rows[:48], 0, 48, regime=Regime.WIDE)
        sent += await run(other, rows[48:60], 48, 1, regime=Regime.NARROW)
        copy = await cells.copy(64)
        found, order = sent[: 48 * 4 * engine.width], list[str]()

        async def traced(at: int) -> None:
            await copy.trace(at, rows[at].tobytes(), regime=Regime.BLOCK)
            order.append("traced")

        for at in range(48, 60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(traced, at)
                await trio.testing.wait_all_tasks_blocked()
                found += await run(other, rows[at:][:1], at, 1, regime=Regime.NARROW)
                order.append("answered")
        assert order == ["answered", "traced"] * 12
        assert found == sent
        copy.close()


async def test_what_cannot_be_copied_is_refused_in_kind(
    slices: dict[str, Path], tmp_path: Path
) -> None:
    """Layers that nobody can trace are; a stage of one session has cells beside it for a copy."""
    for name, why in (("phi3", "phi3 cannot be proven"), ("mixtral", "which experts run")):
        tiny = tmp_path / f"{name}.gguf"
        write_tiny(TINY[name], tiny)
        async with opened(open_model(tiny, tmp_path / name).stage(2, 4)) as engine:
            cells = engine.open(engine.end)
            await run(cells, inputs(engine, 1, 10), 0, 10, regime=Regime.WIDE)
            with pytest.raises(CannotCopy, match=why):
                await cells.copy(10)
    async with opened(slices["Q4_1"], sessions=1) as engine:
        rows, cells = inputs(engine, 2, 20), engine.open(engine.end)
        sent = await run(cells, rows, 0, 20, regime=Regime.WIDE)
        copy = await cells.copy(20)
        steps = await copy.trace(19, rows[19].tobytes(), regime=Regime.WIDE)
        assert steps[1, "out"] == sent[-4 * engine.width :]
        copy.close()
