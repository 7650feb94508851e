"""NAT-PMP and PCP as the RFCs draw their packets, and whatever else a router sends."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.port_mapping import messages
from transports.port_mapping.messages import (
    Granted,
    Outside,
    RouterAnswerError,
    RouterRefusal,
    may_be_lost,
)

NONCE = bytes(range(12))
OUTSIDE = bytes.fromhex("0080 0000 00000e10 c6336407")
MAPPED = bytes.fromhex("0082 0000 00000e10 0fa1 1f90 00000e10")
PCP_HEAD = bytes.fromhex("02 81 00 00 00000e10 00000064") + bytes(12)
PCP_BODY = NONCE + bytes.fromhex("06 000000 0fa1 1f90 00000000000000000000ffff c6336407")


def test_questions_are_those_of_the_rfcs() -> None:
    """RFC 6886, sections 3.2 and 3.3; RFC 6887, sections 7.1, 11.1 and 14.1."""
    assert messages.natpmp_outside().hex() == "0000"
    assert messages.natpmp_map(4001, 4001).hex(" ", 2) == "0002 0000 0fa1 0fa1 0000 0e10"
    assert messages.natpmp_map(4001, 8080, 0).hex(" ", 2) == "0002 0000 0fa1 0000 0000 0000"
    client = "00000000000000000000ffff0a010002"
    asked = messages.pcp_map("10.1.0.2", NONCE, 4001, 8080)
    assert asked.hex() == (
        f"02010000 00000e10 {client} {NONCE.hex()} 06000000 0fa1 1f90"
        " 00000000000000000000ffff00000000".replace(" ", "")
    )
    assert messages.pcp_announce("10.1.0.2").hex() == f"0200000000000000{client}"


def test_answers_are_read() -> None:
    """Each with the time since the router knows its ports."""
    assert messages.read_natpmp_outside(OUTSIDE) == Outside("198.51.100.7", 3600)
    assert messages.read_natpmp_map(MAPPED, 4001) == Granted(8080, 3600, 3600)
    found = messages.read_pcp_map(PCP_HEAD + PCP_BODY, NONCE, 4001)
    assert found == Granted(8080, 3600, 100, "198.51.100.7")
    announced = bytes.fromhex("02 80 00 00 00000000 00000064") + bytes(12)
    assert messages.read_pcp_announce(announced) == 100


def test_refusals_say_why() -> None:
    """And by which code a router says that it speaks the other protocol alone."""
    with pytest.raises(RouterRefusal, match="it is set not to"):
        messages.read_natpmp_map(bytes.fromhex("0082 0002 00000e10"), 4001)
    with pytest.raises(RouterRefusal, match="another NAT is between"):
        messages.read_pcp_map(bytes.fromhex("0281000c") + bytes(56), NONCE, 4001)
    with pytest.raises(RouterRefusal, match="error 200 of PCP"):
        messages.read_pcp_map(bytes.fromhex("028100c8") + bytes(56), NONCE, 4001)
    with pytest.raises(RouterRefusal) as refusal:
        messages.read_pcp_map(bytes.fromhex("0080 0001 00000e10"), NONCE, 4001)
    assert refusal.value.code == messages.UNSUPPORTED_VERSION


@pytest.mark.parametrize(
    "answer",
    [
        PCP_HEAD + bytes(12) + PCP_BODY[12:],  # another's nonce
        PCP_HEAD + PCP_BODY.replace(b"\x0f\xa1", b"\x0f\xa2"),
        PCP_HEAD + PCP_BODY.replace(b"\x1f\x90", b"\0\0"),
        PCP_HEAD + PCP_BODY.replace(b"\xff\xff", b"\0\0"),  # an address of IPv6
        PCP_HEAD + PCP_BODY[:-1],
        PCP_HEAD + PCP_BODY + bytes(1100),
        PCP_HEAD[:10],
        PCP_HEAD.replace(b"\x81", b"\x01", 1) + PCP_BODY,  # a question
        OUTSIDE,
        b"",
    ],
)
def test_what_answers_something_else_is_not_taken(answer: bytes) -> None:
    """It may be another program's, or late, or no router's."""
    with pytest.raises(RouterAnswerError):
        messages.read_pcp_map(answer, NONCE, 4001)


@given(
    st.one_of(
        st.binary(max_size=80),
        st.builds(
            lambda head, tail: head + tail,
            st.sampled_from([OUTSIDE[:4], MAPPED[:4], PCP_HEAD, PCP_HEAD[:4]]),
            st.binary(max_size=60),
        ),
        st.builds(
            lambda whole, at, byte: whole[:at] + bytes([byte]) + whole[at + 1 :],
            st.sampled_from([OUTSIDE, MAPPED, PCP_HEAD + PCP_BODY]),
            st.integers(0, 59),
            st.integers(0, 255),
        ),
    )
)
def test_whatever_comes_is_an_answer_a_refusal_or_nothing(answer: bytes) -> None:
    """No other exception leaves the readers, and what they return can be dialled."""
    with suppress(RouterAnswerError, RouterRefusal):
        messages.read_natpmp_outside(answer)
    with suppress(RouterAnswerError, RouterRefusal):
        messages.read_pcp_announce(answer)
    for read in (read_natpmp, read_pcp):
        with suppress(RouterAnswerError, RouterRefusal):
            found = read(answer)
            assert found.port in range(1, 65_536) or not found.lease_s


def read_natpmp(answer: bytes) -> Granted:
    """Read an answer about one port."""
    return messages.read_natpmp_map(answer, 4001)


def read_pcp(answer: bytes) -> Granted:
    """Read the same by PCP."""
    return messages.read_pcp_map(answer, NONCE, 4001)


def test_a_clock_that_is_behind_or_ahead_is_a_port_that_may_be_lost() -> None:
    """The router has restarted, or this machine has slept; some is allowed."""
    assert not may_be_lost(1000, 80.0, 1080)
    assert not may_be_lost(1000, 80.0, 1068)
    assert may_be_lost(1000, 80.0, 1067)
    assert may_be_lost(1000, 80.0, 3)
    assert not may_be_lost(1000, 10.0, 1013)
    assert may_be_lost(1000, 10.0, 1014)
    assert may_be_lost(1000, 10.0, 1000 + 8 * 3600)
