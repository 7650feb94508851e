"""The pure Yamux core: two of them connected, fed at random, and held to each limit."""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transports.libp2p import yamux
from transports.libp2p.yamux import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    INITIAL_WINDOW_BYTES,
    PING,
    RST,
    SYN,
    WINDOW,
    TooManyStreams,
    Yamux,
    YamuxViolation,
)


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    """Build what a remote may send."""
    return HEADER.pack(0, kind, flags, stream_id, length) + body


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    """Build a frame with bytes."""
    return frame(DATA, flags, stream_id, len(body), body)


def heads(core: Yamux) -> list[tuple[int, ...]]:
    """Return kind, flags, stream and length of each frame to send."""
    return [HEADER.unpack_from(sent)[1:] for sent in core.frames_to_send()]


@dataclass
class End:
    """A core, the bytes in transit to it, and what an application on top of it sees."""

    core: Yamux
    inbox: bytearray = field(default_factory=bytearray)
    streams: list[int] = field(default_factory=list)
    sent: dict[int, bytearray] = field(default_factory=dict)
    got: dict[int, bytearray] = field(default_factory=dict)
    unread: dict[int, int] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)  # finished by us
    ended: set[int] = field(default_factory=set)  # finished by the remote
    dead: set[int] = field(default_factory=set)
    answers: list[int] = field(default_factory=list)

    def add(self, stream_id: int) -> None:
        """Note a new stream."""
        self.streams.append(stream_id)
        self.sent[stream_id], self.got[stream_id] = bytearray(), bytearray()
        self.unread[stream_id] = 0

    def read(self, size: int) -> None:
        """Take the first bytes that have arrived."""
        arrived = bytes(self.inbox[:size])
        del self.inbox[:size]
        for event in self.core.receive(arrived):
            match event:
                case yamux.StreamOpened(stream_id):
                    self.add(stream_id)
                case yamux.DataReceived(stream_id, body):
                    assert stream_id not in self.ended | self.dead
                    self.got[stream_id] += body
                    self.unread[stream_id] += len(body)
                case yamux.RemoteFinished(stream_id):
                    self.ended.add(stream_id)
                case yamux.StreamReset(stream_id):
                    self.dead.add(stream_id)
                case yamux.PingAnswered(value):
                    self.answers.append(value)


def act(end: End, choice: int, stream_id: int, size: int) -> None:
    """Do one thing that an application may do."""
    core, alive = end.core, stream_id not in end.dead
    if choice == 0:
        end.add(core.open_stream())
    elif choice == 1 and alive and stream_id not in end.over:
        body = (len(end.sent[stream_id]) % 251).to_bytes(1, "big") * size
        while sent := core.send(stream_id, body):
            end.sent[stream_id] += body[:sent]
            body = body[sent:]
    elif choice == 2:
        taken = min(size, end.unread[stream_id])
        end.unread[stream_id] -= taken
        core.consumed(stream_id, taken)
    elif choice == 3 and alive:
        end.over.add(stream_id)
        core.finish(stream_id)
    elif choice == 4:
        end.dead.add(stream_id)
        core.reset(stream_id)
    elif choice == 5:
        core.ping(size)


ACTIONS = st.lists(
    st.tuples(
        st.integers(0, 1),  # which end acts
        st.sampled_from([0, 1, 1, 1, 1, 2, 2, 2, 6, 6, 6, 6, 3, 4, 5]),  # what; 6: read what came
        st.integers(0, 2),  # on which of its streams
        st.sampled_from([1, 11, 12, 13, 1000, 70_000, 200_000, 300_000]),  # how many bytes
    ),
    min_size=20,
    max_size=100,
)


def check_windows(core: Yamux) -> None:
    """Allowed, unread and not yet re-allowed bytes add up to the window."""
    for stream_id, stream in core._streams.items():
        coming = core._body_left if core._body_id == stream_id else 0
        assert stream.receive_window + coming + stream.unread + stream.owed == stream.window


