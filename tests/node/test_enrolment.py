"""Networks of founders over real connections: who is admitted, renewed, expelled, and when."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
import trio
from attrs import evolve

from p2pinfer.core.enrolment import AskGrant, GrantIs, StillIn
from p2pinfer.core.errors import ChannelClosed, PeerError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Denied
from p2pinfer.node.networks import Invited, Membership, NetworkFile, Register, register_path
from peers.discovery.enrolment import ENROLMENT, Enrolment
from peers.steps.messaging import receive, send
from tests.support.transport_contract import echo
from transports.base import Reach
from transports.blocklist import GuardedTransport
from transports.envelope import EnvelopeKey
from transports.identity import Identity, public_key
from transports.libp2p.transport import Libp2pTransport, open_libp2p
from transports.membership import EPOCH_S, GRACE_S, Founding

HERE = ["/ip4/127.0.0.1/tcp/0"]
FOUNDER, SECOND, THIRD, ANN, BOB = (Identity(bytes([number]) * 32) for number in range(11, 16))
TEST_S_MAX = 30.0


@dataclass
class Clock:
    """The time of all machines."""

    now_s: float = 1000.5 * EPOCH_S

    def __call__(self) -> float:
        """Return seconds since 1970."""
        return self.now_s


@dataclass
class Home:
    """Machines in one network."""

    folder: Path
    founders: Sequence[Identity] = (FOUNDER,)
    threshold: int = 1
    clock: Clock = field(default_factory=Clock)

    def founding(self) -> Founding:
        """Return the network."""
        keys = tuple(public_key(each.peer_id) for each in self.founders)
        return Founding("home", keys, self.threshold, b"k" * 32)

    def part(self, member: Identity) -> Membership:
        """Return a machine's part, which has no grants yet."""
        path = self.folder / f"{member.peer_id}.network"
        if not path.exists():
            path.write_text(NetworkFile(self.founding()).encode())
        return Membership(path, member, self.clock)

    def invite(self, member: Identity, *, by: Sequence[Identity] = ()) -> None:
        """Have founders sign for a member, and write it down."""
        part = self.part(member)
        now = self.founding().epoch_at(self.clock())
        for each in by or self.founders:
            self.note(member, each)
            founder = self.part(each)
            part.take([g for g in [founder.sign_for(public_key(member.peer_id), now)] if g])

    def note(self, member: Identity, founder: Identity, *, is_expelled: bool = False) -> None:
        """Write in a founder's register."""
        register = Register(register_path(self.folder / f"{founder.peer_id}.network"))
        register.put(member.peer_id, Invited("", 0, is_expelled))


@dataclass
class Machine:
    """A running peer."""

    part: Membership
    transport: Libp2pTransport
    enrolment: Enrolment


@asynccontextmanager
async def running(home: Home, *members: Identity) -> AsyncIterator[list[Machine]]:
    """Run peers that echo; founders sign for themselves."""
    found: list[Machine] = []
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(TEST_S_MAX))
        for member in members:
            part = home.part(member)
            part.renew_own()
            reach = Reach("home", part.founding.key, members=part)
            transport = await stack.enter_async_context(open_libp2p(None, HERE, reach))
            transport.handle("echo", echo)
            guarded = GuardedTransport(transport)
            known = lambda: [(m.transport.peer_id, tuple(m.transport.addresses)) for m in found]  # noqa: E731
            secret = lambda size: bytes([len(found)] * size)  # noqa: E731
            enrolment = Enrolment(guarded, part, known, Random(1), secret)
            enrolment.listen()
            found.append(Machine(part, transport, enrolment))
        yield found


async def talk(one: Machine, two: Machine) -> bytes:
    """Have one peer call another, and return the echo."""
    peer = two.transport.peer_id
    channel = await one.transport.open(peer, "echo", tuple(two.transport.addresses))
    await channel.send(b"hello")
    answer = await channel.receive()
    await channel.close()
    return answer


