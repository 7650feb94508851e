"""Cheats may convict an honest peer: a known limit. Any other conviction of one is a violation."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from trio.testing import MockClock

from p2pinfer.core.audit import THIS_MACHINE
from p2pinfer.core.ids import ModelId, PeerId
from peers.audits.replay import OpenReplay
from sim.fraud_watch import FraudWatch
from sim.record import RunRecord

ME, ACCUSED, LIAR, HONEST = map(PeerId, ("me", "accused", "liar", "honest"))


def replay_by(name: str) -> OpenReplay:
    """Return a replay that does nothing."""

    @asynccontextmanager
    async def opening(_: int) -> AsyncIterator[Any]:
        yield SimpleNamespace(name=name)

    return opening


@pytest.mark.parametrize(
    ("judges", "me", "is_framed"),
    [
        ([LIAR, LIAR, HONEST], ME, True),
        ([LIAR, HONEST, HONEST], ME, False),
        ([THIS_MACHINE], ME, False),
        ([THIS_MACHINE], LIAR, True),
        ([], ME, False),
    ],
)
async def test_an_honest_peer_that_is_convicted(
    judges: Sequence[str], me: PeerId, is_framed: bool, autojump_clock: MockClock
) -> None:
    """By a majority of cheats, or by a cheat itself: a known limit. Else it is a violation."""
    record, case = RunRecord(), SimpleNamespace(digest=b"case")
    nothing: Any = lambda *_: None  # noqa: E731 -- stands for several functions
    transport: Any = SimpleNamespace(peer_id=me, shut_out=nothing)
    directory: Any = SimpleNamespace(shut_out=nothing, holding=nothing)
    identity: Any = SimpleNamespace(sign=nothing)
    found = FraudWatch(ModelId("ab" * 32), record, {LIAR}).open(
        transport,
        directory,
        identity,
        lambda _: [replay_by(name) for name in judges],
        random.Random(1),
    )
    case_: Any = case
    for opening in found._judges(case_):
        async with opening(1):
            pass
    proof: Any = SimpleNamespace(accused=ACCUSED, case=lambda: case)
    found._on_proven(proof, b"")
    assert record.events["framed"] == is_framed
    assert bool(record.violations) is not is_framed
