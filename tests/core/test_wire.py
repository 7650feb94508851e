"""The codec: every message comes back as it was; of all other bytes it says that they are none."""

from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.ids import ModelId, PartHash, PeerId, SessionId
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.core.manifest import CHUNK_BYTES, MANIFEST_BYTES_MAX
from p2pinfer.core.messages import (
    ADDRESS_CHARS_MAX,
    ADDRESSES_MAX,
    BITMAP_BYTES_MAX,
    LAYERS_MAX,
    PARTS_PER_QUESTION_MAX,
    POSITIONS_MAX,
    ROUTE_HOPS_MAX,
    ROWS_BYTES_MAX,
    TEXT_CHARS_MAX,
    Advertisement,
    AskChunk,
    AskHeld,
    AskManifest,
    Attach,
    Attached,
    Chunk,
    Denied,
    Dtype,
    Heard,
    Held,
    Hop,
    Known,
    ManifestIs,
    Message,
    Open,
    Opened,
    Refusal,
    Refused,
    Step,
)
from p2pinfer.core.wire import BadMessage, decode, encode

KINDS: tuple[type[Any], ...] = get_args(Message)
CHUNKS_MAX = 8 * BITMAP_BYTES_MAX

PEER = PeerId("12D3KooW" + "x" * 44)
MODEL = ModelId("0123456789abcdef" * 4)
SESSION = SessionId(bytes(range(16)))
HOP = Hop(PEER, ("/ip4/127.0.0.1/tcp/1",), 1, 10)
OPEN = Open(SESSION, MODEL, PEER, (HOP,), 4096)

texts = st.text(st.characters(exclude_categories=["Cs"]))
peers = st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZ", min_size=46, max_size=64).map(PeerId)
models = st.text("0123456789abcdef", min_size=64, max_size=64).map(ModelId)
sessions = st.binary(min_size=16, max_size=16).map(SessionId)
addresses = st.lists(texts.map(lambda text: text[:ADDRESS_CHARS_MAX]), max_size=ADDRESSES_MAX)
layers = st.integers(0, LAYERS_MAX)
sizes = st.integers(1, POSITIONS_MAX)
counters = st.integers(0, 1 << 62)
hops = st.builds(Hop, peers, addresses.map(tuple), layers, layers)
heard = st.builds(
    Heard, st.binary(max_size=200), st.binary(min_size=64, max_size=64), st.integers(0, 1 << 40)
)
messages = st.one_of(
    st.builds(
        Open,
        sessions,
        models,
        peers,
        st.lists(hops, min_size=1, max_size=5).map(tuple),
        sizes,
        st.sampled_from(Dtype),
    ),
    st.just(Opened()),
    st.builds(Attach, sessions),
    st.just(Attached()),
    st.builds(
        Step,
        counters,
        st.integers(0, POSITIONS_MAX),
        st.integers(1, ROWS_PER_DECODE_MAX),
        st.booleans(),
        st.binary(max_size=300),
        st.lists(counters, max_size=5).map(tuple),
    ),
    st.builds(Refused, st.sampled_from(Refusal), texts.map(lambda t: t[:TEXT_CHARS_MAX]), peers),
    st.builds(Known, st.lists(heard, max_size=3).map(tuple)),
    st.builds(
        Advertisement,
        peers,
        addresses.map(tuple),
        models,
        texts.map(lambda text: text[:128]),
        st.integers(1, LAYERS_MAX),
        layers,
        layers,
        sizes,
        st.text("0123456789abcdef", min_size=32, max_size=32),
        counters,
    ),
    st.builds(AskManifest, counters, models),
    st.builds(ManifestIs, counters, st.binary(max_size=300)),
    st.builds(AskHeld, counters, models, st.lists(models.map(PartHash), max_size=5).map(tuple)),
    st.builds(Held, counters, st.lists(st.binary(max_size=9), max_size=5).map(tuple)),
    st.builds(AskChunk, counters, models, models.map(PartHash), st.integers(0, CHUNKS_MAX - 1)),
    st.builds(Chunk, counters, st.binary(min_size=1, max_size=300)),
    st.builds(Denied, counters, st.sampled_from(Refusal)),
)


def judge(data: bytes) -> None:
    """Decode, and hold whatever is accepted to being a message that encodes to a message."""
    try:
        message = decode(data, *KINDS)
    except BadMessage:
        return
    assert isinstance(message, KINDS)
    assert decode(encode(message), *KINDS) == message


