"""Where the router is, by the tables of three systems."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.port_mapping.gateway import (
    find_gateway,
    parse_linux,
    parse_macos,
    parse_windows,
)

LINUX = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0
wlan0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""

MACOS = """\
   route to: default
destination: default
       mask: default
    gateway: 192.168.1.1
  interface: en0
"""

WINDOWS = """\
IPv4-Routentabelle
===========================================================================
Aktive Routen:
     Netzwerkziel    Netzwerkmaske          Gateway    Schnittstelle Metrik
          0.0.0.0          0.0.0.0      192.168.2.1      192.168.2.5     55
          0.0.0.0          0.0.0.0      192.168.1.1      192.168.1.9     25
===========================================================================
"""


def test_the_router_of_least_metric_is_found() -> None:
    """A tunnel without a router is none, whatever its metric."""
    assert parse_linux(LINUX) == "192.168.1.1"
    assert parse_macos(MACOS) == "192.168.1.1"
    assert parse_windows(WINDOWS) == "192.168.1.1"


@given(st.text(max_size=200))
def test_other_text_names_no_router(text: str) -> None:
    """Of systems of other versions, or in error messages."""
    for parse in (parse_linux, parse_macos, parse_windows):
        assert parse(text) is None
    parse_linux(LINUX + text)
    parse_linux(LINUX.replace("0101A8C0", text))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are asked by a program")
async def test_this_machine_is_asked_without_a_program() -> None:
    """It may have no router at all."""
    found = await find_gateway()
    assert found is None or found.count(".") == 3
