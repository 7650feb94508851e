"""Padding: what an observer sees of sizes and times, by the pure rules and on real connections."""

from itertools import pairwise
from math import inf
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pinfer.core.limits import BLOCK_ROWS, WIDE_ROWS_MAX
from tests.transports.libp2p.test_muxer import FakeWire, connection
from transports.libp2p import muxer, padding, yamux
from transports.libp2p.channel import LENGTH_BYTES
from transports.libp2p.padded import fill_up
from transports.libp2p.padding import (
    BULK_BYTES,
    CELL_BYTES_MAX,
    HEAD_BYTES,
    LINGER_S,
    RECORD_PLAIN_BYTES_MAX,
    BadShape,
    Beats,
    CellShape,
    Padder,
)
from transports.libp2p.yamux import HEADER_BYTES, Yamux

ROW_BYTES = 2304
SHAPE = CellShape.for_rows(ROW_BYTES)
PACED = CellShape.for_rows(ROW_BYTES, 20)
PACE_S = 0.02
HEADS = st.integers(24, 60)
"""Bytes of a step's other fields and its length: they grow with the position."""


def data(size: int) -> bytes:
    """Build a frame with that many bytes for a stream."""
    return yamux.HEADER.pack(0, yamux.DATA, 0, 1, size) + b"x" * size


@given(HEADS, st.lists(st.just(yamux.HEADER.pack(0, yamux.PING, 1, 0, 1)), max_size=2))
def test_a_row_is_one_cell_wherever_it_is_in_the_text(head: int, besides: list[bytes]) -> None:
    """And with a ping beside it."""
    assert SHAPE.is_short(ROW_BYTES + head)
    (plain,) = SHAPE.filled([data(ROW_BYTES + head), *besides])
    assert len(plain) == SHAPE.cell_bytes


@given(HEADS, st.integers(2, WIDE_ROWS_MAX))
def test_a_prompt_shows_in_whole_chunks(head: int, rows: int) -> None:
    """Two rows are as long as 48, and 49 as 64."""
    size = rows * ROW_BYTES + head
    assert size + SHAPE.behind(size) == SHAPE.chunk_bytes[0]
    size = BLOCK_ROWS * ROW_BYTES + head
    assert size + SHAPE.behind(size) == SHAPE.chunk_bytes[1]


@given(st.integers(0, 5_000_000), st.sampled_from([SHAPE, CellShape.for_rows(131_072)]))
def test_longer_messages_are_whole_chunks(size: int, shape: CellShape) -> None:
    """Whatever they are about."""
    whole = size + shape.behind(size)
    assert shape.is_short(size) or whole in shape.chunk_bytes or not whole % shape.chunk_bytes[1]


@given(st.lists(st.integers(0, 70_000), max_size=6), st.sampled_from([256, 2432, CELL_BYTES_MAX]))
def test_filled_frames_are_whole_cells_and_mean_the_same(sizes: list[int], cell: int) -> None:
    """The other end reads what it would have read without, whatever the sizes."""
    shape = CellShape(cell, (cell, cell))
    one, other = Yamux(initiator=True), Yamux(initiator=False)
    stream = one.open_stream()
    for size in sizes:
        one.send(stream, b"y" * min(size, one.window(stream)))
    frames = one.frames_to_send()
    pieces = shape.filled(frames)
    assert sum(map(len, pieces)) % cell == 0
    assert all(0 < len(each) <= RECORD_PLAIN_BYTES_MAX for each in pieces)
    events = [event for each in pieces for event in other.receive(each)]
    found = b"".join(e.data for e in events if isinstance(e, yamux.DataReceived))
    assert found == b"".join(each[HEADER_BYTES:] for each in frames)


@pytest.mark.parametrize(
    "fields",
    [
        (0, 4096, 4096, 0),
        (CELL_BYTES_MAX + 1, 1 << 20, 1 << 20, 0),
        (4096, 4095, 8192, 0),
        (4096, 8192, 4096, 0),
        (4096, 4096, 1 << 30, 0),
        (4096, 4096, 4096, 4),
        (4096, 4096, 4096, 201),
        (CELL_BYTES_MAX, CELL_BYTES_MAX, CELL_BYTES_MAX, 5),
    ],
)
def test_what_a_stranger_may_propose_is_bounded(fields: tuple[int, ...]) -> None:
    """Neither sizes nor rates at which a stage would work in vain."""
    with pytest.raises(BadShape):
        CellShape.decode(padding._SHAPE.pack(*fields))
    with pytest.raises(BadShape):
        CellShape.decode(PACED.encode()[1:])
    assert CellShape.decode(PACED.encode()) == PACED


def test_without_a_pace_nothing_waits() -> None:
    """What is put is sealed at once."""
    padder = Padder(SHAPE)
    assert padder.put([data(ROW_BYTES)], 0.0)
    assert not padder.held_bytes
    assert padder.wait_s(0.0) == inf


