"""UPnP: whose word is taken, and what is asked of a router in turn."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.port_mapping.asking import RouterSilence
from transports.port_mapping.messages import RouterAnswerError, RouterRefusal
from transports.port_mapping.upnp import (
    PERMANENT_ONLY,
    REPLY_BYTES_MAX,
    UpnpControl,
    check_url,
    outer_ports,
    read_location,
)

ROUTER = "192.168.1.1"
PLACE = f"http://{ROUTER}:5000/rootDesc.xml"
REPLY = f"HTTP/1.1 200 OK\r\nST: x\r\nLocation: {PLACE}\r\n\r\n".encode()


def test_a_router_says_where_it_describes_itself() -> None:
    """Whatever the case of the header."""
    assert read_location(REPLY, ROUTER) == PLACE
    assert read_location(REPLY.replace(b"Location", b"LOCATION"), ROUTER) == PLACE


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.77:80/x",  # another machine of the network
        "http://192.168.1.1@192.168.1.77/x",
        "http://user@192.168.1.1/x",
        "http://192.168.1.1.example.org/x",
        "https://192.168.1.1/x",
        "file:///etc/passwd",
        "http://192.168.1.1:99999/x",
        "http://[192.168.1.1/x",
        "http://192.168.1.1/\nx",
        "",
    ],
)
def test_what_leads_elsewhere_is_not_followed(url: str) -> None:
    """Nobody can have this machine send requests to a third one."""
    with pytest.raises(RouterAnswerError):
        check_url(url, ROUTER)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=80).map(lambda x: REPLY + x)))
def test_any_reply_is_read_or_is_none(reply: bytes) -> None:
    """Of whatever bytes, and of whatever length."""
    for each in (reply, REPLY[:40] + reply, reply + REPLY, reply + bytes(REPLY_BYTES_MAX)):
        with suppress(RouterAnswerError):
            assert f"//{ROUTER}" in read_location(each, ROUTER)


def test_the_ports_asked_for_are_ports() -> None:
    """The wanted one first, then others far from it."""
    for first in (1024, 4001, 65_535):
        found = outer_ports(first)
        assert found[0] == first
        assert len(set(found)) == len(found)
        assert all(1024 <= port < 65_536 for port in found)


class Device:
    """Stands for miniupnpc's: a list of ports, and texts in exceptions."""

    lanaddr = "192.168.1.9"

    def __init__(self, **held: tuple[str, int]) -> None:
        self.held: dict[int, tuple[str, int]] = {int(key[1:]): each for key, each in held.items()}
        self.leases: list[int] = []
        self.refuses = ""
        self.outside: Any = "198.51.100.7"

    def getspecificportmapping(self, port: int, kind: str) -> Any:
        """Say who holds a port."""
        found = self.held.get(port)
        return found and (*found, "", True, 0)

    def addportmapping(self, port: int, *words: Any) -> bool:
        """Open a port."""
        self.leases.append(words[5])
        if self.refuses and (self.refuses != PERMANENT_ONLY or words[5]):
            raise Exception(self.refuses)  # noqa: TRY002 - as miniupnpc does
        self.held[port] = words[1:3]
        return True

    def externalipaddress(self) -> Any:
        """Return its outer address."""
        return self.outside

    def deleteportmapping(self, port: int, kind: str) -> bool:
        """Close a port."""
        if self.held.pop(port, None) is None:
            raise Exception("NoSuchEntryInArray")  # noqa: TRY002
        return True


async def test_a_port_is_held_looked_after_and_given_back() -> None:
    """Under a lease."""
    device = Device()
    control = UpnpControl(device)
    assert await control.add(4001, 4001) == ("198.51.100.7", 4001)
    assert device.leases == [3600]
    assert await control.knows(4001, 4001, "198.51.100.7")
    assert not await control.knows(4001, 4001, "198.51.100.8")
    await control.remove(4001)
    assert not await control.knows(4001, 4001, "198.51.100.7")
    await control.remove(4001)  # it is gone already


async def test_the_port_of_another_machine_is_left_alone() -> None:
    """Some routers would take it away without a word."""
    device = Device(p4001=("192.168.1.33", 80))
    assert (await UpnpControl(device).add(4001, 4001))[1] == outer_ports(4001)[1]
    assert device.held[4001] == ("192.168.1.33", 80)


async def test_old_routers_know_no_leases() -> None:
    """Then the port stays until it is given back."""
    device = Device()
    device.refuses = PERMANENT_ONLY
    await UpnpControl(device).add(4001, 4001)
    assert device.leases == [3600, 0]


async def test_a_refusal_keeps_its_words_and_silence_is_none() -> None:
    """So that a person learns which of the two it is."""
    device = Device()
    device.refuses = "Action Not Authorized"
    with pytest.raises(RouterRefusal, match="Action Not Authorized"):
        await UpnpControl(device).add(4001, 4001)
    device.refuses = "Miniupnpc HTTP error"
    with pytest.raises(RouterSilence):
        await UpnpControl(device).add(4001, 4001)


@pytest.mark.parametrize("outside", ["", None, "0.0.0", "::1", "example.org"])
async def test_an_address_that_is_none_is_a_refusal(outside: Any) -> None:
    """Of routers that are not connected, and of liars."""
    device = Device()
    device.outside = outside
    with pytest.raises(RouterRefusal, match="its own address"):
        await UpnpControl(device).add(4001, 4001)