@settings(max_examples=400)
@given(messages)
def test_every_message_comes_back(message: Message) -> None:
    """What is encoded decodes to the same message, of the same kind."""
    assert decode(encode(message), *KINDS) == message
    assert type(decode(encode(message), *KINDS)) is type(message)


@settings(max_examples=50)
@given(messages, messages)
def test_only_what_is_due_is_taken(message: Message, due: Message) -> None:
    """A good message of a kind that is not due is refused."""
    if type(message) is not type(due):
        with pytest.raises(BadMessage, match="not due"):
            decode(encode(message), type(due))


@settings(max_examples=50)
@given(st.randoms(use_true_random=False))
def test_noise_is_no_message(random: Any) -> None:
    """Random bytes, 100 at a time, are refused and nothing else happens."""
    for _ in range(100):
        judge(random.randbytes(random.randrange(80)))


@settings(max_examples=100)
@given(messages, st.randoms(use_true_random=False))
def test_damage_is_judged(message: Message, random: Any) -> None:
    """A message with bytes changed, cut out or put in, 60 times, is a message or is refused."""
    whole = encode(message)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(data) + 1)
            data[at : at + random.randrange(3)] = random.randbytes(random.randrange(3))
        judge(bytes(data))


@settings(max_examples=200)
@given(
    st.sampled_from([kind.__name__ for kind in KINDS]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-5, 1 << 63)
        | st.text()
        | st.binary()
        | st.floats(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    ).filter(lambda value: isinstance(value, list)),
)
def test_well_packed_nonsense_is_judged(name: str, values: list[Any]) -> None:
    """Any values under a message's name are a message or are refused."""
    try:
        data = msgpack.packb([name, *values])
    except ValueError:  # a lone surrogate, which msgpack cannot write
        return
    judge(data)


GOOD: dict[str, list[Any]] = {
    "Open": [SESSION, MODEL, PEER, [[PEER, ["/a"], 1, 10]], 4096, "f32"],
    "Attach": [SESSION],
    "Step": [1, 0, 1, False, b"rows", []],
    "Refused": ["busy", "no", PEER],
    "Known": [[[b"body", bytes(64), 0]]],
    "Advertisement": [PEER, [], MODEL, "name", 30, 1, 10, 4096, "0" * 32, 7],
    "AskManifest": [1, MODEL],
    "ManifestIs": [1, b"bytes"],
    "AskHeld": [1, MODEL, [MODEL]],
    "Held": [1, [b"\x01"]],
    "AskChunk": [1, MODEL, MODEL, 0],
    "Chunk": [1, b"bytes"],
    "Denied": [1, "not-held"],
}


def test_every_kind_has_good_values() -> None:
    """A new kind of message must come with values here, and with limits in the test below."""
    fieldless = {"Opened", "Attached"}
    assert set(GOOD) | fieldless == {kind.__name__ for kind in KINDS}


