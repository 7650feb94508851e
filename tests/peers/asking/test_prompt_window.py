"""As many chunks of a prompt are under way as the links hold, and no more wait than is of use."""

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.limits import BLOCK_ROWS
from peers.asking import prompt_window
from peers.asking.prompt_window import CHUNKS_MAX, CHUNKS_MIN, WAITING_MIN, PromptWindow
from tests.support.fake_engines import FakeEnds, FakeStage
from tests.support.swarm import PEERS, answer, swarm

CONTEXT = 4096
PROMPT = [3 + i * 7 % 40 for i in range(32 * BLOCK_ROWS)]


def settled(chain_s: float, slowest_s: float) -> int:
    """Return the limit after a long prompt through a chain, whose slowest part takes so long."""
    window, left = PromptWindow(), [0.0] * CHUNKS_MIN
    free_at = 0.0
    for _ in range(500):
        sent_at = left.pop(0)
        free_at = max(free_at + slowest_s, sent_at + chain_s)
        left += [free_at] * window.came_back(free_at - sent_at, free_at)
        assert len(left) == window.limit
    return window.limit


@pytest.mark.parametrize(("chain_s", "slowest_s"), [(0.3, 0.1), (0.1, 0.1), (0.001, 0.1)])
def test_short_chains_keep_few_chunks(chain_s: float, slowest_s: float) -> None:
    """On a local network, eight are enough for as long as four of them wait."""
    assert settled(chain_s, slowest_s) == CHUNKS_MIN


@pytest.mark.parametrize(("chain_s", "slowest_s"), [(0.9, 0.06), (2.0, 0.1), (1.0, 0.05)])
def test_long_links_are_filled(chain_s: float, slowest_s: float) -> None:
    """The slowest part always has work, and little waits before it."""
    holds = chain_s / slowest_s
    assert holds + WAITING_MIN - 1 <= settled(chain_s, slowest_s) <= holds + WAITING_MIN + 1


def test_there_is_a_limit() -> None:
    """However long the links are; a clock that stands still does no harm."""
    assert settled(100.0, 0.01) == CHUNKS_MAX
    window = PromptWindow()
    assert sum(window.came_back(0.0, 1.0) - 1 for _ in range(99)) == CHUNKS_MAX - CHUNKS_MIN
    window.begin()
    found = [window.came_back(0.1, 0.1 * n) for n in range(99)]  # a short chain from now on
    assert sum(found) == 99 + CHUNKS_MIN - CHUNKS_MAX
    assert window.limit == CHUNKS_MIN


async def first_token_s(latency_s: float) -> float:
    """Return when the first token of a long prompt comes, through three stages."""
    async with swarm((1, 10), ends=FakeEnds(context=CONTEXT)) as made:
        for number, (first, end) in enumerate(((10, 20), (20, 29)), 1):
            engine = FakeStage(first, end, context=CONTEXT)
            await made.nursery.start(made.add, PEERS[number], engine)
        for engine in made.engines:
            engine.machine.context, engine.context = CONTEXT, CONTEXT
            engine.machine.decode_s = 0.03
        made.network.latency_s = lambda *_: latency_s
        async with made.open(context=CONTEXT) as session:
            started = trio.current_time()
            assert len(await answer(session, PROMPT, 1)) == 1
            return trio.current_time() - started


@pytest.mark.parametrize(("latency_s", "share"), [(0.0, 1.0), (0.115, 0.8)])
async def test_a_long_prompt_over_long_links_is_read_sooner(
    latency_s: float, share: float, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Against eight chunks at a time; on a local network it takes as long."""
    found = await first_token_s(latency_s)
    monkeypatch.setattr(prompt_window, "CHUNKS_MAX", CHUNKS_MIN)
    assert found <= share * await first_token_s(latency_s) + 1e-6
