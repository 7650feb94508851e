"""Each session behind relays has a name, a transport, and a signature of its own."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.errors import UserError
from p2pinfer.node.disguises import Disguises, shape_of
from p2pinfer.node.hidden_way import OpenedWay, check_hops
from peers.asking.session import Requester
from peers.audits.auditor import Auditor
from tests.support.fake_engines import FakeEnds
from tests.support.swarm import CONTEXT, MODEL
from transports.identity import ephemeral_identity, verify
from transports.libp2p.padding import CellShape
from transports.memory.network import MemoryNetwork


async def test_sessions_have_nothing_in_common(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Neither names nor transports; what a session's auditor accuses is signed in its name."""
    network, accused = MemoryNetwork(), list[bytes]()
    proof: Any = b"a proof"

    def accuse(told: bytes, sign: Callable[[bytes], bytes]) -> None:
        accused.append(sign(told))

    @asynccontextmanager
    async def another(shape: CellShape) -> AsyncGenerator[OpenedWay, None]:
        assert shape == CellShape.for_rows(32)
        identity = ephemeral_identity()
        async with network.join(identity.peer_id) as transport:
            yield OpenedWay(transport, identity, ())

    options: Any = SimpleNamespace(
        network="test", is_named=False, anonymous=False, evidence=True, pace_ms=0
    )
    swarm: Any = SimpleNamespace(another=another, nursery=nursery)
    replays: Any = SimpleNamespace(find=lambda *_: [])
    async with network.join(ephemeral_identity().peer_id) as own:
        requester = Requester(nursery, own, FakeEnds(context=CONTEXT), MODEL)
        disguises = Disguises(swarm, options, requester, 32)
        auditor = Auditor(lambda *_: [], 0.0)
        disguises.audit_with(auditor, lambda *_: replays, accuse)
        names = []
        async with disguises.take() as one, disguises.take() as other:
            for each in (one, other):
                name = each._transport.peer_id
                names.append(name)
                worn = disguises.worn(name)
                assert worn.auditor
                worn.auditor._on_fraud(proof)
                assert verify(name, b"a proof", accused[-1])
                assert verify(name, b"it", worn.sign(b"it"))
        assert len({own.peer_id, *names}) == 3
        with pytest.raises(KeyError):
            disguises.worn(names[0])
    nursery.cancel_scope.cancel()


def test_a_pace_fits_the_rows() -> None:
    """One sentence that says what to choose."""
    with pytest.raises(UserError, match="choose at least 17"):
        shape_of(128 * 1024, 5)
    assert shape_of(128 * 1024, 17).pace_ms == 17


@pytest.mark.parametrize(("via", "pace_ms"), [(0, 20), (1, 4), (1, 201), (2, -1)])
def test_a_pace_needs_a_path_and_is_bounded(via: int, pace_ms: int) -> None:
    """It says so before anything starts."""
    with pytest.raises(UserError, match="--pace"):
        check_hops(via, "test", pace_ms)
