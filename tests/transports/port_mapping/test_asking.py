"""Asking by datagrams: junk is passed over, and nobody waits for who is not there."""

import socket

import pytest
import trio

from transports.port_mapping.asking import ANSWERS_MAX, exchange
from transports.port_mapping.messages import RouterSilence, natpmp_map, read_natpmp_map

ANSWER = bytes.fromhex("0082 0000 00000e10 0fa1 1f90 00000e10")


async def served(answers: list[bytes]) -> int:
    """Answer one question on loopback with these datagrams; return the port that is read."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as router:
        await router.bind(("127.0.0.1", 0))

        async def serve() -> None:
            asked, asker = await router.recvfrom(100)
            assert asked == natpmp_map(4001, 4001)
            for each in answers:
                await router.sendto(each, asker)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            found = await exchange(
                router.getsockname(),
                lambda own_host: natpmp_map(4001, 4001) if own_host == "127.0.0.1" else b"",
                lambda answer: read_natpmp_map(answer, 4001),
            )
            return found.port
    raise AssertionError("it returns or raises")


async def test_junk_before_the_answer_is_passed_over() -> None:
    """Late answers to other questions, for example."""
    assert await served([b"", b"junk", bytes(1200), ANSWER[:-1], ANSWER]) == 8080


async def test_a_flood_of_junk_is_silence() -> None:
    """It does not keep this machine busy."""
    looked = 0

    def read(answer: bytes) -> int:
        nonlocal looked
        looked += 1
        return read_natpmp_map(answer, 4001).port

    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as router:
        await router.bind(("127.0.0.1", 0))

        async def serve() -> None:
            _, asker = await router.recvfrom(100)
            for _ in range(2 * ANSWERS_MAX):
                await router.sendto(b"junk", asker)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with pytest.raises(RouterSilence):
                await exchange(router.getsockname(), lambda _: b"x", read, [60.0])
    assert looked == ANSWERS_MAX


async def test_where_nobody_listens_nobody_waits() -> None:
    """The system says so at once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        place = taken.getsockname()
    with trio.fail_after(30), pytest.raises(RouterSilence):
        await exchange(place, lambda _: b"x", lambda answer: answer, [60.0])
