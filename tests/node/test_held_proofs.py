"""Proofs that were made over a path: told later, whatever ends this machine's asking meanwhile."""

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean, median

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pinfer.core.evidence import Cases, ProofIs, WantProof
from p2pinfer.core.fraud import FraudProof
from p2pinfer.core.ids import PeerId, SessionId
from p2pinfer.node import held_proofs
from p2pinfer.node.fraud_files import ProofFiles, hidden_proofs, open_frauds
from p2pinfer.node.held_proofs import HELD_S_MAX, HELD_S_MEAN, HeldProofs, held_s, post
from p2pinfer.node.relay_peer import RelayOptions, run_relay
from p2pinfer.node.swarm_connection import SwarmConnection, open_swarm_connection
from peers.audits.frauds import FRAUDS, Proof
from peers.discovery.directory import Directory
from peers.parts.protocol import in_place
from peers.steps.messaging import receive, send
from tests.support.directories import advertisement
from tests.support.directories import signed as signed_advertisement
from tests.support.proofs import ACCUSED, AUTHOR, RECEIPT, TERMS, file, signed
from transports.base import Channel, Reach
from transports.blocklist import GuardedTransport
from transports.identity import Identity
from transports.memory.network import MemoryNetwork

HERE = ("/ip4/127.0.0.1/tcp/0",)
NETWORK = Reach("held", mdns=False, dht=False, maps_port=False)
TEST_S_MAX = 60.0
DRAWS = 4000
DAY_S = 86_400.0


class Told:
    """Notes when which proof was told; fails as often as it is made to."""

    def __init__(self, fails: int = 0) -> None:
        self.fails, self.at_s = fails, dict[bytes, float]()

    async def __call__(self, _: Proof, data: bytes) -> bool:
        """Tell nobody."""
        self.fails -= 1
        if self.fails < 0:
            self.at_s[data] = trio.current_time()
        return self.fails < 0


def proof(number: int) -> FraudProof:
    """Return a proof about a session of its own."""
    terms = evolve(TERMS, session=SessionId(bytes([number]) * 16))
    receipt = evolve(RECEIPT, terms=terms.digest())
    receipts = signed(receipt), signed(evolve(receipt, sent=b"y" * 32))
    return FraudProof(terms, ACCUSED.peer_id, 12, receipts)


def kept(folder: Path, number: int = 0) -> Path:
    """Write a proof's file."""
    found = proof(number)
    return ProofFiles(folder).keep(found, file(found))


def marks(folder: Path) -> list[Path]:
    """Return what says that proofs wait."""
    return [*folder.glob("*.held")]


def held(folder: Path, told: Told, seed: int = 1, network: str = "main") -> HeldProofs:
    """Return what holds proofs back, for one run of a node."""
    return HeldProofs(folder, network, told, Random(seed), lambda: 1e9, in_place)


@pytest.fixture(autouse=True)
def _marked_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files be from a second before the time that is passed."""
    write = Path.write_text

    def write_text(path: Path, text: str, *more: str) -> int:
        done = write(path, text, *more)
        os.utime(path, (1e9 - 1, 1e9 - 1))
        return done

    monkeypatch.setattr(Path, "write_text", write_text)


def test_times_are_exponential_and_bounded() -> None:
    """No time is likelier than an earlier one, and none is as likely as the limit was."""
    chance = Random(7)
    found = [held_s(chance) for _ in range(DRAWS)]
    assert 0 <= min(found) < max(found) <= HELD_S_MAX
    assert fmean(found) == pytest.approx(HELD_S_MEAN, rel=0.05)
    assert median(found) == pytest.approx(0.693 * HELD_S_MEAN, rel=0.08)
    late = [each for each in found if each > HELD_S_MEAN]  # it forgets how long it has waited
    assert fmean(late) - HELD_S_MEAN == pytest.approx(HELD_S_MEAN, rel=0.08)
    assert sum(each > 0.99 * HELD_S_MAX for each in found) < DRAWS / 500


async def test_each_is_told_at_a_time_of_its_own(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Not when it was made, nor with another one; and once."""
    told = Told()
    node = held(tmp_path, told)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        for number in range(8):
            node.hold(kept(tmp_path, number))
        await trio.sleep(HELD_S_MAX + 1)
        assert {*told.at_s} == {file(proof(number)) for number in range(8)}
        times = sorted(told.at_s.values())
        assert min(b - a for a, b in pairwise(times)) > 0.1
        assert [*told.at_s] != [file(proof(number)) for number in range(8)]
        at_s = dict(told.at_s)
        await trio.sleep(DAY_S)
        assert told.at_s == at_s
        nursery.cancel_scope.cancel()
    assert not marks(tmp_path)