def test_the_good_values_are_good() -> None:
    """What the next test spoils is accepted as it is."""
    for name, values in GOOD.items():
        decode(msgpack.packb([name, *values]), *KINDS)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        pytest.param("Open", 0, SESSION[:15], id="short session"),
        pytest.param("Open", 0, SESSION.hex(), id="session as text"),
        pytest.param("Open", 1, MODEL[:-1] + "g", id="model not hexadecimal"),
        pytest.param("Open", 1, MODEL + "\n", id="model and a line end"),
        pytest.param("Open", 2, "x" * 65, id="peer too long"),
        pytest.param("Open", 3, [], id="no hops"),
        pytest.param("Open", 3, [[PEER, [], 1, 2]] * (ROUTE_HOPS_MAX + 1), id="too many hops"),
        pytest.param("Open", 3, [[PEER, ["/a"] * (ADDRESSES_MAX + 1), 1, 2]], id="addresses"),
        pytest.param("Open", 3, [[PEER, ["/" * (ADDRESS_CHARS_MAX + 1)], 1, 2]], id="address"),
        pytest.param("Open", 3, [[PEER, "/a", 1, 2]], id="text for a list"),
        pytest.param("Open", 3, [[PEER, [], 1, 2, 3]], id="a field too many in a hop"),
        pytest.param("Open", 3, [[PEER, [], "1", 2]], id="layer as text"),
        pytest.param("Open", 3, [[PEER, [], 1, LAYERS_MAX + 1]], id="layer too high"),
        pytest.param("Open", 3, [[PEER, [], -1, 2]], id="layer below nought"),
        pytest.param("Open", 4, "4096", id="context as text"),
        pytest.param("Open", 4, 4096.0, id="context as float"),
        pytest.param("Open", 4, True, id="context as truth"),
        pytest.param("Open", 4, 0, id="no context"),
        pytest.param("Open", 5, "f64", id="unknown dtype"),
        pytest.param("Step", 0, -1, id="number below nought"),
        pytest.param("Step", 1, POSITIONS_MAX + 1, id="position too high"),
        pytest.param("Step", 2, 0, id="no rows"),
        pytest.param("Step", 2, ROWS_PER_DECODE_MAX + 1, id="too many rows"),
        pytest.param("Step", 3, 1, id="number for truth"),
        pytest.param("Step", 4, "rows", id="rows as text"),
        pytest.param("Step", 4, bytes(ROWS_BYTES_MAX + 1), id="too many bytes"),
        pytest.param("Step", 5, [0] * (ROUTE_HOPS_MAX + 1), id="too many times"),
        pytest.param("Step", 5, [0.5], id="time as float"),
        pytest.param("Step", 5, b"abc", id="bytes for a list"),
        pytest.param("Refused", 0, "maybe", id="unknown refusal"),
        pytest.param("Refused", 1, "n" * (TEXT_CHARS_MAX + 1), id="text too long"),
        pytest.param("Known", 0, [[b"body", bytes(63), 0]], id="short signature"),
        pytest.param("Known", 0, [[b"body", bytes(64), -1]], id="age below nought"),
        pytest.param("Advertisement", 3, "n" * 129, id="name too long"),
        pytest.param("Advertisement", 8, "0" * 31, id="short class"),
        pytest.param("ManifestIs", 1, bytes(MANIFEST_BYTES_MAX + 1), id="manifest too long"),
        pytest.param("AskHeld", 2, [MODEL] * (PARTS_PER_QUESTION_MAX + 1), id="too many parts"),
        pytest.param("AskHeld", 2, [MODEL[1:]], id="short part"),
        pytest.param("Held", 1, [b""] * (PARTS_PER_QUESTION_MAX + 1), id="too many bitmaps"),
        pytest.param("Held", 1, [bytes(BITMAP_BYTES_MAX + 1)], id="bitmap too long"),
        pytest.param("AskChunk", 2, MODEL.upper(), id="part in capitals"),
        pytest.param("AskChunk", 3, CHUNKS_MAX, id="chunk beyond the longest part"),
        pytest.param("AskChunk", 3, -1, id="chunk below nought"),
        pytest.param("Chunk", 1, b"", id="empty chunk"),
        pytest.param("Chunk", 1, bytes(CHUNK_BYTES + 1), id="chunk too long"),
        pytest.param("Denied", 1, "maybe", id="unknown denial"),
    ],
)
def test_each_limit_holds(name: str, field: int, value: Any) -> None:
    """One value over its limit, or of another type, spoils a message; nothing is coerced."""
    values = GOOD[name].copy()
    values[field] = value
    with pytest.raises(BadMessage):
        decode(msgpack.packb([name, *values]), *KINDS)


@pytest.mark.parametrize("name", ["Open", "Attach", "Refused"])
def test_the_number_of_fields_is_checked(name: str) -> None:
    """A field too few or too many spoils a message."""
    for values in (GOOD[name][:-2], [*GOOD[name], 0]):
        with pytest.raises(BadMessage):
            decode(msgpack.packb([name, *values]), *KINDS)


def test_our_own_mistakes_are_refused_when_made() -> None:
    """A message over a limit cannot be made here either."""
    with pytest.raises(ValueError, match="route"):
        Open(SESSION, MODEL, PEER, (HOP,) * (ROUTE_HOPS_MAX + 1), 4096)
    with pytest.raises(ValueError, match="text"):
        Refused(Refusal.BUSY, "n" * (TEXT_CHARS_MAX + 1), PEER)


def test_each_stage_takes_off_its_own_hop() -> None:
    """The message for the next stage is the same but for the first hop."""
    other = Hop(PEER, (), 10, 20)
    opened = Open(SESSION, MODEL, PEER, (HOP, other), 4096, Dtype.F16)
    assert opened.for_next() == Open(SESSION, MODEL, PEER, (other,), 4096, Dtype.F16)
    assert OPEN.dtype is Dtype.F32
