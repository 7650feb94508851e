"""Agents of one gateway with real peers: what they share is read once, and checked as ever."""

import json
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pinfer.client import session_pool
from p2pinfer.client.answer import Answer, ChatOptions
from p2pinfer.client.library import Swarm, open_swarm
from p2pinfer.core.sampling import Sampling
from p2pinfer.core.trust import AuditVerdict
from tests.support.processes import (
    COMMAND,
    SESSIONS,
    Peer,
    client_options,
    environment,
    open_client,
    start_peers,
    stop,
)

pytestmark = pytest.mark.real

ALL_S_MAX = 240.0
SHARED = [300 + n * 7 % 900 for n in range(200)]
"""Instructions that agents have in common: blocks, and a rest that is none."""

RIGHT = {AuditVerdict.SAME, AuditVerdict.PROVED}
GREEDY = ChatOptions(Sampling(temperature=0.0), max_tokens=12)


@pytest.fixture(scope="module")
def holders(home: Path) -> Iterator[list[Peer]]:
    """Provide a chain of three, and another holder of the middle layers."""
    peers = start_peers(home, ["1:10", "10:19", "19:29", "10:19"])
    yield peers
    for peer in peers:
        stop(peer.process)


async def ask(swarm: Swarm, *own: int) -> Answer:
    """Ask as an agent whose prompt begins like all others'."""
    answer = Answer()
    async with aclosing(swarm.answer([*SHARED, *own], GREEDY, answer)) as pieces:
        async for _ in pieces:
            pass
    return answer


async def test_shared_instructions_are_read_once(
    default_model: Path,
    holders: list[Peer],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy answers like one session that read both, is audited, certified, and survives."""
    monkeypatch.setattr(session_pool, "LOST_TOKENS_MAX", 8)
    one, other, third = [700, 701, 702, 703] * 10, [800, 801, 802], [900, 901]
    options = replace(client_options(default_model, holders[0]), audit_rate=1.0)
    with trio.fail_after(ALL_S_MAX):
        async with open_client(options) as client, open_swarm(client, 1) as alone:
            await ask(alone, *one)
            due = [(await ask(alone, *own)).spoken for own in (other, third)]
        async with open_client(options) as client, open_swarm(client, SESSIONS) as swarm:
            first = await ask(swarm, *one)
            second = await ask(swarm, *other)
            assert (first.reused_tokens, second.reused_tokens) == (0, len(SHARED))
            assert swarm.pool.idle == 2
            assert second.spoken == due[0]
            assert second.trust
            assert len(second.trust.audits) == 3
            assert {each.verdict for each in second.trust.audits} <= RIGHT
            assert second.certificate

            middle = next(lent.session.route[1].peer for lent in swarm.pool._idle)
            next(peer for peer in holders if peer.id == middle).process.kill()
            after = await ask(swarm, *third)
            assert after.reused_tokens == len(SHARED)
            assert after.spoken == due[1]
            assert after.trust
            assert after.trust.held
            assert middle not in [hop["peer"] for hop in after.route]
    file = tmp_path / "answer.certificate"
    file.write_bytes(second.certificate)
    verified = await trio.run_process(
        [*COMMAND, "verify", str(file), "--json"], capture_stdout=True, env=environment(home)
    )
    assert all(each["held"] for each in json.loads(verified.stdout)["findings"])
