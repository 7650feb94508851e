"""An invitation is one line that survives messengers, and tells a slip from a good one."""

import base64
from typing import Any

import msgpack
import pytest
import segno
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.node.invitation import (
    ADDRESSES_MAX,
    SCHEME,
    Invitation,
    link_of,
    read_link,
)
from tests.support.directories import identity

A, B, RELAY = (identity(number).peer_id for number in (1, 2, 3))
MODEL = ModelId("5e" * 32)
ADDRESSES = (
    f"/ip4/203.0.113.7/tcp/20123/p2p/{A}",
    f"/ip6/2001:db8::7/tcp/20123/p2p/{B}",
    f"/ip4/198.51.100.4/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{A}",
)
WHOLE = Invitation("home", b"k" * 32, MODEL, ADDRESSES)
LINK = link_of(WHOLE)


@pytest.mark.parametrize(
    "invitation",
    [
        Invitation(),
        WHOLE,
        Invitation("x" * 64, None, None, (f"/dns4/box.example.org/tcp/1/p2p/{A}",)),
        Invitation(model=MODEL, addresses=ADDRESSES[2:]),
        Invitation("home", None, MODEL, ADDRESSES[:1], b"t" * 32),
    ],
)
def test_what_is_said_comes_back(invitation: Invitation) -> None:
    """Also in lower case, and broken into lines by a messenger."""
    link = link_of(invitation)
    assert read_link(link) == invitation
    assert read_link(f"  {link[:30].lower()}\n {link[30:]}\n") == invitation


def test_the_longest_fits_a_terminal() -> None:
    """Its QR code in the dense mode is narrower than 80 columns with its margin."""
    code = segno.make(LINK, mode="alphanumeric", error="l")
    assert code.symbol_size(border=2)[0] < 80
    assert len(LINK) < 480


def test_the_key_is_not_shown() -> None:
    """Of an invitation that finds its way into a log."""
    assert "kkk" not in repr(WHOLE)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is not an invitation: one begins with P2PINFER:"),
        ("https://example.org/" + "x" * 99, "'https://example.org/xxx…' is not an invitation"),
        (f"/ip4/203.0.113.7/tcp/1/p2p/{A}", "is not an invitation"),
        (SCHEME, "is cut short: copy all of it"),
        (LINK[:12], "is cut short: copy all of it"),
        (LINK[:-1], "is cut short, 1 are missing at its end: copy all of it"),
        (LINK[:-30], "is cut short, 30 are missing at its end"),
        (LINK + "A", "is mistyped, or something was added to it: copy it again"),
        (LINK[:40] + ("A" if LINK[40] != "A" else "B") + LINK[41:], "is mistyped, or something"),
        (LINK[:40] + "0" + LINK[41:], "is mistyped: 0 cannot be in one"),
        (LINK + ".", "is mistyped: . cannot be in one"),
        (SCHEME + "AI" + LINK[11:], "comes from a newer p2pinfer: update the one"),
    ],
)
def test_a_slip_is_named_in_one_sentence(text: str, sentence: str) -> None:
    """It says what to do; nothing of a key is repeated."""
    with pytest.raises(UserError) as caught:
        read_link(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@given(st.integers(len(SCHEME), len(LINK) - 1), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_no_single_slip_leads_elsewhere(at: int, other: str) -> None:
    """Whichever character is mistyped; the last one's unused bits may differ, and mean the same."""
    slipped = LINK[:at] + other + LINK[at + 1 :]
    try:
        assert read_link(slipped) == WHOLE
    except UserError:
        assert slipped != LINK


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_nothing_else_is_raised(junk: bytes | str) -> None:
    """Whatever stands where an invitation is expected."""
    text = junk if isinstance(junk, str) else base64.b32encode(junk).decode()
    for each in (text, SCHEME + text):
        with pytest.raises(UserError):
            read_link(each)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["main", b"", b"", []],
        ["main", b"", b"", [], False, 1],
        ["main", b"", b"", [], True],
        ["main", b"k" * 32, b"", [], 1],
        ["Main", b"", b"", [], False],
        [1, b"", b"", [], False],
        ["main", b"short", b"", [], False],
        ["main", "", b"", [], False],
        ["main", b"", b"short", [], False],
        ["main", b"", b"", [b""] * (ADDRESSES_MAX + 1), False],
        ["main", b"", b"", ["/ip4/1.2.3.4"], False],
        ["main", b"", b"", [b"\xff\xff\xff"], False],
        ["main", b"", b"", [b"\x04" * 200], False],
        {"main": 1},
        None,
    ],
)
def test_whoever_makes_one_by_hand_is_read_with_care(fields: Any) -> None:
    """Its length and its check are right, and what it says is not."""
    body = msgpack.packb(fields)
    said = b"\x01" + (len(body) + 7).to_bytes(2, "big") + body
    whole = base64.b32encode(said + blake3(said).digest(4)).decode().rstrip("=")
    with pytest.raises(UserError, match="says nothing that this p2pinfer understands"):
        read_link(SCHEME + whole)