@given(st.lists(st.floats(0.0, 0.3), min_size=1, max_size=20))
def test_rows_leave_on_the_beat_whenever_they_come(gaps: list[float]) -> None:
    """One cell at each beat from the first row to a second after the last, full or not."""
    padder, now, rows = Padder(PACED), 0.0, 0
    sealed: list[tuple[float, list[bytes]]] = []

    def beat_until(end: float) -> None:
        nonlocal now
        while now + (wait := padder.wait_s(now)) <= end:
            now += wait
            sealed.append((now, padder.beat(now)))
        now = end

    for gap in gaps:
        if padder.beats(now + gap):
            beat_until(now + gap)
        now += 0.0 if padder.beats(now) else gap
        assert padder.put([data(ROW_BYTES + 30)], now) == []
        rows += 1
    beat_until(now + 60.0)
    assert {sum(map(len, pieces)) for _, pieces in sealed} == {PACED.cell_bytes}
    got = sum(
        isinstance(event, yamux.DataReceived)
        for _, pieces in sealed
        for event in received(b"".join(pieces))
    )
    assert got == rows
    gaps_seen = [later - sooner for (sooner, _), (later, _) in pairwise(sealed)]
    assert gaps_seen == pytest.approx([PACE_S] * len(gaps_seen))
    assert sealed[-1][0] >= LINGER_S - PACE_S


def received(plain: bytes) -> list[yamux.Event]:
    """Read a cell at an end that knows stream 1."""
    core = Yamux(initiator=False)
    core.receive(yamux.HEADER.pack(0, yamux.WINDOW, yamux.SYN, 1, 0))
    return core.receive(plain)


def test_a_prompt_does_not_wait_for_beats() -> None:
    """It goes at once, and so does what was to leave before it."""
    padder = Padder(PACED)
    assert padder.put([data(ROW_BYTES)], 0.0) == []
    assert padder.put([data(40_000)], 0.01)
    assert not padder.held_bytes


def test_a_late_process_does_not_catch_up() -> None:
    """Beats that were missed are left out, and the grid stays where it was."""
    padder = Padder(PACED)
    padder.put([data(ROW_BYTES)], 0.0)
    padder.beat(0.0)
    padder.beat(0.075)
    assert padder.wait_s(0.075) == pytest.approx(0.005)


def test_no_empty_cells_pile_up_behind_a_slow_socket() -> None:
    """Only what says something is sealed then."""
    padder = Padder(PACED)
    padder.put([data(ROW_BYTES)], 0.0)
    assert padder.beat(0.0, is_behind=True)
    assert padder.beat(PACE_S, is_behind=True) == []


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> FakeWire:
    """Put a fake under the next connection."""
    fake = FakeWire()
    monkeypatch.setattr(muxer, "open_wire", lambda _conn: fake)
    return fake


async def test_a_connection_beats_while_data_goes_either_way(
    wire: FakeWire, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """A stage that only receives rows sends as many cells as who sends them; then both rest."""
    conn = connection(wire, idle=True)
    await nursery.start(_run, conn)
    stream = conn.open_now()
    while True:
        try:
            wire.said.receive_nowait()
        except trio.WouldBlock:
            break
    fill_up(conn, PACED)
    await wire.deliver.send(yamux.HEADER.pack(0, yamux.DATA, 0, stream.stream_id, 1) + b"x")
    began, times = trio.current_time(), []
    with trio.move_on_after(3 * LINGER_S):
        while True:
            sent = await wire.said.receive()
            times.append(trio.current_time() - began)
            assert len(sent) == PACED.cell_bytes
    in_rhythm = [at for at in times if at <= LINGER_S]
    assert len(in_rhythm) == pytest.approx(LINGER_S / PACE_S, abs=2)
    assert len(times) <= len(in_rhythm) + 2  # a ping after that


async def _run(conn: muxer.Connection, *, task_status: trio.TaskStatus[Any]) -> None:
    async with trio.open_nursery() as inner:
        inner.start_soon(conn.start)
        await conn.event_started.wait()
        task_status.started()


@given(st.lists(st.floats(0.0, 0.45), min_size=2, max_size=40))
def test_a_relay_ends_the_jitter_of_a_rhythm(late: list[float]) -> None:
    """Up to half a beat, what comes early or late leaves on time; the first one sets the time."""
    beats, left = Beats(PACE_S), []
    for number, share in enumerate(late):
        now = (number + share) * PACE_S
        left.append(now + beats.wait_s(now, ROW_BYTES))
    gaps = [later - sooner for sooner, later in pairwise(left)]
    assert gaps == pytest.approx([PACE_S] * len(gaps))
    assert all(0 <= at - number * PACE_S <= PACE_S for number, at in enumerate(left))


def test_a_relays_rhythm_begins_again_after_a_pause() -> None:
    """Nothing waits for longer than a beat; what is later than its beat leaves at the next."""
    beats = Beats(PACE_S)
    assert beats.wait_s(0.0, ROW_BYTES) == pytest.approx(PACE_S / 2)
    assert beats.wait_s(0.035, ROW_BYTES) == pytest.approx(0.015)
    assert beats.wait_s(5.0, ROW_BYTES) == pytest.approx(PACE_S / 2)
    assert beats.wait_s(5.0, BULK_BYTES) == 0.0


def test_a_message_has_room_for_its_head() -> None:
    """What `CellShape.for_rows` adds holds two headers, a length and a step's other fields."""
    assert LENGTH_BYTES + 40 + 3 * HEADER_BYTES <= HEAD_BYTES
