"""What a member learns, and by what, never leaves it in the clear."""

import random
from typing import Any

import msgpack
import numpy as np
import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.learning import AskSaid, TaskId
from p2pinfer.core.wire import encode
from peers.learning.group_sums import SumScheme
from scheduler.judging import Numbers, shortened
from tests.support import clear_text
from tests.support.learners import learners, plain_sums, real_sums, task, toy_work
from transports.memory.network import MemoryChannel, MemoryTopic


async def tapped(scheme: SumScheme, monkeypatch: Any) -> tuple[bytes, list[Numbers], Numbers]:
    """Run a round of three; return all bytes that left them, their updates, and what came of it."""
    wire: list[bytes] = []
    send, send_now, publish = MemoryChannel.send, MemoryChannel.send_now, MemoryTopic.publish

    async def tap_send(channel: MemoryChannel, message: bytes) -> None:
        wire.append(message)
        await send(channel, message)

    def tap_now(channel: MemoryChannel, message: bytes) -> bool:
        wire.append(message)
        return send_now(channel, message)

    def tap_publish(topic: MemoryTopic, message: bytes) -> None:
        wire.append(message)
        publish(topic, message)

    monkeypatch.setattr(MemoryChannel, "send", tap_send)
    monkeypatch.setattr(MemoryChannel, "send_now", tap_now)
    monkeypatch.setattr(MemoryTopic, "publish", tap_publish)
    what = task(rounds=1, group=3, least=3)
    learned: list[Numbers] = []
    with trio.fail_after(2000):
        async with learners(what, scheme) as them:
            for number in range(3):
                work = toy_work(number)
                await them.add(number, work)
                change = await work.train(np.zeros(work.size, np.int32), 1)
                learned.append(shortened(change, what.clip))
            heads = await them.finish()
    return b"\0".join(wire), learned, heads[0].numbers


def shown(wire: bytes, updates: list[Numbers]) -> int:
    """Return how many of some updates can be read off the wire."""
    return sum(bool(clear_text.found_in(wire, clear_text.update(each))) for each in updates)


async def test_no_update_is_in_the_clear(autojump_clock: MockClock, monkeypatch: Any) -> None:
    """Of three members' updates nothing can be read; what came of all of them is what it should."""
    wire, learned, head = await tapped(real_sums(), monkeypatch)
    assert shown(wire, learned) == 0
    mean = np.rint(np.sum(learned, axis=0) / len(learned))
    np.testing.assert_array_equal(head, mean)


async def test_the_tap_would_see_an_update(autojump_clock: MockClock, monkeypatch: Any) -> None:
    """Sums that hide nothing are found out."""
    wire, learned, _ = await tapped(plain_sums(), monkeypatch)
    assert shown(wire, learned) == 3


@pytest.mark.parametrize(
    "leak",
    [
        b'{"prompt": "Where does Bako live?"}',
        "Where does Bako".encode("utf-16-le"),
        b"Where does Bako".hex().encode(),
        encode(AskSaid(TaskId("a" * 64), ())) + b"".join(map(msgpack.packb, range(250, 270))),
        np.arange(250, 270, dtype="<u2").tobytes(),
        np.arange(250, 270, dtype=">i4").tobytes(),
        b"".join(map(clear_text.varint, range(250, 270))),
        str([*range(250, 270)]).encode(),
        np.linspace(-3, 4, 40, dtype=np.float16).tobytes(),
        np.linspace(-3, 4, 40, dtype=">f4").tobytes(),
    ],
)
def test_the_tap_would_see_any_secret(leak: bytes) -> None:
    """Wherever it lies among random bytes: a text, tokens, or rows of numbers."""
    rows = np.linspace(-3, 4, 40, dtype=np.float32)
    secrets = clear_text.Secrets(["Where does Bako live?"], [range(250, 270)], [rows])
    chance = random.Random(3)
    for length in range(8):
        noise = chance.randbytes(1000 + length)
        assert not clear_text.found_in(noise, secrets.needles())
        assert clear_text.found_in(noise + leak + noise, secrets.needles())