@given(ACTIONS)
@settings(deadline=None)
def test_two_ends_agree_whatever_they_do(actions: list[tuple[int, int, int, int]]) -> None:
    """However two ends act and however the bytes are cut, neither finds fault and none is lost."""
    ends = [End(Yamux(initiator=True)), End(Yamux(initiator=False))]

    def travel() -> None:
        for end, other in zip(ends, reversed(ends), strict=True):
            other.inbox += b"".join(end.core.frames_to_send())

    for end in ends:
        act(end, 0, 0, 0)
    travel()
    for who, choice, which, size in actions:
        end = ends[who]
        if choice == 6:
            end.read(size)
        elif choice in {0, 5} or end.streams:
            stream_id = end.streams[which % len(end.streams)] if end.streams else 0
            act(end, choice, stream_id, size)
        check_windows(end.core)
        travel()
    while any(end.inbox for end in ends):
        for end in ends:
            end.read(len(end.inbox))
        travel()
    for end, other in zip(ends, reversed(ends), strict=True):
        for stream_id in end.streams:
            if stream_id in end.dead | other.dead:
                assert end.sent[stream_id].startswith(other.got.get(stream_id, b""))
            else:
                assert other.got[stream_id] == end.sent[stream_id]
                assert (stream_id in other.ended) == (stream_id in end.over)
        live = [s for s in end.streams if not (s in end.dead or s in end.over & end.ended)]
        assert list(end.core._streams) == live
        assert end.core._unread == sum(end.unread[s] for s in live)


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_random_bytes_raise_nothing_but_violation(pieces: list[bytes]) -> None:
    """Noise from the network is parsed or refused; it never raises anything else."""
    core = Yamux(initiator=True)
    try:
        for piece in pieces:
            core.receive(piece)
    except YamuxViolation:
        pass


FRAMES = st.lists(
    st.tuples(
        st.sampled_from([DATA, DATA, WINDOW, WINDOW, PING, GO_AWAY, 4]),
        st.sampled_from([0, 0, SYN, SYN, ACK, FIN, RST, SYN | FIN, SYN | RST, 15]),
        st.sampled_from([0, 1, 2, 2, 4, 4, 6, 2**32 - 2]),
        st.sampled_from([0, 1, 12, 1000, 2**20, 2**32 - 1]),
    ),
    max_size=40,
)


@given(FRAMES, st.integers(1, 5000))
@settings(deadline=None)
def test_well_formed_nonsense_raises_nothing_but_violation(
    frames: list[tuple[int, int, int, int]], step: int
) -> None:
    """Frames in any order, cut anywhere, keep the books right until the first violation."""
    core = Yamux(initiator=True)
    core.open_stream()
    arrived = b"".join(
        frame(*head, bytes(min(head[3], 2000)) if head[0] == DATA else b"") for head in frames
    )
    try:
        for start in range(0, len(arrived), step):
            core.receive(arrived[start : start + step])
    except YamuxViolation:
        pass
    assert core._unread == sum(stream.unread for stream in core._streams.values())
    assert core._remote_open == sum(stream_id % 2 == 0 for stream_id in core._streams)
    assert all(stream.receive_window >= 0 for stream in core._streams.values())


def test_bytes_one_by_one() -> None:
    """Bytes arriving one at a time are understood like the whole."""
    arrived = data(1, b"hello", SYN) + data(1, b" world", FIN)
    core = Yamux(initiator=False)
    events = [event for byte in arrived for event in core.receive(bytes([byte]))]
    assert events[0] == yamux.StreamOpened(1)
    assert b"".join(e.data for e in events if isinstance(e, yamux.DataReceived)) == b"hello world"
    assert events[-1] == yamux.RemoteFinished(1)


@pytest.mark.parametrize(
    "arrived",
    [
        pytest.param(b"\x01" + bytes(11), id="another version"),
        pytest.param(frame(4, 0, 0, 0), id="an unknown kind"),
        pytest.param(frame(DATA, 16, 1, 0), id="an unknown flag"),
        pytest.param(frame(DATA, SYN, 0, 0), id="data on the session"),
        pytest.param(frame(PING, SYN, 1, 0), id="a ping on a stream"),
        pytest.param(frame(WINDOW, SYN, 2, 0), id="a stream with our parity"),
        pytest.param(frame(WINDOW, SYN, 1, 0) * 2, id="a stream opened twice"),
        pytest.param(data(1, b"x"), id="data on a stream never opened"),
        pytest.param(data(2, b"x"), id="data on a stream of ours never opened"),
        pytest.param(data(1, b"", SYN | FIN) + data(1, b"x"), id="data after the end"),
        pytest.param(frame(DATA, SYN, 1, INITIAL_WINDOW_BYTES + 1), id="a window overrun"),
        pytest.param(
            frame(DATA, SYN, 1, INITIAL_WINDOW_BYTES, bytes(INITIAL_WINDOW_BYTES)) + data(1, b"x"),
            id="a window overrun by one byte",
        ),
        pytest.param(
            frame(WINDOW, SYN, 1, 2**32 - 1) + frame(WINDOW, 0, 1, 1), id="a window too large"
        ),
        pytest.param(
            frame(WINDOW, SYN | RST, 1, 0) + frame(DATA, 0, 1, 2**21), id="a monstrous late frame"
        ),
    ],
)
def test_what_a_remote_may_not_do(arrived: bytes) -> None:
    """Each breach of the protocol is a violation, not an exception of ours."""
    with pytest.raises(YamuxViolation):
        Yamux(initiator=False).receive(arrived)


