"""A port is asked for, looked after, renewed, asked for again elsewhere, and given back."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from transports.port_mapping import keeper as keeping
from transports.port_mapping.holders import CHECK_S, Mapping, PortHolder
from transports.port_mapping.keeper import (
    AGAIN_S_MAX,
    AGAIN_S_MIN,
    HASTE_S,
    RENEW_S_MAX,
    RENEW_S_MIN,
    PortKeeper,
    renewal_s,
)
from transports.port_mapping.messages import UNSUPPORTED_VERSION, RouterRefusal, RouterSilence

HOME, OWN, NONCE = "192.168.1.1", "192.168.1.9", bytes(12)


class Router:
    """Holds one port, and does what a test says."""

    def __init__(self, way: str = "PCP") -> None:
        self.way, self.check_s = way, CHECK_S
        self.outside = "5.9.5.7"
        self.lease_s = 3600.0
        self.refusal: RouterRefusal | None = None
        self.is_silent = False
        self.has_lost = False
        self.asked: list[float] = []
        """When it was asked for the port."""
        self.is_open = False

    async def map(self) -> Mapping:
        """Grant the port."""
        self.asked.append(trio.current_time())
        if self.is_silent:
            await trio.sleep(1.75)
            raise RouterSilence("no answer")
        if self.refusal:
            raise self.refusal
        self.is_open, self.has_lost = True, False
        return Mapping(self.outside, 4001, self.way, self.lease_s)

    async def is_lost(self) -> bool:
        """Answer whether it has restarted."""
        if self.is_silent:
            raise RouterSilence("no answer")
        return self.has_lost

    async def unmap(self) -> None:
        """Take the port back."""
        if self.is_silent:
            await trio.sleep_forever()
        self.is_open = False


class Home:
    """A keeper in a network with routers."""

    def __init__(self, *routers: Router) -> None:
        self.routers = routers
        self.place: str | None = HOME
        self.own: str | None = OWN
        self.inner: int | None = 4001
        self.told: list[str] = []
        self.keeper = PortKeeper(
            lambda _: self.inner, NONCE, self.note, self.find, lambda _: self.own, self.ways
        )

    def note(self) -> None:
        """Take in what the keeper says."""
        found = self.keeper.mapping
        self.told.append(found.address if found else "")

    async def find(self) -> str | None:
        """Return where the router is."""
        return self.place

    def ways(
        self, router: str, own_host: str, inner: int, nonce: bytes
    ) -> Sequence[Callable[[], Awaitable[PortHolder]]]:
        """Return each router as if it were a protocol."""
        assert (router, own_host, inner, nonce) == (self.place, self.own, 4001, NONCE)

        def way(found: Router) -> Callable[[], Awaitable[PortHolder]]:
            async def by() -> PortHolder:
                return found

            return by

        return [way(each) for each in self.routers]

    @asynccontextmanager
    async def runs(self) -> AsyncIterator[PortKeeper]:
        """Run the keeper while the block lasts."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keeper.run)
            await trio.testing.wait_all_tasks_blocked()
            yield self.keeper
            nursery.cancel_scope.cancel()


async def test_a_port_is_renewed_at_half_its_lease_and_given_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And is told once."""
    router = Router()
    home = Home(router)
    async with home.runs() as keeper:
        assert home.told == ["/ip4/5.9.5.7/tcp/4001"]
        assert keeper.words == f"the router {HOME} passes port 4001 on to this machine (PCP)"
        await trio.sleep(4000)
        assert len(router.asked) == 3
        assert router.asked[1] == pytest.approx(1800, abs=CHECK_S)
    assert home.told == ["/ip4/5.9.5.7/tcp/4001"]
    assert not router.is_open


@pytest.mark.parametrize(("lease_s", "after_s"), [(1, 30), (100, 50), (2**32 - 1, 1800)])
def test_no_lease_makes_a_machine_ask_too_often_or_too_seldom(lease_s: float, after_s: int) -> None:
    """Whatever a router says."""
    found = renewal_s(Mapping("5.9.5.7", 1, "PCP", lease_s))
    assert found == after_s
    assert RENEW_S_MIN <= found <= RENEW_S_MAX


async def test_the_next_protocol_is_tried_where_one_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A refusal of the version says nothing to a person; another one does."""
    old, mute, upnp = Router("PCP"), Router("NAT-PMP"), Router("UPnP")
    old.refusal = RouterRefusal("it speaks another version", UNSUPPORTED_VERSION)
    mute.is_silent = True
    home = Home(old, mute, upnp)
    async with home.runs() as keeper:
        await trio.sleep(3)
        assert "(UPnP)" in keeper.words
    home = Home(old, mute)
    async with home.runs() as keeper:
        await trio.sleep(3)
        assert "answers neither PCP nor NAT-PMP nor UPnP" in keeper.words
        mute.is_silent, mute.refusal = False, RouterRefusal("it is set not to", 2)
        keeper.look()
        await trio.sleep(2 * HASTE_S)
        assert "passes no port on: it is set not to (NAT-PMP)" in keeper.words
        assert "forward TCP port 4001 to this machine" in keeper.words


