"""Peers that are found without an address: on the local network, and in a DHT."""

import secrets
import socket
import time
from collections.abc import Sequence

import pytest
import trio
from libp2p.kad_dht import provider_store as provider_store_module
from libp2p.peer import peerdata as peerdata_module

from tests.support.gossip_contract import Listener
from transports.base import Reach
from transports.libp2p import peer_finding
from transports.libp2p.peer_finding import RECORD_S
from transports.libp2p.transport import Libp2pTransport, open_libp2p

TEST_S_MAX = 30.0
LOOK_S = 0.1
HERE = ["/ip4/127.0.0.1/tcp/0"]

LAN = f"lan-{secrets.token_hex(4)}"
"""Another one for each run: several may be on one machine, or network."""


async def wait_found(transport: Libp2pTransport, topic: str | None) -> Sequence[str]:
    """Look until something is found."""
    while not (found := await transport.discover(topic)):  # noqa: ASYNC110 - nothing tells of it
        await trio.sleep(LOOK_S)
    return found


def multicast_works() -> bool:
    """Return whether multicast packets loop back on this machine, as mDNS needs."""
    group = socket.inet_aton("224.0.0.251")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hears:
        try:
            hears.bind(("", 0))
            hears.settimeout(1)
            hears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + bytes(4))
            hears.sendto(b"anybody?", ("224.0.0.251", hears.getsockname()[1]))
            return hears.recv(100) == b"anybody?"
        except OSError:
            return False


async def test_peers_of_one_network_find_each_other_on_the_lan() -> None:
    """Each learns where the other is, and can dial it; of other networks they learn nothing."""
    if not multicast_works():
        pytest.skip("no multicast on this machine")
    key = b"k" * 32
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, Reach(LAN, mdns=True)) as a,
            open_libp2p(None, HERE, Reach(LAN, mdns=True)) as b,
            open_libp2p(None, HERE, Reach(f"{LAN}-2", mdns=True)) as other,
            open_libp2p(None, HERE, Reach(LAN, key, mdns=True)) as private,
        ):
            assert await wait_found(a, None) == b.addresses
            assert await wait_found(b, None) == a.addresses
            assert await b.connect((await b.discover("anything"))[0]) == a.peer_id
            assert list(await other.discover(None)) == []
            assert list(await private.discover(None)) == []


async def test_a_peer_on_all_interfaces_is_announced_where_it_is() -> None:
    """And not at 0.0.0.0, by which each machine means itself."""
    if not multicast_works():
        pytest.skip("no multicast on this machine")
    reach = Reach(f"{LAN}-all", mdns=True)
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, ["/ip4/0.0.0.0/tcp/0"], reach) as listens,
            open_libp2p(None, [], reach) as asks,
        ):
            assert await wait_found(asks, None) == listens.addresses
            assert not any("/0.0.0.0/" in each for each in listens.addresses)


async def test_who_does_not_listen_looks_and_is_not_found() -> None:
    """As who only chats: there is nothing to dial."""
    if not multicast_works():
        pytest.skip("no multicast on this machine")
    reach = Reach(f"{LAN}-quiet", mdns=True)
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, reach) as listens,
            open_libp2p(None, [], reach) as asks,
            open_libp2p(None, HERE, reach) as late,
        ):
            assert set(await wait_found(asks, None)) <= {*listens.addresses, *late.addresses}
            found = await wait_found(late, None)
            while len(await asks.discover(None)) < 2:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(LOOK_S)
            # Had it been announced, it would have been before the last one.
            assert list(found) == list(await late.discover(None)) == list(listens.addresses)


