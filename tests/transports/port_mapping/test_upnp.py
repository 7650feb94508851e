"""UPnP: whose word is taken for where the router is."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.port_mapping.messages import RouterAnswerError
from transports.port_mapping.upnp import REPLY_BYTES_MAX, read_location
from transports.port_mapping.upnp_orders import check_url

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