async def test_who_gets_no_port_asks_again_ever_less_often(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The router may just be starting, or somebody may change its settings later."""
    router = Router()
    router.refusal = RouterRefusal("it is set not to")
    home = Home(router)
    async with home.runs():
        await trio.sleep(3600)
        pauses = [b - a for a, b in zip(router.asked, router.asked[1:], strict=False)]
        assert pauses[0] == pytest.approx(AGAIN_S_MIN)
        assert max(pauses) == pytest.approx(AGAIN_S_MAX)
        router.refusal = None
        await trio.sleep(AGAIN_S_MAX)
        assert home.told == ["/ip4/5.9.5.7/tcp/4001"]


async def test_a_restarted_router_gives_the_port_again_within_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With whatever outer address it has now."""
    router = Router()
    home = Home(router)
    async with home.runs():
        await trio.sleep(100)
        router.is_silent = True  # while it starts
        await trio.sleep(60)
        router.is_silent, router.has_lost, router.outside = False, True, "5.9.6.8"
        await trio.sleep(CHECK_S + 1)
        assert home.told == ["/ip4/5.9.5.7/tcp/4001", "/ip4/5.9.6.8/tcp/4001"]


async def test_a_router_that_stays_silent_has_no_port_once_the_lease_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Perhaps another one is there by then."""
    router = Router()
    home = Home(router)
    async with home.runs():
        await trio.sleep(10)
        router.is_silent = True
        await trio.sleep(3500)
        assert home.told == ["/ip4/5.9.5.7/tcp/4001"]
        await trio.sleep(200)
        assert home.told == ["/ip4/5.9.5.7/tcp/4001", ""]


async def test_a_machine_that_moves_asks_the_router_that_is_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Between the two networks there is none, and the next may know its port at once."""
    router = Router()
    home = Home(router)
    async with home.runs() as keeper:
        home.place = None
        keeper.look()
        await trio.sleep(2 * HASTE_S)
        assert home.told[-1] == ""
        assert keeper.words == keeping.NO_ROUTER
        home.place, home.own, router.outside = "10.7.0.1", "10.7.0.33", "5.9.6.8"
        keeper.look()
        await trio.sleep(2 * HASTE_S)
        assert home.told[-1] == "/ip4/5.9.6.8/tcp/4001"


async def test_looks_in_a_row_ask_once_in_two_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """However often the interfaces change."""
    router = Router()
    router.refusal = RouterRefusal("it is set not to")
    home = Home(router)
    async with home.runs() as keeper:
        for _ in range(100):
            keeper.look()
            await trio.sleep(0.1)
        assert len(router.asked) <= 1 + 10 / HASTE_S + 1


async def test_a_second_nat_is_named(autojump_clock: trio.testing.MockClock) -> None:
    """The port is kept: that one may pass it on."""
    router = Router()
    router.outside = "100.64.3.4"
    async with Home(router).runs() as keeper:
        assert "its own outer address 100.64.3.4 is a private one" in keeper.words
        assert router.is_open


async def test_nobody_is_asked_without_need(autojump_clock: trio.testing.MockClock) -> None:
    """By a machine of the Internet, and by a peer that only this machine can dial."""
    router = Router()
    home = Home(router)
    home.own = "5.9.5.7"
    async with home.runs() as keeper:
        assert keeper.words == keeping.NOT_NEEDED
    home = Home(router)
    home.inner = None
    async with home.runs() as keeper:
        assert keeper.words == keeping.NOT_HERE
    assert not router.asked


async def test_a_router_that_is_gone_delays_the_end_little(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And no more."""
    router = Router()
    home = Home(router)
    async with home.runs():
        router.is_silent = True
        before = trio.current_time()
    assert trio.current_time() - before <= keeping.UNMAP_S_MAX
