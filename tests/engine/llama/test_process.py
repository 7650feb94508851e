"""The node's side of a worker, with fake processes."""

import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import IO

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pinfer.core.errors import EngineDied, lone_errors
from p2pinfer.engine.frames import PartConfig, PartReady, WorkerConfig, pack
from p2pinfer.engine.llama.process import DEATHS_MAX, STEADY_S, Worker


@dataclass(frozen=True)
class Life:
    """The behaviour of one process."""

    loads: bool = True
    answers: bool = False
    lives_s: float = 0.0
    returncode: int = 1


@dataclass
class Ended:
    """A process that has ended."""

    returncode: int

    def wait(self, _: float) -> int:
        """Return at once."""
        return self.returncode

    def kill(self) -> None:
        """Do nothing."""


async def run_lives(lives: Sequence[Life], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Run processes one after the other; return when each began, and one more at the end."""
    begun: list[float] = []

    def start(_: Worker, __: IO[bytes]) -> tuple[Ended, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        begun.append(trio.current_time())
        if len(begun) > len(lives):
            theirs.close()
            nursery.cancel_scope.cancel()
            return Ended(0), ours
        life = lives[len(begun) - 1]
        nursery.start_soon(live, theirs, life)
        worker.generation += 1
        return Ended(life.returncode), ours

    async def live(sock: socket.socket, life: Life) -> None:
        with sock:
            if life.loads:
                sock.sendall(
                    pack(
                        [
                            "ready",
                            [asdict(PartReady(1, 8, 0, True, True, "ab" * 16, True, True, "", ""))],
                        ]
                    )
                )
                await wait_all_tasks_blocked()
            if life.answers:
                worker.request(lambda _: None, "rows")
                number = sum(each.answers for each in lives[: len(begun)])
                sock.sendall(pack([number, 0]))
                await wait_all_tasks_blocked()
            await trio.sleep(life.lives_s)

    monkeypatch.setattr(Worker, "_start", start)
    part = PartConfig("/cache/stage-1-8.gguf", tokens=False, logits=False)
    worker = Worker(WorkerConfig((part,), 1, 1))
    with lone_errors():
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.keep_running)
    return begun


async def test_an_answer_resets_the_pause(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pauses double after each process that dies at once, but not after one that answered."""
    lives = [Life(), Life(), Life(answers=True), Life()]
    begun = await run_lives(lives, monkeypatch)
    pauses = [round(after - before, 2) for before, after in pairwise(begun)]
    assert pauses == [0.1, 0.2, 0.1, 0.2]


async def test_the_same_death_repeated_ends_the_worker(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence names the slice, the signal and what to do."""
    with pytest.raises(EngineDied) as caught:
        await run_lives([Life(answers=True, returncode=-11)] * DEATHS_MAX, monkeypatch)
    text = str(caught.value)
    assert f"ended on signal 11 (SIGSEGV) {DEATHS_MAX} times in a row, with stage-1-8.gguf" in text
    assert "remove /cache/stage-1-8.gguf" in text


@pytest.mark.parametrize(
    ("returncode", "remedy"),
    [(-9, "memory ran out: free some"), (-4, "compiled for another CPU; type: make clean setup")],
)
async def test_the_remedy_fits_the_signal(
    returncode: int,
    remedy: str,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A killed process lacked memory; an illegal instruction belongs to another CPU."""
    with pytest.raises(EngineDied, match=remedy):
        await run_lives([Life(returncode=returncode)] * DEATHS_MAX, monkeypatch)


async def test_a_first_death_while_loading_is_final(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not retried: the node never served."""
    with pytest.raises(EngineDied, match=r"SIGKILL\), with stage-1-8\.gguf; memory ran out"):
        await run_lives([Life(loads=False, returncode=-9)], monkeypatch)


@pytest.mark.parametrize("other", [Life(returncode=-6), Life(returncode=-11, lives_s=STEADY_S)])
async def test_different_deaths_and_long_lives_reset_the_count(
    other: Life, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Occasional deaths are tolerated."""
    crash = Life(returncode=-11)
    lives = [*[crash] * (DEATHS_MAX - 1), other, *[crash] * (DEATHS_MAX - 2)]
    assert len(await run_lives(lives, monkeypatch)) == len(lives) + 1
