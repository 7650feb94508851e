"""UPnP: what is asked of a router in turn, and what its words mean."""

from typing import Any

import pytest

from transports.port_mapping.messages import RouterRefusal, RouterSilence
from transports.port_mapping.upnp_orders import PERMANENT_ONLY, add, knows, outer_ports, remove


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


def test_a_port_is_held_looked_after_and_given_back() -> None:
    """Under a lease."""
    device = Device()
    assert add(device, 4001, 4001) == ("198.51.100.7", 4001)
    assert device.leases == [3600]
    assert knows(device, 4001, 4001, "198.51.100.7")
    assert not knows(device, 4001, 4001, "198.51.100.8")
    remove(device, 4001)
    assert not knows(device, 4001, 4001, "198.51.100.7")
    remove(device, 4001)  # it is gone already


def test_the_port_of_another_machine_is_left_alone() -> None:
    """Some routers would take it away without a word."""
    device = Device(p4001=("192.168.1.33", 80))
    assert (add(device, 4001, 4001))[1] == outer_ports(4001)[1]
    assert device.held[4001] == ("192.168.1.33", 80)


def test_old_routers_know_no_leases() -> None:
    """Then the port stays until it is given back."""
    device = Device()
    device.refuses = PERMANENT_ONLY
    add(device, 4001, 4001)
    assert device.leases == [3600, 0]


def test_a_refusal_keeps_its_words_and_silence_is_none() -> None:
    """So that a person learns which of the two it is."""
    device = Device()
    device.refuses = "Action Not Authorized"
    with pytest.raises(RouterRefusal, match="Action Not Authorized"):
        add(device, 4001, 4001)
    device.refuses = "Miniupnpc HTTP error"
    with pytest.raises(RouterSilence):
        add(device, 4001, 4001)


@pytest.mark.parametrize("outside", ["", None, "0.0.0", "::1", "example.org"])
def test_an_address_that_is_none_is_a_refusal(outside: Any) -> None:
    """Of routers that are not connected, and of liars."""
    device = Device()
    device.outside = outside
    with pytest.raises(RouterRefusal, match="its own address"):
        add(device, 4001, 4001)