async def refused(one: Machine, two: Machine) -> None:
    """See that one peer cannot call another."""
    with pytest.raises(PeerError):
        await talk(one, two)


async def test_members_talk_and_others_do_not(tmp_path: Path) -> None:
    """Who has the network's key and no founder's signature gets no connection, either way."""
    home = Home(tmp_path)
    home.invite(ANN)
    async with running(home, FOUNDER, ANN, BOB) as (founder, ann, bob):
        assert await talk(founder, ann) == await talk(ann, founder) == b"hello"
        await refused(bob, ann)
        await refused(ann, bob)
        assert set(ann.part.proven) == {founder.transport.peer_id}


async def test_an_expelled_member_is_out_within_two_epochs_and_nobody_else(tmp_path: Path) -> None:
    """The others' connections outlive the epochs; what goes on there is not disturbed."""
    home = Home(tmp_path)
    for member in (ANN, BOB):
        home.invite(member)
    async with running(home, FOUNDER, ANN, BOB) as machines:
        founder, ann, bob = machines
        await talk(ann, bob)
        await talk(ann, founder)
        channel = await ann.transport.open(founder.transport.peer_id, "echo")
        for each in machines:
            await each.enrolment.look()  # everybody has the next epoch's grants, too
        assert not ann.part.lacks()
        home.note(BOB, FOUNDER, is_expelled=True)
        for _ in range(2):
            home.clock.now_s += EPOCH_S
            trio.lowlevel.current_task()
            for each in machines:
                each.enrolment._asked_s = -1e9
                await each.enrolment.look()
            await channel.send(b"still here")
            assert await channel.receive() == b"still here"
        assert not bob.part.is_admitted
        assert ann.part.is_admitted
        assert bob.transport.peer_id not in ann.part.proven
        with pytest.raises(PeerError):
            await talk(bob, ann)
        await refused(ann, bob)
        assert await talk(ann, founder) == b"hello"
        (connection,) = ann.transport._connections(founder.transport.peer_id)
        assert not connection.is_closed


async def test_founders_shut_out_at_once(tmp_path: Path) -> None:
    """The machine where it was expelled needs not wait."""
    home = Home(tmp_path)
    home.invite(BOB)
    async with running(home, FOUNDER, BOB) as (founder, bob):
        channel = await bob.transport.open(
            founder.transport.peer_id, "echo", tuple(founder.transport.addresses)
        )
        home.note(BOB, FOUNDER, is_expelled=True)
        await founder.enrolment.look()
        with pytest.raises(ChannelClosed):
            await channel.receive()
        await refused(bob, founder)


async def test_a_member_that_was_away_is_renewed_by_a_founder_alone(tmp_path: Path) -> None:
    """Others refuse it until then."""
    home = Home(tmp_path)
    home.invite(ANN)
    home.invite(BOB)
    home.clock.now_s += 5 * EPOCH_S
    async with running(home, FOUNDER, ANN, BOB) as (founder, ann, bob):
        bob.part.take([founder.part.sign_for(public_key(BOB.peer_id), bob.part.epoch_now)])  # type: ignore[list-item]
        await refused(ann, bob)
        assert await talk(ann, founder) == b"hello"
        await ann.enrolment.look()
        assert not ann.part.lacks()
        ann.transport.part(founder.transport.peer_id)
        assert await talk(ann, bob) == b"hello"


async def test_two_of_three_founders_sign(tmp_path: Path) -> None:
    """A member asks until it has enough; one of them alone admits nobody."""
    home = Home(tmp_path, (FOUNDER, SECOND, THIRD), 2)
    for founder, other in ((FOUNDER, SECOND), (SECOND, FOUNDER)):
        home.part(founder).renew_own()
        home.invite(founder, by=[other])
    home.invite(ANN, by=[FOUNDER])
    assert home.part(ANN).key_now is None
    home.invite(ANN, by=[SECOND])
    assert home.part(ANN).is_admitted
    async with running(home, FOUNDER, SECOND, ANN, BOB) as (_, second, ann, bob):
        assert await talk(ann, second) == b"hello"
        await refused(bob, ann)
        assert home.founding().epoch_at(home.clock()) + 1 in ann.part.lacks()
        await ann.enrolment.look()
        assert not ann.part.lacks()


