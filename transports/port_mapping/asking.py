"""Asking a router by datagrams, again and again until it answers or is taken to be silent."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import trio

from transports.port_mapping.messages import ANSWER_BYTES_MAX, RouterAnswerError, RouterSilence

T = TypeVar("T")

WAITS_S = (0.25, 0.5, 1.0)
"""For an answer after each question (RFC 6886, section 3.1, which would go on for a minute: but
who is on the same network answers within milliseconds, and losing three in a row is rare)."""

ANSWERS_MAX = 64
"""Datagrams looked at for one answer: more is a flood."""


async def exchange(
    place: tuple[str, int],
    question: Callable[[str], bytes],
    read: Callable[[bytes], T],
    waits_s: Iterable[float] = WAITS_S,
) -> T:
    """Ask a question, and return what is read from the answer to it.

    Only what comes from ``place`` is looked at: the system drops all else.

    Args:
        place: the router's host and port.
        question: returns it, given this machine's address on the way there.
        read: raises RouterAnswerError for what is no answer.
        waits_s: for an answer, after each time it is asked.

    Raises:
        RouterSilence: no answer came.
    """
    try:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.connect(place)
            asked = question(str(sock.getsockname()[0]))
            seen = 0
            for wait_s in waits_s:
                await sock.send(asked)
                with trio.move_on_after(wait_s):
                    while seen < ANSWERS_MAX:
                        seen += 1
                        answer = await sock.recv(ANSWER_BYTES_MAX + 1)
                        with suppress(RouterAnswerError):
                            return read(answer)
    except OSError as error:  # nobody listens there, or there is no way there
        raise RouterSilence(str(error)) from error
    raise RouterSilence("no answer")
