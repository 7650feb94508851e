"""Bytes of tokens to text: the same however they are cut, and never released too early."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pinfer.core.text import TextStream, printable

CHARACTERS = "abé€😀"
"""One to four bytes each in UTF-8; few, so that stop strings are found by chance."""

texts = st.text(CHARACTERS, max_size=20)
stop_lists = st.lists(st.text(CHARACTERS, max_size=3), max_size=3)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut the data at the given places, each counted from the one before."""
    bounds = [0, *(at for at in accumulate(cuts) if at < len(data)), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


def before_first(text: str, stops: list[str]) -> str:
    """Look character by character for what comes before the first complete stop string."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@given(texts, stop_lists, st.lists(st.integers(0, 4)))
@example("baa", ["a", "baa"], [2])
def test_cuts_do_not_matter(text: str, stops: list[str], cuts: list[int]) -> None:
    """Any cut of the bytes gives the text up to the first complete stop string."""
    stream = TextStream(stops)
    shown = ""
    for piece in cut(text.encode(), cuts):
        shown += stream.feed(piece)
        assert before_first(text, stops).startswith(shown)
    assert shown + stream.end() == before_first(text, stops)
    assert stream.stopped == any(stop and stop in text for stop in stops)


@given(texts, stop_lists, st.lists(st.integers(0, 4)))
def test_nothing_is_held_without_need(text: str, stops: list[str], cuts: list[int]) -> None:
    """What is held back is half a character, or might be the beginning of a stop string."""
    stream, fed, shown = TextStream(stops), b"", ""
    for piece in cut(text.encode(), cuts):
        fed += piece
        shown += stream.feed(piece)
        held = fed.decode(errors="ignore")[len(shown) :]
        assert stream.stopped or not held or any(stop.startswith(held) for stop in stops)


@given(st.binary(max_size=30), st.lists(st.integers(0, 4)))
def test_broken_utf8_is_replaced(data: bytes, cuts: list[int]) -> None:
    """Bytes that are not UTF-8 become replacement characters, the same for every cut."""
    stream = TextStream()
    shown = "".join(stream.feed(piece) for piece in cut(data, cuts))
    assert shown + stream.end() == data.decode(errors="replace")


@pytest.mark.parametrize("stop", ["€", "</s>"])
def test_every_part_of_a_stop_string_is_held(stop: str) -> None:
    """Byte by byte nothing of a stop string shows, and what follows it is dropped."""
    stream = TextStream([stop])
    assert stream.feed(b"yes") == "yes"
    assert [stream.feed(bytes([byte])) for byte in stop.encode()] == [""] * len(stop.encode())
    assert stream.stopped
    assert stream.feed(b"more") + stream.end() == ""


def test_a_false_beginning_is_shown_after_all() -> None:
    """What looked like a stop string but is none comes with the next piece, or at the end."""
    stream = TextStream(["stop"])
    assert [stream.feed(b"sto"), stream.feed(b"ve st"), stream.end()] == ["", "stove ", "st"]


def test_terminal_control_codes_are_removed() -> None:
    """In a stranger's text they could clear the screen, or overwrite what is there."""
    assert printable("a\x1b[2Jb\r\nc\u202ed é€😀") == "a [2Jb  c d é€😀"
