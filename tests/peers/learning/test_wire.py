"""What a member learns, and by what, never leaves it in the clear."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import trio
from trio.testing import MockClock

from p2pinfer.core.ids import PeerId
from peers.learning.member import SumScheme
from scheduler.judging import Numbers, shortened
from tests.support.learners import Learner, learners, plain_sums, real_sums, task, toy_work
from transports.memory.network import MemoryChannel, MemoryTopic

WINDOW = 8
"""Numbers in a row that would give an update away."""


def encodings(update: Numbers) -> Iterator[bytes]:
    """Yield how a part of an update might look on a wire."""
    for kind in ("<i2", "<i4", "<i8", ">i2", ">i4", ">i8", "<f4", "<f8"):
        for at in (0, len(update) // 2, len(update) - WINDOW):
            yield update[at : at + WINDOW].astype(kind).tobytes()
            if "f" in kind:
                yield (update[at : at + WINDOW] * 2.0**-16).astype(kind).tobytes()


async def tapped(scheme: SumScheme, monkeypatch: Any) -> tuple[bytes, dict[PeerId, Numbers]]:
    """Run a round of three; return all bytes that left anybody, and what each had learned."""
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
    learned: dict[PeerId, Numbers] = {}
    with trio.fail_after(2000):
        async with learners(what, scheme) as them:
            for number in range(3):
                work = toy_work(number)
                learner: Learner = await them.add(number, work)
                change = await work.train(np.zeros(work.size, np.int32), 1)
                learned[learner.peer] = shortened(change, what.clip)
            await them.finish()
    return b"\0".join(wire), learned


def shown(wire: bytes, learned: dict[PeerId, Numbers]) -> list[PeerId]:
    """Return the members whose updates can be read off the wire."""
    return [
        peer for peer, update in learned.items() if any(each in wire for each in encodings(update))
    ]


async def test_no_update_is_in_the_clear(autojump_clock: MockClock, monkeypatch: Any) -> None:
    """Of three members' updates nothing can be read, but the sum of all can."""
    wire, learned = await tapped(real_sums(), monkeypatch)
    assert shown(wire, learned) == []
    total = np.sum([*learned.values()], axis=0)
    assert total.astype("<i4").tobytes() in wire


async def test_the_tap_would_see_an_update(autojump_clock: MockClock, monkeypatch: Any) -> None:
    """Sums that hide nothing are found out."""
    wire, learned = await tapped(plain_sums(), monkeypatch)
    assert len(shown(wire, learned)) == 3