async def test_what_a_hostile_member_asks_and_shows_is_refused(tmp_path: Path) -> None:
    """Grants for others, far epochs, unsigned questions; another's proof, and noise."""
    home = Home(tmp_path)
    home.invite(ANN)
    home.invite(BOB)
    async with running(home, FOUNDER, ANN, BOB) as (founder, ann, bob):
        await talk(ann, founder)
        key = EnvelopeKey(bytes(32))
        now = ann.part.epoch_now

        async def asked(member: Identity, epoch: int, *, signs: bool = True) -> object:
            question = AskGrant(public_key(member.peer_id), epoch, key.public, bytes(64))
            if signs:
                question = evolve(question, signature=member.sign(question.to_sign()))
            channel = await ann.transport.open(founder.transport.peer_id, ENROLMENT)
            await send(channel, question)
            return await receive(channel, GrantIs, Denied)

        assert isinstance(await asked(ANN, now + 1), GrantIs)
        stranger = Identity(b"z" * 32)
        for member, epoch in ((ANN, now + 2), (ANN, now - 1), (stranger, now)):
            assert isinstance(await asked(member, epoch), Denied)
        with pytest.raises(ChannelClosed):
            await asked(BOB, now, signs=False)
        proof = ann.part.prove(ann.transport.peer_id, bob.transport.peer_id, b"")
        for wrong in (proof, b"noise", proof[:-1] + b"\0"):
            channel = await ann.transport.open(founder.transport.peer_id, ENROLMENT)
            await send(channel, StillIn(wrong))
            with pytest.raises(ChannelClosed):
                await receive(channel, StillIn)
        assert await talk(ann, founder) == b"hello"


async def test_damaged_files_let_nobody_in_and_end_nothing(tmp_path: Path) -> None:
    """A founder whose register cannot be read admits nobody, and goes on."""
    home = Home(tmp_path)
    home.invite(ANN)
    async with running(home, FOUNDER, ANN) as (founder, ann):
        register = register_path(tmp_path / f"{FOUNDER.peer_id}.network")
        good = register.read_bytes()
        register.write_text("{")
        await refused(ann, founder)
        register.write_bytes(good)
        assert await talk(ann, founder) == b"hello"
        network = tmp_path / f"{ANN.peer_id}.network"
        good = network.read_bytes()
        network.write_text("{}")
        ann.transport.part(founder.transport.peer_id)
        await refused(ann, founder)
        network.write_bytes(good)
        assert await talk(ann, founder) == b"hello"


async def test_only_connected_peers_are_called_in_a_new_epoch(tmp_path: Path) -> None:
    """Peers that left are forgotten, and not dialled again."""
    home = Home(tmp_path)
    home.invite(ANN)
    async with running(home, FOUNDER, ANN) as (founder, ann):
        await talk(ann, founder)
        await ann.enrolment.look()
        ann.transport.part(founder.transport.peer_id)
        home.clock.now_s += EPOCH_S
        assert ann.part.behind() == [founder.transport.peer_id]
        await ann.enrolment.look()
        assert ann.part.proven == {}


def test_clocks_may_be_a_little_apart(tmp_path: Path) -> None:
    """A proof of the epoch that just ended, or is about to begin, is taken for a moment."""
    home = Home(tmp_path)
    home.invite(ANN)
    a, b = PeerId("a" * 52), PeerId("b" * 52)
    ann, other = home.part(ANN), home.part(BOB)
    proof = ann.prove(a, b, b"")
    border = 1001 * EPOCH_S
    home.clock.now_s = border + GRACE_S - 1
    other.admit(proof, a, b, b"")
    assert other.lapsed() == []
    home.clock.now_s = border + GRACE_S + 1
    assert other.lapsed() == [a]