async def test_a_peer_that_stays_on_the_lan_can_still_be_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also minutes after it was first heard of; a peer that leaves is no longer announced."""
    if not multicast_works():
        pytest.skip("no multicast on this machine")
    reach = Reach(f"{LAN}-stay", mdns=True)
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, reach) as seeker:
            async with open_libp2p(None, HERE, reach) as stays:
                assert await wait_found(seeker, None) == stays.addresses
                later = Clock()
                later.ahead_s = 600
                monkeypatch.setattr(peerdata_module, "time", later)
                assert await seeker.discover(None) == stays.addresses
            while await seeker.discover(None):  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(LOOK_S)


async def test_a_topic_is_found_through_others() -> None:
    """A peer that knows one other finds, through it, a third that only the other knows."""
    reach = Reach("dht-test", dht=True)
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, reach) as middle,
            open_libp2p(None, HERE, reach) as provider,
            open_libp2p(None, HERE, reach) as seeker,
            provider.join_topic("model/abc", Listener()),
        ):
            await provider.connect(middle.addresses[0])
            await seeker.connect(middle.addresses[0])
            assert await wait_found(seeker, "model/abc") == provider.addresses
            assert await seeker.connect((await seeker.discover("model/abc"))[0])
            assert list(await seeker.discover("model/other")) == []


async def test_a_participant_finds_others() -> None:
    """A peer's own record, and those it keeps for others, do not count as all there are."""
    reach = Reach("dht-test", dht=True)
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, reach) as middle,
            open_libp2p(None, HERE, reach) as a,
            open_libp2p(None, HERE, reach) as b,
            a.join_topic("model/abc", Listener()),
            b.join_topic("model/abc", Listener()),
        ):
            for peer in (a, b):
                await peer.connect(middle.addresses[0])
            assert await wait_found(a, "model/abc") == b.addresses
            assert await wait_found(b, "model/abc") == a.addresses


class Clock:
    """The time by which libp2p dates records; it can be advanced."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def time(self) -> float:
        """Return it."""
        return time.time() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Have records dated by a clock that a test moves."""
    made = Clock()
    monkeypatch.setattr(provider_store_module, "time", made)
    return made


async def test_records_expire_however_often_they_are_read(clock: Clock) -> None:
    """Others list a peer that is gone for half an hour after its last record, and no longer."""
    reach = Reach("dht-test", dht=True)
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, reach) as middle:
            async with (
                open_libp2p(None, HERE, reach) as gone,
                gone.join_topic("model/abc", Listener()),
            ):
                await gone.connect(middle.addresses[0])
                addresses = await wait_found(middle, "model/abc")
            clock.ahead_s = RECORD_S - 60
            async with open_libp2p(None, HERE, reach) as reader:
                await reader.connect(middle.addresses[0])
                assert await wait_found(reader, "model/abc") == addresses
                clock.ahead_s = RECORD_S + 60
                for peer in (reader, middle):
                    assert await peer.discover("model/abc") == []


async def test_records_are_put_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that stays is found long after its first record has expired."""
    monkeypatch.setattr(peer_finding, "PROVIDE_S", 1.0)
    monkeypatch.setattr(peer_finding, "FIRST_PROVIDE_S", LOOK_S)
    reach = Reach("dht-test", dht=True)
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, reach) as middle,
            open_libp2p(None, HERE, reach) as stays,
            open_libp2p(None, HERE, reach) as seeker,
            stays.join_topic("model/abc", Listener()),
        ):
            for peer in (stays, seeker):
                await peer.connect(middle.addresses[0])
            assert await wait_found(seeker, "model/abc") == stays.addresses
            clock.ahead_s = RECORD_S + 60
            assert await wait_found(seeker, "model/abc") == stays.addresses


async def test_strangers_cannot_fill_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the maximum number of keys nothing is kept, and those that are there stay."""
    monkeypatch.setattr(peer_finding, "KEYS_MAX", 2)
    reach = Reach("dht-test", dht=True)
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, reach) as keeper,
            open_libp2p(None, HERE, reach) as stranger,
        ):
            await stranger.connect(keeper.addresses[0])
            dht, kept = stranger._lookout._dht, keeper._lookout._dht
            assert dht
            assert kept
            for number in range(4):
                await dht._meet()
                await dht._dht.provide(dht._key(f"model/{number}"))
            while len(kept._dht.provider_store.providers) < 2:  # noqa: ASYNC110 - as above
                await trio.sleep(LOOK_S)
            keys = {bytes.fromhex(dht._key(f"model/{number}")) for number in range(2)}
            assert set(kept._dht.provider_store.providers) == keys


async def test_no_discovery_unless_asked_for() -> None:
    """Without either flag no discovery runs, and nothing is announced."""
    async with open_libp2p(None, HERE, "test") as a:
        assert list(await a.discover("anything")) == []
        assert a._lookout._lan is None
        assert a._lookout._dht is None