async def test_what_waits_at_the_end_is_told_in_another_run(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """After another time; not at the end, not at the start, and in its network alone."""
    told = Told()
    with trio.CancelScope() as run:
        async with trio.open_nursery() as nursery:
            node = held(tmp_path, told)
            nursery.start_soon(node.run)
            node.hold(kept(tmp_path))
            await wait_all_tasks_blocked()
            run.cancel()
    assert not told.at_s
    for network, tells in (("other", False), ("main", True), ("main", False)):
        told, began = Told(), trio.current_time()
        with trio.move_on_after(2 * HELD_S_MAX):
            await held(tmp_path, told, seed=2, network=network).run()
        assert bool(told.at_s) is tells
        assert all(at_s > began + 1 for at_s in told.at_s.values())


async def test_it_is_told_again_until_somebody_hears(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Where nobody answers, later."""
    told = Told(fails=3)
    node = held(tmp_path, told)
    node.hold(kept(tmp_path))
    with trio.move_on_after(5 * HELD_S_MAX):
        await node.run()
    assert len(told.at_s) == 1
    assert not marks(tmp_path)


@pytest.mark.parametrize("gone", ["file", "damaged", "mark", "stale"])
async def test_what_is_gone_or_stale_is_forgotten(
    autojump_clock: MockClock, tmp_path: Path, gone: str
) -> None:
    """And ends nothing."""
    told = Told()
    node = held(tmp_path, told)
    path = kept(tmp_path)
    node.hold(path)
    mark = path.with_name(path.name + ".held")
    spoil: dict[str, Callable[[], object]] = {
        "file": path.unlink,
        "damaged": partial(path.write_bytes, b"nonsense"),
        "mark": mark.unlink,
        "stale": partial(os.utime, mark, (1e9 - 29 * DAY_S, 1e9 - 29 * DAY_S)),
    }
    spoil[gone]()
    node = held(tmp_path, told)
    with trio.move_on_after(2 * HELD_S_MAX):
        await node.run()
    assert not told.at_s
    assert not mark.exists()


async def test_no_more_wait_than_may(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The others are shunned here, and told to nobody."""
    told = Told()
    node = held(tmp_path, told)
    for number in range(held_proofs.WAITING_MAX + 4):
        node.hold(kept(tmp_path, number))
    with trio.move_on_after(2 * HELD_S_MAX):
        await node.run()
    assert len(told.at_s) == held_proofs.WAITING_MAX


async def test_no_other_run_tells_what_was_learned_over_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that serves: it shuns the peer, and is not the first to know why."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))
    files, model = list[Path](), TERMS.model
    for hold in (files.append, None):
        async with MemoryNetwork().join(AUTHOR.peer_id) as joined, trio.open_nursery() as nursery:
            transport, asked = GuardedTransport(joined), trio.Event()
            directory = Directory(transport, AUTHOR, Random(1))

            def note(*_: object, event: trio.Event = asked) -> None:
                event.set()

            swarm = SwarmConnection(AUTHOR, transport, directory, (), Random(1), nursery)
            frauds = open_frauds(swarm, model, AUTHOR.sign, lambda _: (), note, hold=hold)
            said = advertisement(ACCUSED, TERMS.model)
            directory.follow(TERMS.model)
            directory.view.take(signed_advertisement(said, ACCUSED), trio.current_time())
            if hold:
                nursery.start_soon(frauds.run)
                frauds.accuse(proof(0))
                with trio.fail_after(TEST_S_MAX):
                    await asked.wait()
                    await frauds.finish()
            assert frauds.proven == [ACCUSED.peer_id]
            assert not frauds._cases().cases
            assert not directory.holding(TERMS.model)
            nursery.cancel_scope.cancel()
    (path,) = files
    assert path.parent == hidden_proofs()
    assert path.read_bytes() == file(proof(0))


@asynccontextmanager
async def relay(home: Path) -> AsyncGenerator[str, None]:
    """Run a relay; yield its address."""
    up, found = trio.Event(), list[str]()

    def on_ready(_: PeerId, addresses: tuple[str, ...]) -> None:
        found.extend(addresses)
        up.set()

    options = RelayOptions(listen=HERE, network=NETWORK, identity=home / "relay.key")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_relay, options, on_ready, lambda _: None)
        await up.wait()
        yield found[0]
        nursery.cancel_scope.cancel()


async def test_each_comes_from_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer hears of two proofs over a path: from two ids, neither met before."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))
    heard = list[tuple[PeerId, bytes]]()
    model = TERMS.model

    async def answer(channel: Channel) -> None:
        (case,) = (await receive(channel, Cases)).cases
        await send(channel, Cases(()))
        await receive(channel, WantProof)
        await send(channel, WantProof(case.digest))
        heard.append((channel.remote, (await receive(channel, ProofIs)).data))

    with trio.fail_after(TEST_S_MAX):
        async with (
            relay(tmp_path) as way_in,
            open_swarm_connection((way_in,), NETWORK, listen=HERE) as peer,
        ):
            peer.transport.handle(FRAUDS, answer)
            peer.directory.listen()
            await peer.directory.enter([way_in])
            peer.stay_in_touch()
            about = advertisement(Identity(b"p" * 32), model)
            at = tuple(peer.transport.addresses)
            peer.directory.advertise(evolve(about, peer=peer.transport.peer_id, addresses=at))
            for number in range(2):
                found = proof(number)
                while not await post((way_in,), NETWORK, 1, found, file(found)):  # noqa: ASYNC110
                    await trio.sleep(0.2)  # the relay has not heard of the peer yet
    assert [data for _, data in heard] == [file(proof(0)), file(proof(1))]
    one, two = (remote for remote, _ in heard)
    assert one != two
    assert {one, two}.isdisjoint({way_in.rpartition("/")[2], AUTHOR.peer_id})


async def test_where_no_relay_answers_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no other way."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))
    nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{AUTHOR.peer_id}"
    with trio.fail_after(TEST_S_MAX):
        assert not await post((nobody,), NETWORK, 1, proof(0), file(proof(0)))