def test_a_window_is_given_back_and_grows_by_being_read() -> None:
    """A stream starts with the window of the specification, and gets the larger one once read."""
    core = Yamux(initiator=False)
    core.receive(data(1, bytes(INITIAL_WINDOW_BYTES), SYN))
    core.consumed(1, 1000)
    assert heads(core) == []
    core.consumed(1, INITIAL_WINDOW_BYTES - 1000)
    assert heads(core) == [(WINDOW, ACK, 1, yamux.WINDOW_BYTES_MAX)]
    core.receive(data(1, bytes(yamux.WINDOW_BYTES_MAX)))
    with pytest.raises(YamuxViolation, match="overrun"):
        core.receive(data(1, b"x"))


def test_unread_bytes_of_a_connection_are_bounded() -> None:
    """Many streams, each within its window, must not fill the memory together."""
    core = Yamux(initiator=False)
    allowed = yamux.UNREAD_BYTES_MAX // INITIAL_WINDOW_BYTES
    body = bytes(INITIAL_WINDOW_BYTES)
    for i in range(allowed):
        core.receive(data(1 + 2 * i, body, SYN))
    with pytest.raises(YamuxViolation, match="bytes unread"):
        core.receive(data(1 + 2 * allowed, b"x", SYN))


def test_streams_beyond_the_cap_are_refused_and_a_flood_is_cut() -> None:
    """The 301st stream is reset; a remote that goes on regardless loses the connection."""
    core = Yamux(initiator=False)
    ids = iter(range(1, 10_000, 2))
    for _ in range(yamux.STREAMS_MAX):
        core.receive(frame(WINDOW, SYN, next(ids), 0))
    assert heads(core) == []
    refused = next(ids)
    assert core.receive(data(refused, b"late bytes", SYN)) == []
    assert heads(core) == [(WINDOW, RST, refused, 0)]
    core.receive(frame(WINDOW, RST, 1, 0))
    assert core.receive(frame(WINDOW, SYN, next(ids), 0)) != []
    flood = b"".join(frame(WINDOW, SYN, next(ids), 0) for _ in range(yamux.REFUSALS_MAX + 1))
    with pytest.raises(YamuxViolation, match="flood"):
        core.receive(flood)


def test_our_own_streams_have_the_same_cap() -> None:
    """We do not ask a remote for more than we would allow it."""
    core = Yamux(initiator=True)
    ids = deque(core.open_stream() for _ in range(yamux.STREAMS_MAX))
    with pytest.raises(TooManyStreams):
        core.open_stream()
    core.reset(ids.popleft())
    core.open_stream()


def test_pings_are_answered_and_answers_reported() -> None:
    """A ping comes back with its value, also in the other direction."""
    core = Yamux(initiator=True)
    core.receive(frame(PING, SYN, 0, 77))
    core.ping(5)
    assert heads(core) == [(PING, ACK, 0, 77), (PING, SYN, 0, 5)]
    assert core.receive(frame(PING, ACK, 0, 5)) == [yamux.PingAnswered(5)]


def test_after_go_away_no_stream_begins() -> None:
    """Once a side went away neither opens a stream; those that are open go on."""
    core = Yamux(initiator=True)
    stream_id = core.open_stream()
    assert core.receive(frame(GO_AWAY, 0, 0, 0)) == [yamux.WentAway(0)]
    with pytest.raises(TooManyStreams):
        core.open_stream()
    assert core.send(stream_id, b"go on") == 5
    core.frames_to_send()
    core.receive(frame(WINDOW, SYN, 2, 0))
    assert heads(core) == [(WINDOW, RST, 2, 0)]


def test_half_close_in_either_order() -> None:
    """A finished side still receives; a stream is forgotten when both have finished."""
    core = Yamux(initiator=True)
    first, second = core.open_stream(), core.open_stream()
    core.finish(first)
    assert core.receive(data(first, b"answer", ACK | FIN)) == [
        yamux.DataReceived(first, b"answer"),
        yamux.RemoteFinished(first),
    ]
    core.receive(data(second, b"", ACK | FIN))
    assert core.send(second, b"x") == 1
    core.finish(second)
    assert not core._streams


def test_what_crosses_a_reset_is_dropped() -> None:
    """Bytes that were in transit when we reset a stream are not a fault, and are dropped."""
    core = Yamux(initiator=True)
    stream_id = core.open_stream()
    first = data(stream_id, b"x" * 1000)
    assert core.receive(first[:500]) != []
    core.reset(stream_id)
    assert core.receive(first[500:] + data(stream_id, b"more", FIN)) == []
    assert core._unread == 0
